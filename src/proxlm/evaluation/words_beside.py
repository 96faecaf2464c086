"""The judge of words beside models: TF-IDF and logistic regression, learnt from prompts with known answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxlm.config.metrics import CLASSIFICATION, MetricSettings
from proxlm.data.choices import Question
from proxlm.errors import DataError
from proxlm.evaluation.choices import evaluation_of_choices
from proxlm.evaluation.differences import Arm, Difference, differences
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.responses import of_prompt
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.task_metrics.answers import as_compared, right_answers
from proxlm.evaluation.task_metrics.labels import labels_of
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics
from proxlm.evaluation.word_baseline import too_few, word_regression, words_of
from proxlm.runlog import metric_names as names
from proxlm.text import shown
from proxlm.types import Completion, Prompt

WORDS = "words"
_NEVER = 1e-12


@dataclass(frozen=True)
class KnownPrompts:
    """Prompts whose answers are known, to learn from.

    Attributes:
        texts: The prompts, without examples and chat template.
        answers: The class of each.
        source: Where they are from.
    """

    texts: Sequence[str]
    answers: Sequence[str]
    source: str

    def without(self, held_out: Sequence[str]) -> KnownPrompts:
        """The same without those that are also held out.

        Raises:
            DataError: Too few are left to learn from.
        """
        there = set(held_out)
        kept = [i for i, text in enumerate(self.texts) if text not in there]
        left = KnownPrompts([self.texts[i] for i in kept], [self.answers[i] for i in kept], self.source)
        if (problem := too_few(left.answers)) is not None:
            also = len(self.texts) - len(kept)
            raise DataError(
                f"metrics.baseline = {shown(self.source, 60)}: logistic regression {problem}"
                + (f" ({also} others are also held out)" if also else "")
            )
        return left


def known_prompts(prompts: Sequence[Prompt], metrics: MetricSettings, source: str) -> KnownPrompts:
    """Prompts with the classes that their records name. Raises DataError."""
    try:
        right = [right_answers(prompt, metrics) for prompt in prompts]
        labels = labels_of(metrics, prompts, right)
    except DataError as error:
        raise DataError(f"metrics.baseline = {shown(source, 60)}: {error}") from error
    spelled = {as_compared(label, metrics.ignore_case): label for label in labels}
    answers = [spelled[as_compared(found[0], metrics.ignore_case)] for found in right]
    return KnownPrompts([prompt.text for prompt in prompts], answers, source)


def _probabilities(known: KnownPrompts, texts: Sequence[str]) -> list[dict[str, float]]:
    """The probability of each class, of each text. Raises DataError."""
    known = known.without(texts)
    words = words_of(known.texts)
    if words is None:
        raise DataError(f"metrics.baseline = {shown(known.source, 60)}: no word stands in two of its prompts")
    classes = sorted(set(known.answers))
    regression = word_regression(words, known.texts, [classes.index(answer) for answer in known.answers])
    rows = regression.predict_proba(words.transform(texts)).tolist()
    return [dict(zip(classes, row, strict=True)) for row in rows]


def evaluate_words(
    known: KnownPrompts,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    metrics: MetricSettings,
    *,
    seed: int,
    samples: int = 16,
    greedy: bool = False,
) -> Evaluation:
    """What the judge answers to held-out prompts: the likeliest class, by the metrics of classes.

    Args:
        known: What it learns from; a held-out prompt among them is left out.
        prompts: The held-out prompts.
        texts: What it reads of each.
        metrics: The section [metrics].
        seed: Of the bootstrap samples.
        samples: How many answers to keep in `samples`.
        greedy: Also report its answers, which it always gives, beside models' greedy ones.

    Raises:
        DataError: It cannot be learnt.
    """
    said = _probabilities(known, texts)
    answers = [max(row, key=lambda name: row[name]) for row in said]
    measure = TaskMetrics(_of_classes(metrics), [], prompts, seed)
    found = measure.answers(
        prompts,
        [Completion(p.text, a, fields=p.fields) for p, a in zip(prompts, answers, strict=True)],
        answers,
        [None] * len(answers),
        [math.log(max(row[answer], _NEVER)) for row, answer in zip(said, answers, strict=True)],
    )
    measured = measure(found)
    rows: list[dict[str, Any]] = []
    for prompt, answer, own, row in zip(prompts, answers, measure.rows(found, measured), said, strict=True):
        answered = {"response": answer, "reward": None, "probability": row[answer], **own}
        rows.append({**of_prompt(prompt), **answered, **({"greedy": answered} if greedy else {})})
    estimates: dict[str, Estimate] = {
        names.TASK(key): estimate for key, estimate in measured.estimates.items()
    }
    if greedy:
        estimates |= {names.GREEDY(key): estimate for key, estimate in estimates.items()}
    shown_rows = [{key: row[key] for key in ("prompt_id", "prompt", "response", "reward")} for row in rows]
    return Evaluation(
        WORDS,
        _source(known),
        estimates,
        shown_rows[:samples],
        prompts=len(prompts),
        failed=0,
        responses=rows,
        notes={WORDS: _source(known)},
        confusion={} if measured.confusion is None else {"likeliest": measured.confusion},
    )


def _of_classes(metrics: MetricSettings) -> MetricSettings:
    """What of the metrics a class and its probability have."""
    use = [name for name in metrics.use if name in (*CLASSIFICATION, "exact_match")]
    if (
        "calibration_error" in metrics.use
        and metrics.confidence == "probability"
        and metrics.right in (*CLASSIFICATION, "exact_match")
    ):
        use.append("calibration_error")
    # Its answer is a class as it is; of a number, as it is compared.
    as_number = metrics.read == "number"
    return replace(
        metrics, use=use, read="number" if as_number else "whole", pattern="", samples_per_prompt=1
    )


def evaluate_word_choices(
    known: KnownPrompts, questions: Sequence[Question], samples: int = 16
) -> Evaluation:
    """What the judge chooses, for questions whose choices are classes: the same texts throughout.

    Raises:
        DataError: It cannot be learnt, or it does not know a choice.
    """
    said = _probabilities(known, [question.asked for question in questions])
    scores = [
        [math.log(max(_of(row, text, known), _NEVER)) for text in question.choices.texts]
        for question, row in zip(questions, said, strict=True)
    ]
    found = evaluation_of_choices(WORDS, _source(known), questions, scores, samples)
    unmeant = (names.CHOICE_ACCURACY_PER_BYTE, names.CHOICE_MASS)  # of a text that a model writes
    metrics = {key: estimate for key, estimate in found.metrics.items() if key not in unmeant}
    rows = [
        {**row, "metrics": {key: value for key, value in row["metrics"].items() if key not in unmeant}}
        for row in found.responses
    ]
    return replace(found, metrics=metrics, responses=rows, notes={WORDS: _source(known)})


def _of(row: Mapping[str, float], choice: str, known: KnownPrompts) -> float:
    if choice.strip() not in row:
        raise DataError(
            f"metrics.baseline = {shown(known.source, 60)}: {shown(choice.strip(), 40)!r} is never the right choice"
            " there; the judge of words is for choices that are classes, the same in every question"
        )
    return row[choice.strip()]


def _source(known: KnownPrompts) -> str:
    return f"TF-IDF and logistic regression, learnt from {known.source}"


def less_words(evaluations: Sequence[Evaluation], seed: int) -> list[Difference]:
    """Every metric of each model, less that of the judge of words; none where it is not there."""
    words = [e for e in evaluations if WORDS in e.notes]
    others = [e for e in evaluations if WORDS not in e.notes]
    if not words or not others:
        return []
    return differences([Arm(e.name, [e.responses]) for e in (*words, *others)], seed)
