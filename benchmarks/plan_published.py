"""Runs that others have published, predicted from data sheets alone. `plan_estimates.py` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxlm.planning.cost import generate_cost, phases_of
from proxlm.planning.machine import GPUS, OF_BANDWIDTH, OF_FLOPS
from proxlm.planning.memory import Share
from proxlm.planning.shape import shape_of
from proxlm.planning.work import Work

LLAMA2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
QWEN_0_5B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A published run. servers: GPUs that only write; 0: all write and train; seconds: published."""

    name: str
    model: dict[str, Any]
    gpu: str
    trainers: int
    servers: int
    rows: int
    prompt: int
    response: float
    minibatches: int
    pass_tokens: int
    graphs: bool
    reward_model: bool
    seconds: float


# What is assumed where the source is silent is in docs/plan.md.
RUNS = [
    Published(
        "OpenRLHF, 7B, 16 A800", LLAMA2_7B, "a800", trainers=12, servers=4, rows=1024, prompt=1024, response=1024.0,
        minibatches=8, pass_tokens=16384, graphs=True, reward_model=True, seconds=471.11,
    ),
    Published(
        "verl, 0.5B, 1 GPU", QWEN_0_5B, "a100", trainers=1, servers=0, rows=256, prompt=512, response=256.0,
        minibatches=4, pass_tokens=3072, graphs=False, reward_model=False, seconds=67.7,
    ),
]  # fmt: skip


def predicted(run: Published) -> dict[str, float]:
    """Seconds by phase."""
    from transformers import AutoConfig

    shape = shape_of(AutoConfig.for_model(**run.model), run.name)
    work = Work(
        shape, shape, prompt=run.prompt, response=run.response, limit=int(run.response), responses=run.rows,
        prompts=run.rows,
        epochs=1, minibatches=run.minibatches, pass_tokens=run.pass_tokens, slots=256, bfloat16=True,
        checkpointing=True, decode=2.0,
    )  # fmt: skip
    machine = GPUS[run.gpu].reaching(OF_FLOPS, OF_BANDWIDTH)
    share = Share(run.trainers, gpu=True, samples=False)
    costs = phases_of(work, share)
    costs["generate"] = generate_cost(work, run.servers or run.trainers, graphs=run.graphs)
    found = {name: machine.seconds(cost, bfloat16=True) for name, cost in costs.items()}
    if run.reward_model:
        found["reward"] = found["score"] / 4  # one more pass of a model of the same size
    return found


def published_table() -> str:
    """Markdown: predicted beside published."""
    lines = [
        "| published run | seconds, predicted | published | error | by phase, predicted |",
        "| --- " * 5 + "|",
    ]
    for run in RUNS:
        phases = predicted(run)
        total = sum(phases.values())
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in phases.items())
        lines.append(
            f"| {run.name} | {total:.0f} | {run.seconds:.0f} | {total / run.seconds - 1:+.0%} | {parts} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(published_table())
