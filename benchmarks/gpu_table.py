"""Steps of PPO in float32 and bf16 on one device: seconds, tokens a second, peak memory, and the plan's beside them.

    python benchmarks/gpu_table.py --device cuda        # gpu.sh calls it
    python benchmarks/gpu_table.py --device cpu --tiny

The shape is Qwen2.5-0.5B's (random weights), 64 responses of 512 tokens after 256, one epoch; --tiny: a small Llama.
Each row is a process of its own, the first of its steps is warm-up. The plan gets the rates that this device shows
first: of a product in either precision, of a copy, and of the call of a small layer. On a GPU the peak is what torch
has allocated; on a CPU, where memory is not the plan's (Python and torch have their own), it is left out. The reward
is a frozen model of the policy's size in float32, whose weights are added to the plan's memory. The plan knows
nothing of CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from against_trl import RESULTS, WORKLOADS, Setting, medians, one_run
from step_measure import matmul_rate
from step_models import Work as Sizes
from step_models import make_models
from step_proxlm import job_of

from proxlm.planning.cost import phases_of
from proxlm.planning.machine import Machine
from proxlm.planning.memory import Share, memory_of
from proxlm.planning.work import work_of

GPU_WORK = WORKLOADS["gpu-0.5b-short"]
TINY = Sizes(64, 2, 512, prompt=8, response=12, batch=8, epochs=1)
SETTINGS = {
    "fp32, separate critic": Setting(tokens=16_384),
    "fp32, shared critic": Setting("shared", tokens=16_384),
    "bf16, separate critic": Setting(bf16=True, tokens=16_384),
    "bf16, shared critic": Setting("shared", bf16=True, tokens=16_384),
    "bf16, shared critic, CUDA graphs": Setting("shared", bf16=True, tokens=16_384, graphs=True),
}


def fastest(work: Any, device: str, seconds: float = 0.5) -> float:
    """The least seconds of a call."""
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - began)
    return least


def machine_of(device: str) -> Machine:
    """The rates that this device shows."""
    large = torch.zeros(2**28 if device == "cuda" else 2**24, device=device)
    other, small = torch.empty_like(large), torch.zeros(1, 64, device=device)
    layer = torch.nn.Linear(64, 64).to(device)
    bandwidth = 2 * large.nbytes / fastest(lambda: other.copy_(large), device)

    def many() -> None:
        for _ in range(1000):
            layer(small)

    flops, low = (matmul_rate(name, device) for name in ("float32", "bfloat16"))
    return Machine(flops, low, bandwidth, call=fastest(many, device) / 1000)


def planned(sizes: Sizes, setting: Setting, folder: Path, machine: Machine, device: str) -> dict[str, float]:
    """Seconds by phase, and MB of the peak."""
    options = argparse.Namespace(
        critic=setting.critic, device=device, bf16=setting.bf16, lora=0, train_layers=0, steps=2,
        critic_from_reward=False, activation_checkpointing=False, micro_batch_tokens=setting.tokens,
        cuda_graphs=setting.graphs,
    )  # fmt: skip
    work = work_of(job_of(sizes, folder, options), sizes.prompt, float(sizes.response))
    share = Share(gpu=device == "cuda")
    found = {name: machine.seconds(cost, setting.bf16) for name, cost in phases_of(work, share).items()}
    reward = 4.0 * work.policy.trunk
    return {**found, "step": sum(found.values()), "peak_mb": (memory_of(work, share).peak + reward) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    sizes = TINY if given.tiny else GPU_WORK
    machine = machine_of(given.device)
    print(
        f"products {machine.flops / 1e12:.2f} TFLOP/s in float32, {machine.low_flops / 1e12:.2f} in bf16; memory"
        f" {machine.bandwidth / 1e9:.0f} GB/s; a call {machine.call * 1e6:.1f} µs\n"
    )
    columns = ["generate", "score", "update", "step", "tokens/s written", "peak MB"]
    titles = [title for name in columns for title in ([name] if "/s" in name else [name, "planned"])]
    print("| setting | " + " | ".join(titles) + " |\n" + "| --- " * (len(titles) + 1) + "|")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(sizes, folder)
        for title, setting in SETTINGS.items():
            arguments = [*setting.arguments(), "--steps", str(given.steps), "--device", given.device]
            arguments += ["--cpu"] * (given.device == "cpu")
            found = medians([one_run(sys.executable, "step_proxlm.py", folder, sizes, arguments)])
            plan = planned(sizes, setting, folder, machine, given.device)
            rows[title] = {"measured": found, "planned": plan}
            cells = []
            for column in ("generate", "score", "update", "step"):
                cells += [f"{found[column]:.2f} s", f"{plan[column]:.2f} s"]
            cells.append(f"{sizes.batch * sizes.response / found['generate']:.0f}")
            gpu = given.device == "cuda"
            cells += [f"{found['peak_mb']:.0f}" if gpu else "–", f"{plan['peak_mb']:.0f}"]
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    if not given.tiny:
        (RESULTS / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
