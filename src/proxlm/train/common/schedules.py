"""Learning rates as a pure function of the step."""

from __future__ import annotations

import math

from proxlm.config import OptimiserSettings, RolloutSettings

# A larger share of a run's optimiser steps in warm-up is said.
MOST_WARMUP = 0.5


def warmup_note(key: str, config: OptimiserSettings, total: int) -> str:
    """What to say of a run that learns at a fraction of its rate for long; "" of others.

    Warm-up itself does not follow the number of steps: a run that is stopped and goes on, with more steps than were
    planned at first, learns as one that nobody stopped.

    Args:
        key: The section of these settings.
        config: The settings.
        total: The run's optimiser steps.
    """
    if config.warmup <= MOST_WARMUP * total:
        return ""
    highest = config.lr * min(1.0, total / (config.warmup + 1))
    return (
        f"{key}.warmup = {config.warmup} is more than half of the {total} optimiser steps: the learning rate reaches"
        f" {highest:.2g} of {config.lr:.2g}; lower it for so short a run"
    )


def learning_rate(config: OptimiserSettings, step: int, total: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `total`.

    Warm-up: lr · (step + 1) / (warmup + 1) for the first `warmup` steps. Then, with x the
    share of the remaining steps that is done, in [0, 1], and n the steps since warm-up:
    constant: lr; linear: lr · (1 − (1 − final) x); cosine: lr · (final + (1 − final)(1 + cos πx) / 2);
    exponential: lr · final^x; inverse-time: lr / (1 + n / half_life); staged: lr · factor of the newest stage
    whose step is reached (steps counted from 0, warm-up included).
    """
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    n = step - config.warmup
    x = min(1.0, n / max(1, total - config.warmup - 1))
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
