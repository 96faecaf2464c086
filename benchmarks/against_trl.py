"""PPO steps of proxlm and of TRL 1.12.0 on the same work, one after the other, in one session: a table of ratios.

    python -m venv TRL; TRL/bin/pip install torch==2.13.0 trl==1.12.0 transformers datasets accelerate peft==0.21.2
    python benchmarks/against_trl.py TRL/bin/python [--workloads fixed vocab ragged lora lora-both] [--rounds 2]

lora: adapters of rank 8 on the policy, all of the value model learns, as TRL's peft_config has it. lora-both: the
value model is frozen, too, with adapters of its own; TRL is handed it that way. smollm2, smollm2-both: the same two
for TRL on the shape of SmolLM2-135M; proxlm with adapters on all blocks, and on the top 6 alone (smollm2-16: 16
responses in place of 64, for a busy machine, with --cpu: processor's seconds, not the clock's). Every setting of
proxlm and TRL runs once in each round, in a process of its own; the first step of each is warm-up. Same models
(random Llamas, read from the same folder), same prompts, one optimiser step per epoch for both. Needs a machine with
nothing else to do; the raw seconds are kept, so their spread can be seen. Writes benchmarks/results/against_trl.json
and .md; with --add the workloads that are there already and are not measured now stay. Linux. On a GPU:
--device cuda --workloads gpu-0.5b gpu-1.5b, TRL then in bf16, too (not tried yet).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from step_models import Work, make_models

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SMOLLM2 = Work(576, 30, 49_152, 48, 24, 64, epochs=1, intermediate=1536, groups=3)
WORKLOADS = {
    "fixed": Work(),
    "vocab": Work(vocabulary=32_000),
    "ragged": Work(ragged=True),
    "lora": Work(),
    "lora-both": Work(),
    # The shape of SmolLM2-135M (with a head of its own), and a step as long as one of `proxlm demo --chat`.
    "smollm2": SMOLLM2,
    "smollm2-both": SMOLLM2,
    "smollm2-16": replace(SMOLLM2, batch=16),
    # For a GPU: the shapes of Qwen2.5 0.5B and 1.5B (their heads have 128 numbers in the second; here 64).
    "gpu-0.5b": Work(896, 24, 151_936, 256, 512, 256, intermediate=4864, groups=2),
    "gpu-0.5b-short": Work(896, 24, 151_936, 256, 512, 64, epochs=1, intermediate=4864, groups=2),
    "gpu-1.5b": Work(1536, 28, 151_936, 256, 512, 256, intermediate=8960, groups=4),
}
RANK = 8


@dataclass(frozen=True)
class Setting:
    """How proxlm runs. rank: of LoRA adapters, 0 for none; full_critic: all of a separate critic learns even so;
    tokens: at most in a micro-batch; top: how many blocks learn, 0 for all; graphs: CUDA graphs."""

    critic: str = "separate"
    bf16: bool = False
    rank: int = 0
    full_critic: bool = False
    tokens: int = 1280  # TRL's 16 rows of the fixed work
    top: int = 0
    graphs: bool = False

    def arguments(self) -> list[str]:
        """Of step_proxlm.py."""
        found = ["--critic", self.critic, "--lora", str(self.rank), "--train-layers", str(self.top)]
        found += ["--micro-batch-tokens", str(self.tokens)]
        flags = {"--bf16": self.bf16, "--critic-from-reward": self.full_critic, "--cuda-graphs": self.graphs}
        return [*found, *(flag for flag, is_set in flags.items() if is_set)]


def full(tokens: int = Setting.tokens, in_bf16: int = 1024) -> dict[str, Setting]:
    """All weights learn; both precisions with their tokens in a micro-batch, both critics."""
    return {
        "fp32, separate critic": Setting(tokens=tokens),
        "fp32, shared critic": Setting("shared", tokens=tokens),
        "bf16, separate critic": Setting(bf16=True, tokens=in_bf16),
        "bf16, shared critic": Setting("shared", bf16=True, tokens=in_bf16),
    }


TOP_BLOCKS = {
    "fp32, LoRA, top 6 blocks, adapter critic": Setting("adapter", rank=RANK, top=6),
    "fp32, LoRA, adapter critic": Setting("adapter", rank=RANK),
}
# Workload → proxlm's settings, and TRL's arguments; full() and none where a workload is not named.
SETTINGS = {
    "vocab": full(in_bf16=768),
    "ragged": full(tokens=1700),  # of different lengths; about TRL's 16 rows
    "lora": {"fp32, LoRA, separate critic, all of it learns": Setting(rank=RANK, full_critic=True)},
    "lora-both": {
        "fp32, LoRA, separate critic": Setting(rank=RANK),
        "fp32, LoRA, adapter critic": Setting("adapter", rank=RANK),
    },
    "smollm2": TOP_BLOCKS,
    "smollm2-16": TOP_BLOCKS,
    "smollm2-both": {"fp32, LoRA, separate critic": Setting(rank=RANK)},
}
TRL_ARGUMENTS = {
    name: ["--lora", str(RANK), *["--value-adapters"] * name.endswith("-both")]
    for name in ("lora", "lora-both", "smollm2", "smollm2-both", "smollm2-16")
}


def one_run(python: str, script: str, folder: Path, options: Any, arguments: list[str]) -> dict[str, Any]:
    """The JSON line of a script's process, which gets the folder and a dataclass's fields.

    Raises RuntimeError with the end of its errors.
    """
    path = os.pathsep.join((str(HERE), str(HERE.parent / "src")))
    environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    asked = json.dumps(asdict(options))
    command = [python, str(HERE / script), str(folder), asked, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def needed_flops(work: Work, setting: Setting) -> float:
    """Floating-point operations of one update that cannot be spared: matrix products, 2 forward and 4 backward.

    Layers see every token, the head of the policy the response's tokens alone; attention's own are left out. A frozen
    matrix has no gradient of its own: 2 backward, for what stands before it. Adapters learn, with 4. A critic that is
    not shared goes through its first pass before the update, when its values are read. Blocks below the first that
    learns have made their pass before the update.
    """
    blocks = setting.top or work.layers
    key_value = work.hidden * work.groups / work.heads
    shapes = [(work.hidden, work.hidden)] * 2 + [(work.hidden, key_value)] * 2
    shapes += [(work.hidden, work.intermediate)] * 3
    layers = blocks * sum(inputs * outputs for inputs, outputs in shapes)
    beside = blocks * setting.rank * sum(inputs + outputs for inputs, outputs in shapes)
    full, adapted = 6 * layers, 4 * layers + 6 * beside
    policy = adapted if setting.rank else full
    critic = full if setting.full_critic or not setting.rank else adapted
    prompt, response = work.mean_lengths()
    of_critic = 0 if setting.critic == "shared" else (work.epochs - 1) * critic
    head = (4 if setting.rank else 6) * work.hidden * work.vocabulary * response
    of_policy = work.epochs * (policy * (prompt + response) + head)
    return float(work.batch * (of_policy + of_critic * (prompt + response)))


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each phase over all steps but the first of each run, if it has others; the largest peak above
    the baseline.
    """

    def measured(seconds: list[float]) -> list[float]:
        return seconds[1:] or seconds

    found = {
        name: statistics.median(s for run in runs for s in measured(run["seconds"][name]))
        for name in runs[0]["seconds"]
    }
    found["peak_mb"] = statistics.median(max(run["peak_mb"].values()) for run in runs)
    # The models themselves are not in the peak, and where bases are shared that is what is saved.
    return {**found, "loaded_mb": statistics.median(run["baseline_mb"] for run in runs)}


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


