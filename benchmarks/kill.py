"""Kill runs at random instants with SIGKILL, resume them, and compare the end with a run that nobody killed.

python benchmarks/kill.py [--ppo 50] [--sft 20] [--seed 0] [--output benchmarks/results/kill.json]

A tiny model, CPU, one thread. Each kill is at a random instant of a run's whole time, or (every second one) while a
checkpoint is being written. A killed run is resumed and killed again until the kills are used up, then it ends by
itself. Weights, optimiser moments and the model's files must be equal byte for byte; metrics, samples and the
evaluation line by line, but for times, speeds and memory. The runs are forked off a process that has imported torch,
which saves the seconds of starting; a kill is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from proxlm.__main__ import ENVIRONMENT, main

TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "One day a small dog found a big red ball in the park.",
    "def add(a, b): return a + b",
    "春眠不觉晓，处处闻啼鸟。",
]
REWARD = "def score(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
COMMON = [
    "--model.policy", "model", "--model.device", "cpu", "--run.threads", "1", "--run.report", "false",
    "--run.save-every", "1",
]  # fmt: skip
# All that a run carries: a critic of its own, β that adapts, rewards scaled by all so far, a reference that moves.
JOBS = {
    "ppo": [
        "ppo", *COMMON, "--data.prompts", "prompts.jsonl", "--data.eval-count", "4", "--model.critic", "separate",
        "--rollout.max-new-tokens", "8", "--reward.use", "reward.py:score", "--ppo.steps", "12",
        "--ppo.batch-size", "8", "--ppo.epochs", "2", "--ppo.minibatches", "2", "--ppo.kl-controller", "adaptive",
        "--ppo.kl-target", "0.1", "--ppo.kl-horizon", "100", "--ppo.reference-decay", "0.9",
        "--shaping.scale", "running", "--optim.policy.lr", "1e-3", "--optim.critic.schedule", "cosine",
        "--run.keep-best", "reward",
    ],
    "sft": [
        "sft", *COMMON, "--text.train", "pairs.jsonl", "--train.steps", "40", "--train.batch-tokens", "60",
        "--train.validate-every", "3", "--train.patience", "0", "--optim.lr", "1e-2", "--optim.warmup", "5",
    ],
}  # fmt: skip
# What a clock or a memory gauge says, at the end of a name or its beginning.
TIMED = ("time", "tokens_per_second", "memory_gb", "seconds")


@dataclass
class Outcome:
    """What became of one job's kills.

    at_share: of the run's steps, what was saved at each kill; different: what was not as in the run left alone.
    """

    kills: int = 0
    runs: int = 0
    while_writing: int = 0
    before_a_checkpoint: int = 0
    resumed: int = 0
    seconds_of_a_run: float = 0.0
    at_share: list[float] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def prepare(folder: Path) -> None:
    """A tiny model, prompts, pairs and a reward in `folder`."""
    from proxlm.config import ModelSettings, NewModelSettings
    from proxlm.data.tokenizer import train_tokenizer
    from proxlm.models.load import build_language_model
    from proxlm.models.save import save_language_model

    tokenizer = train_tokenizer(TEXTS * 20, vocabulary=320, context=128)
    torch.manual_seed(0)
    new = NewModelSettings(type="llama", hidden=32, layers=2, heads=4, context=128)
    save_language_model(build_language_model(new, tokenizer, ModelSettings(device="cpu")), folder / "model")
    prompts = [{"prompt": f"{text[:12]} {i}"} for i in range(6) for text in TEXTS]
    pairs = [{"prompt": text[:6], "response": f"{text[6:20]} {i}"} for i in range(6) for text in TEXTS]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)


def start(arguments: Sequence[str]) -> int:
    """Fork a process that runs the command; its process id. What it prints goes to output.txt."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = main(arguments)
        sys.stdout.flush()
    finally:
        os._exit(status)


def ended(child: int) -> int | None:
    """The exit status, negative for a signal; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def writing(run: Path, since: float) -> bool:
    """Whether a checkpoint begun after `since` is being written; what an earlier kill left does not count."""
    for folder in (run / "checkpoints").glob(".writing-*"):
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime > since:
                return True
    return False


def wait_and_kill(child: int, run: Path, delay: float, while_writing: bool, rng: random.Random) -> int | None:
    """Kill the process after `delay` seconds, or at a checkpoint being written after that; its status if it ended."""
    began, since, more = time.monotonic(), time.time(), rng.uniform(0.0, 0.02)
    while (status := ended(child)) is None:
        late = time.monotonic() - began > delay
        if late and (not while_writing or writing(run, since)):
            time.sleep(more if while_writing else 0.0)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.0005)
    return status


def finish(arguments: Sequence[str]) -> None:
    """Run the command to its end. Raises SystemExit where it fails."""
    status = os.waitstatus_to_exitcode(os.waitpid(start(arguments), 0)[1])
    if status != 0:
        raise SystemExit(f"{' '.join(arguments)}: status {status}\n{Path('output.txt').read_text()[-2000:]}")


def torture(job: str, kills: int, rng: random.Random) -> Outcome:
    """Kill a job's runs `kills` times in all, in the current folder."""
    outcome, whole = Outcome(), Path(f"{job}-whole")
    began = time.monotonic()
    finish([*JOBS[job], "--run.folder", str(whole)])
    outcome.seconds_of_a_run = round(time.monotonic() - began, 2)
    while outcome.kills < kills:
        outcome.runs += 1
        run = Path(f"{job}-{outcome.runs}")
        _one_run(job, run, kills, outcome, rng)
        outcome.different += [f"{run}: {line}" for line in differences(whole, run)]
        shutil.rmtree(run)
        print(
            f"{job}: {outcome.kills} kills, {outcome.runs} runs, {len(outcome.different)} differences",
            flush=True,
        )
    return outcome


