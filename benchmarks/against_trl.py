"""PPO steps of proxlm and of TRL 1.12.0 on the same work, one after the other, in one session: a table of ratios.

    python -m venv TRL; TRL/bin/pip install torch==2.13.0 trl==1.12.0 transformers datasets accelerate
    python benchmarks/against_trl.py TRL/bin/python [--workloads fixed vocab ragged] [--rounds 2] [--steps 4]

Every setting of proxlm and TRL runs once in each round, in a process of its own; the first step of each is warm-up.
Same models (random Llamas, read from the same folder), same prompts, one optimiser step per epoch for both. Needs a
machine with nothing else to do; the raw seconds are kept, so their spread can be seen. Writes
benchmarks/results/against_trl.json and .md. Linux. On a GPU: --device cuda --workloads gpu-0.5b gpu-1.5b, TRL then
in bf16, too (not tried yet).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from step_models import Work, make_models

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORKLOADS = {
    "fixed": Work(),
    "vocab": Work(vocabulary=32_000),
    "ragged": Work(ragged=True),
    # For a GPU: the shapes of Qwen2.5 0.5B and 1.5B (their heads have 128 numbers in the second; here 64).
    "gpu-0.5b": Work(896, 24, 151_936, 256, 512, 256, intermediate=4864, groups=2),
    "gpu-1.5b": Work(1536, 28, 151_936, 256, 512, 256, intermediate=8960, groups=4),
}
# Setting → arguments of step_proxlm.py.
SETTINGS: dict[str, list[str]] = {
    "fp32, separate critic": [],
    "fp32, shared critic": ["--critic", "shared"],
    "bf16, separate critic": ["--bf16"],
    "bf16, shared critic": ["--bf16", "--critic", "shared"],
}


def one_run(python: str, script: str, folder: Path, work: Work, arguments: list[str]) -> dict[str, Any]:
    """The JSON line of a script's process. Raises RuntimeError with the end of its errors."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE}", "TOKENIZERS_PARALLELISM": "false"}
    asked = json.dumps({key: getattr(work, key) for key in work.__dataclass_fields__})
    command = [python, str(HERE / script), str(folder), asked, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def needed_flops(work: Work, shared: bool) -> float:
    """Floating-point operations of one update that cannot be spared: matrix products, 2 forward and 4 backward.

    Layers see every token, the head of the policy the response's tokens alone; attention's own are left out.
    """
    attention = 2 * work.hidden**2 * (1 + work.groups / work.heads)
    layers = work.layers * (attention + 3 * work.hidden * work.intermediate)
    prompt, response = work.mean_lengths()
    networks = 1 if shared else 2
    head = work.hidden * work.vocabulary * response
    return 6.0 * work.epochs * work.batch * (networks * layers * (prompt + response) + head)


def medians(runs: list[dict[str, Any]], warmup: int = 1) -> dict[str, float]:
    """Median seconds of each phase over all steps but the first of each run; the largest peak above the baseline."""
    found = {
        name: statistics.median(s for run in runs for s in run["seconds"][name][warmup:])
        for name in runs[0]["seconds"]
    }
    return {**found, "peak_mb": statistics.median(max(run["peak_mb"].values()) for run in runs)}


def table(found: dict[str, Any]) -> str:
    """Markdown: each workload's settings, seconds by phase, memory, TRL's over ours, and how much of the machine's
    matmul rate the update's needed products are."""
    columns = ["generate", "score", "update", "step", "peak MB", "time ratio", "memory ratio", "of the rate"]
    lines = ["| " + " | ".join(["workload", "library, setting", *columns]) + " |", "| --- " * 10 + "|"]
    for workload, rows in found["workloads"].items():
        trl = rows["trl"]
        for name, row in rows.items():
            cells = [workload, "TRL 1.12.0, fp32" if name == "trl" else f"proxlm, {name}"]
            cells += [f"{row[k]:.2f} s" for k in ("generate", "score", "update", "step")]
            cells.append(f"{row['peak_mb']:.0f}")
            cells += [f"{trl[k] / row[k]:.2f}" for k in ("step", "peak_mb")]
            cells.append(f"{row['share']:.0%}" if "share" in row else "–")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trl_python")
    parser.add_argument(
        "--workloads", nargs="+", default=["fixed", "vocab", "ragged"], choices=list(WORKLOADS)
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    import torch
    from step_measure import matmul_rate

    torch.set_num_threads(given.threads)
    common = ["--steps", str(given.steps), "--threads", str(given.threads), "--device", given.device]
    rates = {name: matmul_rate(name, given.device) for name in ("float32", "bfloat16")}
    # Without instructions for it, bf16 saves no time (models/widened.py): there is nothing to compare.
    settings = {k: v for k, v in SETTINGS.items() if "bf16" not in k or rates["bfloat16"] > rates["float32"]}
    found: dict[str, Any] = {"matmul_flops": rates, "threads": given.threads, "workloads": {}, "raw": {}}
    for workload in given.workloads:
        work, raw = WORKLOADS[workload], dict[str, list[dict[str, Any]]]()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_models(work, folder)
            for _ in range(given.rounds):
                for setting, arguments in settings.items():
                    run = one_run(sys.executable, "step_proxlm.py", folder, work, [*arguments, *common])
                    raw.setdefault(setting, []).append(run)
                raw.setdefault("trl", []).append(
                    one_run(given.trl_python, "step_trl.py", folder, work, common)
                )
        rows = {setting: medians(runs) for setting, runs in raw.items()}
        for setting in settings:
            rate = rates["bfloat16" if "bf16" in setting else "float32"]
            flops = needed_flops(work, "shared" in setting)
            rows[setting]["share"] = flops / rows[setting]["update"] / rate
        found["workloads"][workload], found["raw"][workload] = rows, raw
        print(table({"workloads": {workload: rows}}), flush=True)
        (RESULTS / "against_trl.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "against_trl.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
