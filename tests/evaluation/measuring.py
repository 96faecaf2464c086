"""Task metrics of texts, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxlm.config import MetricSettings
from proxlm.config.metrics import metric_problems
from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.task_metrics.measured import Measured
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics
from proxlm.evaluation.task_metrics.user_metrics import user_metrics
from proxlm.types import Completion, Prompt


def measured(
    texts: Sequence[str],
    answers: Sequence[Any],
    *use: str,
    prompts: Sequence[int] | None = None,
    rewards: Sequence[float | None] | None = None,
    logprobs: Sequence[float] | None = None,
    functions: Sequence[Callable[..., Any]] = (),
    **settings: Any,
) -> Measured:
    """The numbers of responses whose records say what is right; one bootstrap sample if not told otherwise."""
    config = MetricSettings(use=list(use), **{"resamples": 1, **settings})
    assert metric_problems(config) == []
    ids = list(range(len(texts))) if prompts is None else list(prompts)
    asked = [Prompt(i, (1,), f"p{i}", {"answer": answer}) for i, answer in zip(ids, answers, strict=True)]
    metrics = TaskMetrics(config, user_metrics(config, functions), asked, seed=3)
    done = [
        Completion(prompt.text, text, (1,), fields=prompt.fields)
        for prompt, text in zip(asked, texts, strict=True)
    ]
    none = [None] * len(texts)
    return metrics(metrics.answers(asked, done, texts, rewards or none, logprobs or none))


def means(found: Measured) -> dict[str, float]:
    return {name: estimate.mean for name, estimate in found.estimates.items()}


class Recorded:
    """Keeps the statistic that a metric gives to the bootstrap, to be asked about any sample."""

    def __init__(self, monkeypatch: Any) -> None:
        self.statistics: list[Callable[[Counts], Any]] = []
        original = Bootstrap.intervals

        def intervals(bootstrap: Bootstrap, values: Any, statistic: Any) -> Any:
            self.statistics.append(statistic)
            return original(bootstrap, values, statistic)

        monkeypatch.setattr(Bootstrap, "intervals", intervals)
