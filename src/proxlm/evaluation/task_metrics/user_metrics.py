"""A user's own metrics: functions of completions, as rewards are."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from proxlm.config.metrics import TASK_METRICS, MetricSettings
from proxlm.config.schema import RewardSettings
from proxlm.data.fields import own_copy
from proxlm.errors import ConfigError, UserCodeError
from proxlm.evaluation.bootstrap import Bootstrap
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.task_metrics.answers import Answer
from proxlm.evaluation.task_metrics.measured import Measured, of_values
from proxlm.rewards.call import TimedCaller
from proxlm.rewards.result import UnusableResultError, read_result
from proxlm.user_code import describe_error, load, parse_reference, raise_interrupt

MetricFunction = Callable[..., Any]
"""(completions: list[Completion]) → a number for each or None, a dict of such lists, or one number for all."""


@dataclass(frozen=True)
class UserMetric:
    """A user's function as a metric.

    Attributes:
        name: What its numbers are called.
        function: The completions → numbers.
        file: Its source file, for messages; "": not known.
        timeout: Seconds that a call may take.
    """

    name: str
    function: MetricFunction
    file: str
    timeout: float

    def __call__(self, answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
        """Means over prompts of what each response got; one number for all has no interval.

        Raises:
            UserCodeError: The function raised something, or returned what is no result.
        """
        completions = [
            replace(answer.completion, fields=own_copy(answer.completion.fields)) for answer in answers
        ]
        outcome = TimedCaller().call(lambda: self.function(completions), self.timeout)
        if outcome.timed_out:
            raise UserCodeError(f"metric {self.name} took longer than {self.timeout:g} s (reward.timeout)")
        if (error := outcome.error) is not None:
            raise_interrupt(error)
            raise UserCodeError(f"metric {self.name} raised {describe_error(error, self.file)}") from error
        result = outcome.value
        if isinstance(result, int | float) and math.isfinite(result):
            return Measured({self.name: Estimate.exactly(float(result))})
        try:
            parts = read_result(result, completions)
        except UnusableResultError as error:
            raise UserCodeError(f"metric {self.name} {error}") from error
        for part in parts.values():
            if part.problems:
                raise UserCodeError(f"metric {self.name} {next(iter(part.problems.values()))}")
        values = {
            "/".join(filter(None, (self.name, key))): [None if math.isnan(v) else v for v in part.values]
            for key, part in parts.items()
        }
        return of_values(values, bootstrap)


def user_metrics(
    metrics: MetricSettings, passed: Sequence[MetricFunction] = (), timeout: float = RewardSettings().timeout
) -> list[UserMetric]:
    """The functions that the settings name, and those that a Python caller passed.

    Args:
        metrics: The section [metrics].
        passed: Functions from Python.
        timeout: Seconds that a call of one may take.

    Raises:
        ConfigError: There is no such function, or two metrics have one name.
        UserCodeError: A user's file cannot be run.
    """
    modules: dict[str, ModuleType] = {}
    named = [
        (reference.name, load("metrics.use", reference, modules))
        for reference in map(parse_reference, metrics.use)
        if reference is not None
    ]
    named += [(getattr(function, "__name__", type(function).__name__), function) for function in passed]
    found: list[UserMetric] = []
    for name, function in named:
        if not callable(function) or inspect.isclass(function):
            raise ConfigError(f"metrics.use: {name} is no function of a list of completions")
        if name in TASK_METRICS or name in [one.name for one in found]:
            raise ConfigError(f"metrics.use: two metrics are called {name}; rename the function")
        code = getattr(inspect.unwrap(function), "__code__", None)
        found.append(UserMetric(name, function, code.co_filename if code else "", timeout))
    return found
