"""The section [optim]: an optimiser and its learning rate over the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting

Schedule = Literal[
    "constant", "linear", "cosine", "cosine-restarts", "one-cycle", "warmup-stable-decay", "polynomial",
    "exponential", "inverse-time", "staged",
]  # fmt: skip


@dataclass(frozen=True)
class OptimiserSettings:
    """The optimiser and its learning-rate schedule."""

    name: Literal[
        "adamw", "adam", "nadam", "radam", "adamax", "adagrad", "sgd", "rmsprop", "adafactor", "muon", "lbfgs"
    ] = setting(
        "adamw",
        "torch's optimiser of that name; muon: for hidden matrices, with adamw for all else; lbfgs: for supervised"
        " training, one step per batch without a line search",
    )
    lr: float = setting(3e-6, "highest learning rate", gt=0)
    schedule: Schedule = setting("constant", "how the learning rate falls after warm-up, per optimiser step")
    warmup: int = setting(0, "optimiser steps over which the learning rate rises linearly from 0", ge=0)
    final: float = setting(
        0.0,
        "learning rate at the end (cosine-restarts: of each cycle), as a share of lr; not of constant,"
        " inverse-time and staged",
        ge=0,
        le=1,
    )
    cycles: int = setting(4, "cosine-restarts: number of cycles, all of the same length", ge=1)
    rise: float = setting(
        0.3, "one-cycle: share of the steps in which the learning rate rises, from lr / 25", gt=0, lt=1
    )
    decay: float = setting(
        0.2,
        "warmup-stable-decay: share of the steps, the last ones, in which the learning rate falls",
        gt=0,
        le=1,
    )
    power: float = setting(2.0, "polynomial: its exponent; 1 is linear", gt=0)
    half_life: float = setting(100.0, "inverse-time: optimiser steps after which lr is halved", gt=0)
    stages: dict[str, float] = setting(
        factory=dict, help='staged: factor of lr from each optimiser step on, e.g. {"100" = 0.5, "200" = 0.1}'
    )
    beta1: float = setting(0.9, "β1 of adamw, adam, nadam, radam and adamax", ge=0, lt=1)
    beta2: float = setting(0.999, "β2 of those; rmsprop's smoothing constant α", ge=0, lt=1)
    eps: float = setting(1e-5, "ε of those, of adagrad and of rmsprop", gt=0)
    momentum: float = setting(0.9, "of sgd, rmsprop and muon", ge=0, lt=1)
    weight_decay: float = setting(
        0.0,
        "weight decay of weight matrices; decoupled, but for sgd, adam, adamax, adagrad and rmsprop, where it is"
        " an L2 penalty",
        ge=0,
    )
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm; 0: no clipping", ge=0)
    layer_decay: float = setting(
        1.0,
        "each block learns at this multiple of the rate of the one above it, and so do the embeddings below them; the"
        " head learns at lr, the top block at this times lr; 1: all alike",
        gt=0,
        le=1,
    )
    rates: dict[str, float] = setting(
        factory=dict,
        help='multiples of the rate by patterns of the weights\' names, such as {"*embed*" = 0.1}; those that fit'
        " the same weight are multiplied",
    )


def _falling(lr: float) -> OptimiserSettings:
    return OptimiserSettings(lr=lr, schedule="linear", final=0.1)


@dataclass(frozen=True)
class OptimisersSettings:
    """The optimisers of the policy and of the critic."""

    policy: OptimiserSettings = setting(factory=lambda: _falling(3e-6))
    critic: OptimiserSettings = setting(factory=lambda: _falling(1e-5))
