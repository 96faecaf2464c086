"""What a user's code may do at the events of a training loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from proxlm.errors import ConfigError, RunError
from proxlm.runlog.metric_names import STEP, TIME
from proxlm.runlog.rows import LARGEST_NUMBER
from proxlm.text import listed, shown, suggestion
from proxlm.types import Rollout, Scores


class StopTraining(Exception):  # noqa: N818 (a request, not an error)
    """Raised by a callback in any event to end the run after the step under way, as if it had been the last one.

    Between two steps (in `on_start`, `on_checkpoint` and the evaluation before the run) it is the next step that is
    the last one; after the last step nothing is left to end. The step is logged and saved; the final evaluation, the
    model and the report are written.
    """


class Callback:
    """Base class of callbacks: override the events of interest; all others do nothing.

    Callbacks run in the main thread, in the order in which they were passed; with ppo.max_staleness another thread
    may sample and score the rollouts of later steps meanwhile. An exception from a callback ends the run, as an
    exception anywhere else would; `StopTraining` ends it as finished, and the callbacks after this one still get the
    event.
    """

    def on_start(self, folder: Path, step: int) -> None:
        """The loop is about to start (step 0) or to resume after `step` steps."""

    def on_rollout(self, step: int, rollout: Rollout) -> None:
        """PPO: a rollout is complete. step: number of the step, from 0."""

    def on_scores(self, step: int, rollout: Rollout, scores: Scores) -> None:
        """PPO: the rollout has its rewards."""

    def on_step(self, step: int, metrics: MutableMapping[str, float]) -> None:
        """A step is complete.

        Args:
            step: steps completed so far, from 1.
            metrics: the step's metrics by name; entries that are added here are logged with the others.
        """

    def on_evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Held-out metrics are there. name: "before", "during", "after", "best" (PPO), "validation" (supervised)."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint has been written to `folder`; with run.asynchronous_save it is that of an earlier step."""

    def on_end(self, step: int) -> None:
        """The loop has finished after `step` steps; not called when it ends by an exception."""


def checked_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """A step's metrics as numbers, with what callbacks have added.

    Raises:
        RunError: A name or a value that a row of metrics.jsonl cannot hold.
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or name in ("", STEP, TIME):
            raise RunError(f"metric {name!r}: not a name for a metric of a callback; write user/NAME")
        try:
            found[name] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise RunError(f"metric {name!r}: expected a number, got {type(value).__name__}") from error
        if math.isfinite(found[name]) and abs(found[name]) > LARGEST_NUMBER:
            raise RunError(f"metric {name!r} = {found[name]:g}: larger than {LARGEST_NUMBER:g}")
    return found


class Callbacks(Callback):
    """Several callbacks as one.

    Attributes:
        stop: The first request of a callback to end the run, or None.

    Raises:
        ConfigError: One is not a callback, or has an event that there is not, or that would not be called.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks: expected a list of callbacks, got {type(callbacks).__name__}")
        for callback in callbacks:
            _check(callback)
        self._callbacks = tuple(callbacks)
        self.stop: StopTraining | None = None

    def __len__(self) -> int:
        return len(self._callbacks)

    def fresh(self) -> Callbacks:
        """The same callbacks for another run, without a request to end it."""
        return Callbacks(self._callbacks)

    def _each(self, event: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, event)(*arguments)
            except StopTraining as request:
                self.stop = self.stop or request

    def on_start(self, folder: Path, step: int) -> None:
        self._each("on_start", folder, step)

    def on_rollout(self, step: int, rollout: Rollout) -> None:
        self._each("on_rollout", step, rollout)

    def on_scores(self, step: int, rollout: Rollout, scores: Scores) -> None:
        self._each("on_scores", step, rollout, scores)

    def on_step(self, step: int, metrics: MutableMapping[str, float]) -> None:
        self._each("on_step", step, metrics)

    def on_evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        self._each("on_evaluation", step, name, metrics)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._each("on_checkpoint", step, folder)

    def on_end(self, step: int) -> None:
        self._each("on_end", step)


def _check(callback: Any) -> None:
    """Raise ConfigError for what is not a callback, and for events of it that would not be called, or not rightly."""
    if not isinstance(callback, Callback):
        name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        raise ConfigError(f"callbacks: {shown(name)} is not an object of a subclass of proxlm.Callback")
    kind = type(callback).__name__
    events = [name for name in vars(Callback) if name.startswith("on_")]
    for name in dir(callback):
        if name.startswith("on_") and name not in events:
            hint = suggestion(name, events, f"the events are {listed(events)}")
            raise ConfigError(f"callbacks: {shown(kind)}.{shown(name)}: no such event; {hint}")
    for name in events:
        _check_event(f"callbacks: {shown(kind)}.{name}", getattr(callback, name), getattr(Callback, name))


def _check_event(where: str, method: Any, declared: Any) -> None:
    """Raise ConfigError for an event that cannot be called with its arguments, or would have to be awaited."""
    _, *given = inspect.signature(declared).parameters
    if inspect.iscoroutinefunction(method):
        raise ConfigError(
            f"{where}: an event cannot be async; write def, and run coroutines with asyncio.run"
        )
    try:
        inspect.signature(method).bind(*given)
    except ValueError:  # a callable without a signature
        return
    except TypeError:
        raise ConfigError(f"{where}: must take {', '.join(given)}") from None
