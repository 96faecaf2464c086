"""Seconds for which training stands still while checkpoints are written, with and without run.asynchronous_save.

    nice python benchmarks/asynchronous_save.py [--hidden 512] [--layers 16] [--steps 6] [--repeats 2] [--threads 1]

Pretraining of a random Llama, about 50 million parameters by default, with a checkpoint after every step (weights and
both moments in float32, and the model: 16 bytes a parameter), each arm in a process of its own, in turn: without
checkpoints but the last, with synchronous ones, and with asynchronous ones. `wall` is from the first step to the end
of training, the last checkpoint included; `standing` is what a step's checkpoint, without the last one, kept the loop
from going on; `step` is the mean of the steps themselves, which a thread that writes may slow down. Writes
benchmarks/results/asynchronous_save.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARMS = {
    "none": ["--run.save-every", "0"],
    "synchronous": ["--run.save-every", "1"],
    "asynchronous": ["--run.save-every", "1", "--run.asynchronous-save", "true"],
}
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening. "


def one_run(arguments: list[str]) -> dict[str, Any]:
    """Run the command here; its seconds."""
    from proxlm.__main__ import main
    from proxlm.runlog.run_log import RunLog
    from proxlm.train.common.run_loop import TrainingLoop

    standing: list[float] = []
    found: dict[str, Any] = {"standing": standing}
    checkpoint, train = RunLog.checkpoint, TrainingLoop.train

    def timed_checkpoint(self: RunLog, save: Callable[[], Path], due: bool) -> None:
        began = time.perf_counter()
        checkpoint(self, save, due)
        if due:
            standing.append(time.perf_counter() - began)

    def timed_train(self: TrainingLoop[Any], log: RunLog) -> None:
        began = time.perf_counter()
        train(self, log)
        found["wall"] = time.perf_counter() - began

    RunLog.checkpoint = timed_checkpoint  # type: ignore[method-assign]
    TrainingLoop.train = timed_train  # type: ignore[method-assign]
    if status := main(arguments):
        raise SystemExit(status)
    return found


def main_of_benchmark() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
    parser.add_argument("--place", type=Path, default=None, help="where checkpoints are written")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help="for the processes of the arms")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_run(given.one)))
        return
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for repeat in range(given.repeats):
        for arm in list(ARMS)[:: 1 if repeat % 2 == 0 else -1]:
            runs[arm].append(_in_a_process(arm, given))
            print(arm, {n: round(v, 2) for n, v in runs[arm][-1].items()}, flush=True)
    results = {
        "command": " ".join(sys.argv),
        "load": os.getloadavg()[0],
        "arms": {
            arm: {name: [run[name] for run in found] for name in ("wall", "standing", "step")}
            for arm, found in runs.items()
        },
    }
    output = Path(__file__).parent / "results" / "asynchronous_save.json"
    output.write_text(json.dumps(results, indent=1) + "\n")


def _in_a_process(arm: str, given: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        (Path(folder) / "text.txt").write_text("\n\n".join(f"{i}: {TEXT * 3}" for i in range(300)))
        command = [
            "pretrain", "--model.device", "cpu", "--text.train", "text.txt", "--new.type", "llama",
            "--new.hidden", str(given.hidden), "--new.layers", str(given.layers), "--new.heads", "8",
            "--new.context", "128", "--new.vocabulary", "400", "--train.block", "128",
            "--train.steps", str(given.steps), "--train.batch-tokens", str(given.tokens),
            "--train.validate-every", "1000", "--train.patience", "0", "--text.validation-share", "0.01",
            "--run.threads", str(given.threads), "--run.keep", "1", "--run.report", "false", "--run.folder", "run",
            "--run.log-samples", "0", *ARMS[arm],
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, Path(__file__).resolve(), "--one", *command],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        rows = [
            json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        phases = [sum(v for n, v in row.items() if n.startswith("time/")) for row in rows]
        before = found["standing"][:-1] or [0.0]
        return {
            "wall": found["wall"], "standing": statistics.mean(before), "step": statistics.mean(phases),
            "last": found["standing"][-1],
        }  # fmt: skip


if __name__ == "__main__":
    main_of_benchmark()
