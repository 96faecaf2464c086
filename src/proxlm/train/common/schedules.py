"""Learning rates as a pure function of the step."""

from __future__ import annotations

import math

from proxlm.config import OptimiserSettings, RolloutSettings

# The most of a run's optimiser steps that warm-up takes.
MOST_WARMUP = 0.5


def warmup_steps(config: OptimiserSettings, total: int) -> int:
    """The steps of warm-up in a run of `total` optimiser steps: config.warmup, but at most half of them.

    A run that never left its warm-up would learn at a fraction of the rate that was asked for.
    """
    return min(config.warmup, int(MOST_WARMUP * total))


def warmup_note(key: str, config: OptimiserSettings, total: int) -> str:
    """What to say where warm-up is shortened; "" where it is not. key: the section of these settings."""
    steps = warmup_steps(config, total)
    if steps == config.warmup:
        return ""
    return (
        f"{key}.warmup = {config.warmup} is more than half of the {total} optimiser steps; the learning rate rises"
        f" over {steps}"
    )


def learning_rate(config: OptimiserSettings, step: int, total: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `total`.

    Warm-up: lr · (step + 1) / (warmup + 1) for the first `warmup` steps (see `warmup_steps`). Then, with x the
    share of the remaining steps that is done, in [0, 1], and n the steps since warm-up:
    constant: lr; linear: lr · (1 − (1 − final) x); cosine: lr · (final + (1 − final)(1 + cos πx) / 2);
    exponential: lr · final^x; inverse-time: lr / (1 + n / half_life); staged: lr · factor of the newest stage
    whose step is reached (steps counted from 0, warm-up included).
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    n = step - warmup
    x = min(1.0, n / max(1, total - warmup - 1))
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * (1 - (1 - config.final) * x)
    if config.schedule == "cosine":
        return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * x)) / 2)
    if config.schedule == "exponential":
        return config.lr * config.final**x
    if config.schedule == "inverse-time":
        return config.lr / (1 + n / config.half_life)
    reached = [start for start in config.stages if int(start) <= step]
    return config.lr * (config.stages[max(reached, key=int)] if reached else 1.0)


def temperature_at(config: RolloutSettings, step: int, steps: int) -> float:
    """The sampling temperature of PPO step `step` (from 0) of `steps`: linear to final_temperature, if set."""
    if config.final_temperature == 0 or steps < 2:
        return config.temperature
    return config.temperature + (config.final_temperature - config.temperature) * step / (steps - 1)
