"""The settings of how responses and conversations are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config.setting import setting

RolloutWeights = Literal["policy", "bfloat16", "int8"]


@dataclass(frozen=True)
class RolloutSettings:
    """How responses are sampled."""

    max_new_tokens: int = setting(64, "longest response in tokens", ge=1)
    temperature: float = setting(1.0, "divides the logits; 0: greedy (not for training)", ge=0)
    final_temperature: float = setting(
        0.0, "PPO: the temperature moves linearly to this one over the run; 0: it stays", ge=0
    )
    top_k: int = setting(0, "keep the k likeliest tokens; 0: all (in PPO: biased, see docs)", ge=0)
    top_p: float = setting(1.0, "keep the smallest set of tokens with this much probability", gt=0, le=1)
    min_p: float = setting(0.0, "drop tokens below this share of the likeliest one's probability", ge=0, lt=1)
    stop: list[str] = setting(factory=list, help="texts that end a response, besides the end-of-text token")
    batch_size: int = setting(
        64, "sequences generated at once; does not change what is sampled", ge=1, on_resume="free"
    )
    weights: RolloutWeights = setting(
        "policy",
        "weights to write with: the policy's, or rounded to bfloat16 or int8 (then see ppo.correction)",
    )


@dataclass(frozen=True)
class EnvironmentSettings:
    """The other side of a conversation; without one, a response is a single text."""

    use: str = setting("", "a built-in environment's name, or path/to/file.py:Class; empty: none")
    args: dict[str, Any] = setting(factory=dict, help="keyword arguments of the environment")
    tasks: int = setting(256, "without data.prompts: how many different tasks there are to train on", ge=1)
    max_turns: int = setting(16, "most replies of the policy in one conversation", ge=1)
    max_tokens: int = setting(512, "longest conversation in tokens, the environment's words included", ge=1)
    timeout: float = setting(30.0, "seconds that one call of reset or step may take", gt=0, on_resume="free")
    time_limit: float = setting(0.0, "seconds after which a conversation gets no further turn; 0: none", ge=0)
