"""The task metrics of an evaluation: built from the settings, checked on the prompts, measured on responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxlm.config.metrics import TASK_METRICS, MetricSettings, built_in
from proxlm.evaluation.bootstrap import Bootstrap
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Confusion
from proxlm.evaluation.task_metrics.answers import Answer, reading, right_answers
from proxlm.evaluation.task_metrics.matches import exact_match
from proxlm.evaluation.task_metrics.measured import Measured, Metric
from proxlm.runlog.metric_names import TASK
from proxlm.types import Completion, Prompt

_BUILDERS: dict[str, Callable[[MetricSettings], Metric]] = {
    "exact_match": exact_match,
}


def task_metrics(metrics: MetricSettings, seed: int) -> TaskMetrics | None:
    """The metrics of the settings; None if they ask for nothing.

    Args:
        metrics: The section [metrics], without problems.
        seed: Of the bootstrap samples.
    """
    return TaskMetrics(metrics, seed) if metrics.use or metrics.samples_per_prompt > 1 else None


class TaskMetrics:
    """Metrics of responses beside the reward.

    Args:
        metrics: The section [metrics], without problems.
        seed: Of the bootstrap samples.
    """

    def __init__(self, metrics: MetricSettings, seed: int) -> None:
        self.metrics, self._seed = metrics, seed
        self._needs_answers = any(TASK_METRICS[name].answers for name in built_in(metrics))
        self._metrics = [_BUILDERS[name](metrics) for name in built_in(metrics)]
        self._read = reading(metrics)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise DataError for a prompt whose record does not say what is right, where a metric needs it."""
        if self._needs_answers:
            for prompt in prompts:
                right_answers(prompt, self.metrics)

    def answers(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        texts: Sequence[str],
        rewards: Sequence[float | None],
    ) -> list[Answer]:
        """Responses as metrics see them.

        Args:
            prompts: Of each response.
            completions: The responses.
            texts: What the policy itself wrote in each.
            rewards: What each earned, if anything.
        """
        return [
            Answer(
                completion,
                prompt.id,
                text,
                self._read(text),
                right_answers(prompt, self.metrics) if self._needs_answers else (),
                reward,
            )
            for prompt, completion, text, reward in zip(prompts, completions, texts, rewards, strict=True)
        ]

    def __call__(self, answers: Sequence[Answer]) -> Measured:
        """All metrics of some responses."""
        bootstrap = Bootstrap([answer.prompt for answer in answers], self.metrics.resamples, self._seed)
        estimates: dict[str, Estimate] = {}
        values: dict[str, Sequence[float | None]] = {}
        notes: dict[str, str] = {}
        confusion: Confusion | None = None
        for metric in self._metrics:
            found = metric(answers, bootstrap)
            estimates |= found.estimates
            values |= found.values
            notes |= found.notes
            confusion = found.confusion or confusion
        return Measured(estimates, values, notes, confusion)

    def rows(self, answers: Sequence[Answer], measured: Measured) -> list[dict[str, Any]]:
        """What the file of responses says of each."""
        rows = []
        for i, answer in enumerate(answers):
            row: dict[str, Any] = {"answer": answer.read}
            if self._needs_answers:
                row["right"] = list(answer.right)
            rows.append({**row, "metrics": {TASK(name): every[i] for name, every in measured.values.items()}})
        return rows
