"""The few settings of a run that the rules need. What is not known has a value that keeps rules silent or general."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from proxlm.config import PPOConfig

# Without the settings, a step is taken to have this many responses.
RESPONSES_UNKNOWN = 16

T = TypeVar("T", int, float, str, bool)


@dataclass(frozen=True)
class Facts:
    """A run's settings as the rules see them; 0, "" or −1 where something is not known.

    responses: per step; updates: optimiser steps per PPO step; filtered: sampling with top-k, top-p or min-p;
    corrected: the loss is weighted for the policy that sampled; may_not_end: responses of a fixed length are fine,
    as in continuing a text; penalised: score − β · KL is what the run maximises, and can be compared between steps
    (not where scores are scaled by all scores so far, nor where the KL is in the loss, beside scaled advantages);
    control: a run of `proxlm control`, whose policy may be sure of itself.
    """

    responses: int = 0
    updates: int = 0
    max_new_tokens: int = 0
    lr: float = -1.0
    loss: str = ""
    kl_coef: float = -1.0
    adaptive: bool = False
    kl_target: float = 0.0
    reference_moves: bool = False
    entropy_coef: float = -1.0
    filtered: bool = False
    corrected: bool = False
    precision: str = ""
    may_not_end: bool = False
    penalised: bool = True
    control: bool = False


def facts_of(settings: PPOConfig | Mapping[str, Any]) -> Facts:
    """Facts of a PPO job, or of the tables of a run's config.toml.

    A setting that is missing or of another type, as in the folder of another version's run, counts as not known.
    """
    tables = asdict(settings) if isinstance(settings, PPOConfig) else settings
    batch, samples = _get(tables, "ppo.batch_size", 0), _get(tables, "ppo.samples_per_prompt", 1)
    missing_eos = _get(tables, "shaping.missing_eos", "")
    overlong = _get(tables, "shaping.overlong_buffer", 0)
    return Facts(
        responses=batch * samples,
        updates=_get(tables, "ppo.epochs", 0) * _get(tables, "ppo.minibatches", 0),
        max_new_tokens=_get(tables, "rollout.max_new_tokens", 0),
        lr=_get(tables, "optim.policy.lr", -1.0),
        loss=_get(tables, "ppo.loss", ""),
        kl_coef=_get(tables, "ppo.kl_coef", -1.0),
        adaptive=_get(tables, "ppo.kl_controller", "") == "adaptive",
        kl_target=_get(tables, "ppo.kl_target", 0.0),
        reference_moves=_get(tables, "ppo.reference_decay", 1.0) < 1,
        entropy_coef=_get(tables, "ppo.entropy_coef", -1.0),
        filtered=(
            _get(tables, "rollout.top_k", 0) > 0
            or _get(tables, "rollout.top_p", 1.0) < 1
            or _get(tables, "rollout.min_p", 0.0) > 0
        ),
        corrected=_get(tables, "ppo.correction.mode", "none") != "none",
        precision=_get(tables, "model.precision", ""),
        # A text that is continued need not end; an answer in a chat, or one that pays for not ending, should.
        may_not_end=missing_eos == "ignore" and overlong == 0 and not _get(tables, "data.chat", True),
        penalised=(
            _get(tables, "shaping.scale", "none") != "running"
            and _get(tables, "ppo.kl_in", "reward") == "reward"
        ),
        control=_get(tables, "environment.id", "") != "",
    )


def _get(tables: Mapping[str, Any], key: str, unknown: T) -> T:
    """The setting with a dotted name, or `unknown` where there is none of that type."""
    value: Any = tables
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    # TOML written by hand may say 1 for 1.0.
    whole = isinstance(unknown, float) and type(value) is int
    return value if whole or type(value) is type(unknown) else unknown
