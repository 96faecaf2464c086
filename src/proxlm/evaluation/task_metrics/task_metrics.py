"""The task metrics of an evaluation: built from settings and prompts, measured on responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxlm.config.metrics import CLASSIFICATION, REWARD, TASK_METRICS, MetricSettings, built_in
from proxlm.errors import DataError
from proxlm.evaluation.bootstrap import Bootstrap
from proxlm.evaluation.task_metrics.answers import Answer, check_language, reading, right_answers
from proxlm.evaluation.task_metrics.classification import NUMBERS, Classes, accuracy, confusion, of_classes
from proxlm.evaluation.task_metrics.entities import entity_f1
from proxlm.evaluation.task_metrics.labels import labels_of
from proxlm.evaluation.task_metrics.matches import exact_match, rouge, squad_exact, squad_f1
from proxlm.evaluation.task_metrics.measured import Measured, Metric
from proxlm.evaluation.task_metrics.of_right import OfRight, calibration, pass_at_k
from proxlm.evaluation.task_metrics.translation import OF_CORPUS, of_corpus
from proxlm.evaluation.task_metrics.user_metrics import UserMetric
from proxlm.evaluation.task_metrics.variety import self_bleu
from proxlm.runlog.metric_names import TASK
from proxlm.types import Completion, Prompt

_OF_RESPONSES: dict[str, Callable[[MetricSettings], Metric]] = {
    "exact_match": exact_match,
    "squad_exact": squad_exact,
    "squad_f1": squad_f1,
    "entity_f1": entity_f1,
    **{name: of_corpus(name) for name in OF_CORPUS},
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rougeL": rouge("rougeL"),
    "self_bleu": self_bleu,
}
_OF_CLASSES: dict[str, Callable[[Classes], Metric]] = {"accuracy": accuracy, "confusion": confusion}
_OF_RIGHT: dict[str, Callable[[MetricSettings], OfRight]] = {
    "pass_at_k": pass_at_k,
    "calibration_error": calibration,
}


def task_metrics(
    metrics: MetricSettings, functions: Sequence[UserMetric], prompts: Sequence[Prompt], seed: int
) -> TaskMetrics | None:
    """The metrics of the settings; None if they ask for nothing. See `TaskMetrics`."""
    asked = metrics.use or functions or metrics.samples_per_prompt > 1
    return TaskMetrics(metrics, functions, prompts, seed) if asked and prompts else None


class TaskMetrics:
    """Metrics of responses beside the reward.

    Args:
        metrics: The section [metrics], without problems.
        functions: The user's.
        prompts: The prompts of the responses.
        seed: Of the bootstrap samples.

    Raises:
        DataError: The record of a prompt does not say what is right, where a metric needs it.
    """

    def __init__(
        self,
        metrics: MetricSettings,
        functions: Sequence[UserMetric],
        prompts: Sequence[Prompt],
        seed: int,
    ) -> None:
        self.metrics, self._seed = metrics, seed
        names = built_in(metrics)
        self._needs_answers = any(TASK_METRICS[name].answers for name in names)
        self._needs_answers |= metrics.read == "label" and not metrics.labels
        right = [right_answers(prompt, metrics) for prompt in prompts] if self._needs_answers else []
        check_language(metrics, right)
        labels: list[str] = []
        if metrics.read == "label" or set(CLASSIFICATION) & set(names):
            labels = labels_of(metrics, prompts, right)
        self._read = reading(metrics, labels)
        classes = Classes(labels, metrics.ignore_case)
        self._metrics: list[Metric] = [
            _OF_RESPONSES[name](metrics) for name in names if name in _OF_RESPONSES
        ]
        self._metrics += [_OF_CLASSES[name](classes) for name in names if name in _OF_CLASSES]
        if {name for name, _ in NUMBERS} & set(names):
            self._metrics.append(of_classes(classes, names))
        self._metrics += functions
        self._of_right = [_OF_RIGHT[name](metrics) for name in names if name in _OF_RIGHT]

    @property
    def needs_logprobs(self) -> bool:
        """Whether answers need the log-probability of their response."""
        return "calibration_error" in self.metrics.use and self.metrics.confidence == "probability"

    def answers(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        texts: Sequence[str],
        rewards: Sequence[float | None],
        logprobs: Sequence[float | None],
    ) -> list[Answer]:
        """Responses as metrics see them.

        Args:
            prompts: Of each response.
            completions: The responses.
            texts: What the policy itself wrote in each.
            rewards: What each earned, if anything.
            logprobs: The log-probability of each, where `needs_logprobs`.
        """
        return [
            Answer(
                completion,
                prompt.id,
                text,
                self._read(text),
                right_answers(prompt, self.metrics) if self._needs_answers else (),
                reward,
                logprob,
            )
            for prompt, completion, text, reward, logprob in zip(
                prompts, completions, texts, rewards, logprobs, strict=True
            )
        ]

    def __call__(self, answers: Sequence[Answer]) -> Measured:
        """All metrics of some responses."""
        if not answers:
            return Measured()
        bootstrap = Bootstrap([answer.prompt for answer in answers], self.metrics.resamples, self._seed)
        found = Measured.joined([metric(answers, bootstrap) for metric in self._metrics])
        if not self._of_right:
            return found
        right = _right(self.metrics.right, answers, found)
        return Measured.joined([found, *(metric(answers, right, bootstrap) for metric in self._of_right)])

    def rows(self, answers: Sequence[Answer], measured: Measured) -> list[dict[str, Any]]:
        """What the file of responses says of each."""
        rows = []
        for i, answer in enumerate(answers):
            row: dict[str, Any] = {"answer": answer.read}
            if self._needs_answers:
                row["right"] = list(answer.right)
            if of_all := {name: self.metrics.language for name in OF_CORPUS if name in self.metrics.use}:
                row["of_all"] = of_all  # which metrics no single response has
            rows.append({**row, "metrics": {TASK(name): every[i] for name, every in measured.values.items()}})
        return rows


def _right(name: str, answers: Sequence[Answer], found: Measured) -> list[bool]:
    """Which responses are right, by the metric or the reward that says so."""
    values = [answer.reward for answer in answers] if name == REWARD else found.values.get(name)
    if values is None or all(value is None for value in values):
        raise DataError(f'metrics.right = "{name}": it gives no single response a number; name another')
    return [value is not None and value >= 1 for value in values]
