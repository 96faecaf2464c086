"""What a run will need of memory, disk and time, from a few of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from proxlm.config import ControlConfig, PPOConfig
from proxlm.jobs.trial_run import Trial
from proxlm.planning.memory import learning_parts
from proxlm.runlog.text import duration, number
from proxlm.text import counted

_PHASES = ("generate", "score", "prepare", "update")


@dataclass(frozen=True)
class Times:
    """Seconds of a run.

    Attributes:
        start: Before the first step, evaluations left out.
        step: A step.
        steps: How many there are.
        evaluation: One evaluation of the held-out part.
        evaluations: How many there are.
        end: After the last step, evaluations left out.
    """

    start: float
    step: float
    steps: int
    evaluation: float
    evaluations: int
    end: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.start + self.steps * self.step + self.evaluations * self.evaluation + self.end


def times(settings: Any, trial: Trial, held_out: int) -> Times:
    """How long a run will take.

    Args:
        settings: Of the run.
        trial: A few of its steps.
        held_out: How many prompts the run evaluates on; of PPO.
    """
    if isinstance(settings, ControlConfig):
        rollout = settings.environment.count * settings.ppo.horizon
        return Times(trial.start, trial.step, settings.environment.steps // rollout, 0.0, 0, trial.end)
    if isinstance(settings, PPOConfig):
        steps, every = settings.ppo.steps, settings.evaluation.every
        share = held_out / trial.held_out if trial.held_out else 0.0
        count = (2 + (steps // every if every else 0)) if trial.held_out else 0
        return Times(trial.start, trial.step, steps, share * trial.validation, count, trial.end)
    train = settings.train
    validations = -(-train.steps // train.validate_every)
    return Times(trial.start, trial.step, train.steps, trial.validation, validations, trial.end)


def time_lines(settings: Any, trial: Trial, held_out: int) -> Iterator[str]:
    """The estimate in words."""
    found = times(settings, trial, held_out)
    phases = [f"{name} {_seconds(trial.phases[name])}" for name in _PHASES if name in trial.phases]
    yield f"a step {_seconds(found.step)}" + (f" ({', '.join(phases)})" if phases else "")
    parts = [counted(found.steps, "step")]
    if found.evaluations:
        parts.append(f"{counted(found.evaluations, 'evaluation')} of {_seconds(found.evaluation)}")
    limit = getattr(getattr(settings, "train", None), "minutes", 0.0)
    ends = f", but it ends after {limit:g} minutes of training" if limit and found.total > 60 * limit else ""
    yield f"about {duration(found.total)} for {', '.join(parts)}, start and end{ends}"
    if isinstance(settings, PPOConfig):
        yield "(longer responses take longer: the estimate is of those that the model writes now)"


def memory_lines(settings: Any, trial: Trial) -> Iterator[str]:
    """The most memory held, and what holds it."""
    yield f"at most {_gb(trial.peak_gb)} held; {_gb(trial.before_gb)} of it before the model is there"
    if parts := memory_parts(settings, trial):
        known = "  ".join(f"{name} {_gb(size)}" for name, size in parts.items())
        rest = trial.peak_gb - trial.before_gb - sum(parts.values())
        yield f"{known}  activations, caches and buffers {_gb(max(0.0, rest))}"
    keep = settings.run.keep
    yield f"disk: {keep} checkpoints of {_gb(trial.checkpoint_gb)} are kept, and the model, {_gb(trial.model_gb)}"


def memory_parts(settings: Any, trial: Trial) -> dict[str, float]:
    """GiB of what is known: weights that learn, their gradients, optimisers, and a frozen reference."""
    optimiser = sum(size for name, size in trial.sizes.items() if name.startswith("optimiser"))
    weights = {
        name: size
        for name, size in trial.sizes.items()
        if not name.startswith(("optimiser", "extra")) and size > 0
    }
    if isinstance(settings, ControlConfig) or not weights:
        return {**weights, **({"optimiser": optimiser} if optimiser else {})}
    frozen = isinstance(settings, PPOConfig) and not settings.model.lora.rank
    return learning_parts(weights, optimiser, trial.model_gb if frozen else 0.0)


def _seconds(value: float) -> str:
    return f"{number(value)} s"


def _gb(value: float) -> str:
    return f"{number(value)} GiB" if value >= 0.1 else f"{number(value * 1024)} MiB"
