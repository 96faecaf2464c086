"""Multiple choice by log-likelihood: which of several answers a model finds likeliest behind a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from proxlm.data.choices import Question
from proxlm.engine.forced import forced_logprobs
from proxlm.evaluation.intervals import Estimate, mean_of_rewards, mean_with_interval
from proxlm.evaluation.metrics import calibration_error
from proxlm.evaluation.results import Evaluation
from proxlm.models.forward import micro_batches
from proxlm.models.language_model import LanguageModel
from proxlm.runlog import metric_names as names
from proxlm.types import Progress


def evaluate_choices(
    name: str,
    model: LanguageModel,
    questions: Sequence[Question],
    micro_batch_tokens: int = 4096,
    samples: int = 16,
    on_progress: Progress | None = None,
) -> Evaluation:
    """The accuracy of a model's choices, and how far its probabilities of them can be trusted.

    Args:
        name: What the model is called in the table.
        model: What is evaluated.
        questions: Tokenised for this model.
        micro_batch_tokens: Most tokens of questions that are read together, each prompt counted for each of its
            choices.
        samples: How many answers to keep in `samples`.
        on_progress: Called with the number of questions answered and of all.
    """
    scores = choice_logprobs(model, questions, micro_batch_tokens, on_progress)
    return evaluation_of_choices(name, model.source, questions, scores, samples)


def evaluation_of_choices(
    name: str, source: str, questions: Sequence[Question], scores: Sequence[Sequence[float]], samples: int
) -> Evaluation:
    """What log-probs of the choices say of whoever gave them.

    Args:
        name: What that is called in the table.
        source: Where it comes from.
        questions: The questions.
        scores: The log-prob of each choice of each question.
        samples: How many answers to keep in `samples`.
    """
    rows = [_row(question, logprobs) for question, logprobs in zip(questions, scores, strict=True)]

    def column(metric: str) -> list[float]:
        return [row["metrics"][metric] for row in rows]

    metrics: dict[str, Estimate] = {
        names.CHOICE_ACCURACY: mean_of_rewards(column(names.CHOICE_ACCURACY)),
        names.CHOICE_ACCURACY_PER_BYTE: mean_of_rewards(column(names.CHOICE_ACCURACY_PER_BYTE)),
        names.CHOICE_PROBABILITY: _within(column(names.CHOICE_PROBABILITY)),
        names.CHOICE_MASS: _within(column(names.CHOICE_MASS)),
        names.CHOICE_CALIBRATION_ERROR: Estimate.exactly(
            calibration_error([row["confidence"] for row in rows], column(names.CHOICE_ACCURACY), lowest=0.0)
        ),
    }
    shown = [
        {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "response": row["picked"], "reward": None}
        for row in rows[:samples]
    ]
    return Evaluation(name, source, metrics, shown, len(rows), 0, rows)


def choice_logprobs(
    model: LanguageModel,
    questions: Sequence[Question],
    micro_batch_tokens: int,
    on_progress: Progress | None = None,
) -> list[list[float]]:
    """The log-prob of each choice of each question: the sum over its tokens. A prompt is read once."""
    sizes = [len(q.answers) * (len(q.given) + max(map(len, q.answers))) for q in questions]
    found: list[list[float]] = [[] for _ in questions]
    done = 0
    for group in micro_batches(torch.tensor(sizes), micro_batch_tokens):
        chosen = [(int(i), answer) for i in group for answer in questions[int(i)].answers]
        prompts = [questions[i].given for i, _ in chosen]
        for (i, _), logprobs in zip(
            chosen, forced_logprobs(model, prompts, [answer for _, answer in chosen]), strict=True
        ):
            found[i].append(float(logprobs.double().sum()))
        done += len(group)
        if on_progress is not None:
            on_progress(done, len(questions))
    return found


def _row(question: Question, logprobs: Sequence[float]) -> dict[str, Any]:
    """What is written of one question."""
    texts, right = question.choices.texts, question.choices.right
    per_byte = [logprob / len(text.encode()) for logprob, text in zip(logprobs, texts, strict=True)]
    largest = max(logprobs)
    weights = [math.exp(logprob - largest) for logprob in logprobs]
    total = math.fsum(weights)
    return {
        "prompt_id": question.prompt.id,
        "prompt": question.asked,
        "read": question.prompt.text,
        "choices": list(texts),
        "answer": right,
        "logprobs": [round(logprob, 6) for logprob in logprobs],
        "tokens": [len(answer) for answer in question.answers],
        "picked": texts[logprobs.index(largest)],
        "picked_per_byte": texts[per_byte.index(max(per_byte))],
        "confidence": max(weights) / total,
        "metrics": {
            names.CHOICE_ACCURACY: _credit(logprobs, right),
            names.CHOICE_ACCURACY_PER_BYTE: _credit(per_byte, right),
            names.CHOICE_PROBABILITY: weights[right] / total,
            names.CHOICE_MASS: min(1.0, math.fsum(map(math.exp, logprobs))),
        },
    }


def _credit(scores: Sequence[float], right: int) -> float:
    """1 if the right choice has the highest score, 0 if not; where several have it, a share, whatever their order."""
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    return (right in best) / len(best)


def _within(shares: Sequence[float]) -> Estimate:
    """The mean of numbers from 0 to 1, with Student's interval cut at these."""
    found = mean_with_interval(shares)
    return Estimate(found.mean, max(0.0, found.low), min(1.0, found.high))