def _one_run(job: str, run: Path, kills: int, outcome: Outcome, rng: random.Random) -> None:
    """Start, kill and resume one run until it ends by itself."""
    killed = False
    while True:
        command = [*JOBS[job], "--run.folder", str(run)]
        if any((run / "checkpoints").glob("step-*")):
            command.append("--resume")
            outcome.resumed += 1
        elif killed:  # perhaps before there was a folder
            outcome.before_a_checkpoint += 1
            shutil.rmtree(run, ignore_errors=True)
        if outcome.kills >= kills:
            finish(command)
            return
        # A resumed run is shorter than a whole one, but by no means nothing: it loads, and measures at both ends.
        left = outcome.seconds_of_a_run * max(1 - share_done(job, run), 0.4)
        began, since = time.monotonic(), time.time()
        status = wait_and_kill(start(command), run, rng.uniform(0.0, left), outcome.kills % 2 == 1, rng)
        if status == 0:
            if "--resume" not in command:  # the first run of all had to fill the system's caches
                outcome.seconds_of_a_run = min(outcome.seconds_of_a_run, round(time.monotonic() - began, 2))
            return
        if status is not None:
            raise SystemExit(f"{run}: status {status}\n{Path('output.txt').read_text()[-2000:]}")
        killed = True
        outcome.kills += 1
        outcome.at_share.append(round(share_done(job, run), 2))
        outcome.while_writing += writing(run, since)


def share_done(job: str, run: Path) -> float:
    """How much of a run its newest checkpoint has behind it, 0 to 1."""
    names = [p.name for p in (run / "checkpoints").glob("step-*")]
    steps = int(next(b for a, b in pairwise(JOBS[job]) if a in ("--ppo.steps", "--train.steps")))
    return max((int(name.removeprefix("step-")) for name in names), default=0) / steps


def differences(whole: Path, run: Path) -> list[str]:
    """What is not the same in two finished runs' folders."""
    found = []
    names = {p.name for f in (whole, run) for p in (f / "checkpoints").iterdir()}
    for place in ["policy", *(f"checkpoints/{name}" for name in sorted(names))]:
        hashes = [_hashes(folder / place) for folder in (whole, run)]
        found += [f"{place}/{name}" for name in hashes[0].keys() | hashes[1].keys()
                  if hashes[0].get(name) != hashes[1].get(name)]  # fmt: skip
        states = [_timeless(_json(folder / place / "state.json")) for folder in (whole, run)]
        found += [f"{place}/state.json"] if states[0] != states[1] else []
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = [_rows(folder / name) for folder in (whole, run)]
        lines = [i for i, (a, b) in enumerate(zip(*rows, strict=False), start=1) if a != b]
        found += [f"{name} line {i}" for i in lines]
        found += (
            [f"{name} has {len(rows[1])} lines, not {len(rows[0])}"] if len(rows[0]) != len(rows[1]) else []
        )
    evaluations = [_timeless(_json(folder / "evaluation.json")) for folder in (whole, run)]
    found += ["evaluation.json"] if evaluations[0] != evaluations[1] else []
    found += [f"left behind: {p.name}" for p in run.rglob(".*")]
    return found


def _hashes(folder: Path) -> dict[str, str]:
    """Every file but those that hold times or the run's name."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("state.json", "manifest.json")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _rows(path: Path) -> list[Any]:
    return [_timeless(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _timeless(value: Any) -> Any:
    """Without what clocks and gauges say, and without the name of the folder."""
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if not name.startswith(TIMED)}
        return {
            name: _timeless(item) for name, item in kept.items() if name not in ("folder", "model", "resume")
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def main_of_benchmark() -> int:
    """Run it all and write the figures; 1 where anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ppo", type=int, default=50, help="how often a PPO run is killed")
    parser.add_argument("--sft", type=int, default=20, help="how often a fine-tuning is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/kill.json"))
    given = parser.parse_args()
    output = given.output.resolve()
    os.environ.update(ENVIRONMENT)
    import proxlm.jobs.ppo
    import proxlm.jobs.sft  # noqa: F401 (so that no fork has to)

    torch.set_num_threads(1)
    results: dict[str, Any] = {"seed": given.seed}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(folder))
        for job, kills in (("ppo", given.ppo), ("sft", given.sft)):
            results[job] = asdict(torture(job, kills, random.Random(f"{given.seed} {job}")))
        os.chdir("/")
    output.write_text(json.dumps(results, indent=1) + "\n")
    differing = [line for job in JOBS for line in results[job]["different"]]
    print("\n".join(differing) or "no differences")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main_of_benchmark())
