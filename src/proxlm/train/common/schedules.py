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
    polynomial: lr · (final + (1 − final)(1 − x)^power); exponential: lr · final^x;
    inverse-time: lr / (1 + n / half_life); cosine-restarts: the cosine once in each of `cycles` parts of equal
    length, which it begins at lr (Loshchilov and Hutter 2017); warmup-stable-decay: lr, and in the last share `decay`
    of all steps linear to lr · final (Hu et al. 2024); staged: lr · factor of the newest stage whose step is reached
    (steps counted from 0, warm-up included).

    one-cycle has no other warm-up: cosine from lr / 25 to lr in the first share `rise` of the steps, then to
    lr · final (Smith and Topin 2018).
    """
    if config.schedule == "one-cycle":
        return config.lr * _one_cycle(config, step, total)
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    n = step - config.warmup
    x = min(1.0, n / max(1, total - config.warmup - 1))
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * (1 - (1 - config.final) * x)
    if config.schedule == "cosine":
        return config.lr * _cosine(1.0, config.final, x)
    if config.schedule == "cosine-restarts":
        length = max(1, math.ceil((total - config.warmup) / config.cycles))
        return config.lr * _cosine(1.0, config.final, n % length / length)
    if config.schedule == "warmup-stable-decay":
        falling = max(1.0, config.decay * total)
        return config.lr * (1 - (1 - config.final) * min(1.0, max(0.0, 1 - (total - 1 - step) / falling)))
    if config.schedule == "polynomial":
        return config.lr * (config.final + (1 - config.final) * (1 - x) ** config.power)
    if config.schedule == "exponential":
        return config.lr * config.final**x
    if config.schedule == "inverse-time":
        return config.lr / (1 + n / config.half_life)
    reached = [start for start in config.stages if int(start) <= step]
    return config.lr * (config.stages[max(reached, key=int)] if reached else 1.0)


def _cosine(start: float, end: float, x: float) -> float:
    """From `start` at x = 0 to `end` at x = 1, as half a wave."""
    return end + (start - end) * (1 + math.cos(math.pi * x)) / 2


def _one_cycle(config: OptimiserSettings, step: int, total: int) -> float:
    """The share of lr at a step of the one-cycle schedule."""
    top = max(0.0, config.rise * total - 1)  # the step of the highest rate
    if step <= top:
        return _cosine(1 / 25, 1.0, step / top if top else 1.0)
    return _cosine(1.0, config.final, min(1.0, (step - top) / (total - 1 - top)))


def temperature_at(config: RolloutSettings, step: int, steps: int) -> float:
    """The sampling temperature of PPO step `step` (from 0) of `steps`: linear to final_temperature, if set."""
    if config.final_temperature == 0 or steps < 2:
        return config.temperature
    return config.temperature + (config.final_temperature - config.temperature) * step / (steps - 1)
