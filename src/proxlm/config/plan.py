"""The settings of planning a run's memory and time before there is a machine for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.setting import setting


@dataclass(frozen=True)
class PlanConfig(RecipeCommand):
    """Plan a recipe on GPUs, from its settings alone: memory by part, seconds by phase, how to divide the GPUs."""

    gpus: int = setting(1, "number of GPUs", ge=1, le=4096)
    gpu_memory: float = setting(80.0, "memory of each, in GiB", gt=0)
    gpu: Literal["h200", "h100", "a100", "a800", "l40s", "a10g", "rtx4090"] = setting(
        "h100", "their kind, for published rates, of which products reach 40% and memory 70%"
    )
    tflops: float = setting(
        0.0, "instead: 10¹² operations that products really reach in a second; 0: those of gpu", ge=0
    )
    bandwidth: float = setting(
        0.0, "instead: 10⁹ bytes that memory really gives in a second; 0: those of gpu", ge=0
    )
    overhead: float = setting(8.0, "microseconds that each call of an operator takes beside its work", ge=0)
    prompt_tokens: int = setting(
        0, "tokens of a prompt; 0: data.max_prompt_tokens, or 256 if that is not set", ge=0
    )
    response_tokens: float = setting(
        0.0, "tokens of a response on average; 0: rollout.max_new_tokens, which none can exceed", ge=0
    )
    output: str = setting("", "JSON file for the plan; empty: only print", path="output")

    positional: ClassVar[str] = "recipe"