def measured(
    workload: str, trl_python: str, settings: dict[str, Setting], rounds: int, common: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each of proxlm's settings and of TRL, in turn."""
    work, raw = WORKLOADS[workload], dict[str, list[dict[str, Any]]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(work, folder)
        for _ in range(rounds):
            for title, setting in settings.items():
                arguments = [*setting.arguments(), *common]
                run = one_run(sys.executable, "step_proxlm.py", folder, work, arguments)
                raw.setdefault(title, []).append(run)
            arguments = [*TRL_ARGUMENTS.get(workload, []), *common]
            raw.setdefault("trl", []).append(one_run(trl_python, "step_trl.py", folder, work, arguments))
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trl_python")
    parser.add_argument(
        "--workloads", nargs="+", default=["fixed", "vocab", "ragged"], choices=list(WORKLOADS)
    )
    parser.add_argument("--add", action="store_true", help="keep the other workloads of the results")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, not of the clock")
    options = parser.parse_args()
    import torch
    from step_measure import matmul_rate

    torch.set_num_threads(options.threads)
    common = ["--steps", str(options.steps), "--threads", str(options.threads), "--device", options.device]
    common += ["--cpu"] * options.cpu
    file = RESULTS / "against_trl.json"
    found: dict[str, Any] = {"matmul_flops": {}, "threads": options.threads, "workloads": {}, "raw": {}}
    if options.add and file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    for workload in options.workloads:
        rates = {name: matmul_rate(name, options.device) for name in ("float32", "bfloat16")}
        settings = SETTINGS.get(workload, full())
        raw = measured(workload, options.trl_python, settings, options.rounds, common)
        rows = {title: medians(runs) for title, runs in raw.items()}
        for title, setting in settings.items() if not options.cpu else ():
            rate = rates["bfloat16" if setting.bf16 else "float32"]
            rows[title]["share"] = needed_flops(WORKLOADS[workload], setting) / rows[title]["update"] / rate
        found["matmul_flops"][workload] = rates
        found["workloads"][workload], found["raw"][workload] = rows, raw
        print(table({"workloads": {workload: rows}}), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "against_trl.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
