"""The settings of how responses and conversations are generated."""

from __future__ import annotations

import re
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
    top_k: int = setting(0, "sample from the k most likely tokens; 0: all", ge=0)
    top_p: float = setting(
        1.0, "sample from the smallest set of tokens with at least this total probability", gt=0, le=1
    )
    min_p: float = setting(
        0.0, "exclude tokens less probable than this share of the most likely token's probability", ge=0, lt=1
    )
    repetition_penalty: float = setting(
        1.0,
        "not in PPO: divide positive logits, multiply negative ones, of tokens in the prompt or the response; 1: off",
        gt=0,
    )
    presence_penalty: float = setting(
        0.0, "not in PPO: subtract this from the logits of tokens that are in the response"
    )
    frequency_penalty: float = setting(
        0.0, "not in PPO: subtract this from a token's logit for each time that it is in the response"
    )
    bad_words: list[str] = setting(
        factory=list, help="not in PPO: texts whose usual tokens are never written one behind another"
    )
    logit_bias: dict[str, float] = setting(
        factory=dict,
        help='not in PPO: add this to the logits of a token, {"198" = -100}; of the last of several behind the'
        ' others, {"13,198" = 2}; or of a text, {"moon" = 3}',
    )
    keep_sampling_mask: bool = setting(
        True,
        "PPO: with top_k, top_p or min_p, keep the set that each token was sampled from; the policy is renormalised"
        " over it in the update, which makes the ratio that of the policy that sampled",
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
        "weights to generate with: the policy's, or rounded to bfloat16 or int8 (see ppo.engine_correction)",
    )
    cuda_graphs: bool = setting(
        False,
        "on a CUDA GPU: record a step of each number of rows once, and repeat it without Python's delay",
    )

    @property
    def filtered(self) -> bool:
        """Whether some tokens that the policy could choose are never sampled."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def unlike_policy(self) -> bool:
        """Whether tokens are sampled from another distribution than the one that the update takes the ratio to."""
        return self.filtered and not self.keep_sampling_mask


_MOST_DIGITS = 18
_IDS = re.compile(r" *[0-9]+ *(, *[0-9]+ *)*")


def bias_ids(key: str) -> tuple[int, ...] | None:
    """The token ids that a key of `logit_bias` lists; None: it is a text."""
    return tuple(int(number) for number in key.split(",")) if _IDS.fullmatch(key) else None


def has_too_long_ids(key: str) -> bool:
    """Whether a key of `logit_bias` lists numbers that are no ids of any model; Python reads no number so long."""
    return _IDS.fullmatch(key) is not None and any(
        len(number.strip()) > _MOST_DIGITS for number in key.split(",")
    )


def changed_logits(rollout: RolloutSettings) -> list[str]:
    """The settings by which a response is no sample of the model: they change its logits before it is sampled."""
    used = {
        "repetition_penalty": rollout.repetition_penalty != 1,
        "presence_penalty": rollout.presence_penalty != 0,
        "frequency_penalty": rollout.frequency_penalty != 0,
        "bad_words": bool(rollout.bad_words),
        "logit_bias": bool(rollout.logit_bias),
    }
    return [f"rollout.{name}" for name, is_so in used.items() if is_so]


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
        "",
        "a built-in name, textarena:GAME, gymnasium:ID, openenv:URL, or path/to/file.py:Class; empty: none",
        path="function",
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
