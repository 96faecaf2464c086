"""The settings of how responses and conversations are generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config.setting import setting

RolloutWeights = Literal["policy", "bfloat16", "int8"]


@dataclass(frozen=True)
class RolloutSettings:
    """How responses are sampled."""

    max_new_tokens: int = setting(64, "most tokens of a response", ge=1)
    temperature: float = setting(
        1.0, "sampling temperature, which divides the logits; 0: greedy (not in PPO)", ge=0
    )
    final_temperature: float = setting(
        0.0, "PPO: change the temperature linearly to this over the run; 0: keep it constant", ge=0
    )
    top_k: int = setting(
        0, "sample from the k most likely tokens; 0: all (biased in PPO, see docs/theory.md)", ge=0
    )
    top_p: float = setting(
        1.0, "sample from the smallest set of tokens with at least this total probability", gt=0, le=1
    )
    min_p: float = setting(
        0.0, "exclude tokens less probable than this share of the most likely token's probability", ge=0, lt=1
    )
    stop: list[str] = setting(
        factory=list,
        help="texts that end a response, in addition to EOS and the chat template's end of a turn; a special token's"
        " text is that token",
    )
    stop_token_ids: list[int] = setting(
        factory=list, help="token ids that end a response, as stop does", ge=0
    )
    skip_special_tokens: bool = setting(
        False,
        "leave all special tokens out of responses' texts; false: only BOS, EOS, padding and ends of turns",
    )
    batch_size: int = setting(
        64, "sequences generated at the same time; does not change what is sampled", ge=1, on_resume="free"
    )
    weights: RolloutWeights = setting(
        "policy",
        "weights to generate with: the policy's, or rounded to bfloat16 or int8 (see ppo.correction)",
    )


GREEDY = "also evaluate greedy responses, the likeliest token each time, beside sampled ones"


@dataclass(frozen=True)
class EvaluationSettings:
    """The evaluation on held-out prompts, before and after the run and during it."""

    every: int = setting(
        0, "also evaluate each time this many steps are done; 0: not during the run", ge=0, on_resume="free"
    )
    greedy: bool = setting(True, GREEDY, on_resume="free")


@dataclass(frozen=True)
class EnvironmentSettings:
    """The environment that the policy converses with; without one, a response is a single text."""

    use: str = setting(
        "", "a built-in environment's name, or path/to/file.py:Class; empty: none", path="function"
    )
    args: dict[str, Any] = setting(factory=dict, help="keyword arguments of the environment", path="model")
    tasks: int = setting(256, "without data.prompts: number of different tasks to train on", ge=1)
    max_turns: int = setting(16, "most turns of the policy in one conversation", ge=1)
    max_tokens: int = setting(512, "most tokens of a conversation, the environment's messages included", ge=1)
    timeout: float = setting(
        30.0, "time limit of one call of reset or step, in seconds", gt=0, on_resume="free"
    )
    lockstep: bool = setting(
        False,
        "wait for every answer before the next token, however slow: equal runs are then equal to the last bit",
        on_resume="free",
    )
    time_limit: float = setting(
        0.0, "seconds after which a conversation gets no further turn; 0: no limit", ge=0
    )
