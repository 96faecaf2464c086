"""What evaluations have found, of a model each, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from proxlm.config.metrics import TASK_METRICS
from proxlm.evaluation.intervals import Estimate
from proxlm.runlog import metric_names as names
from proxlm.runlog.text import number

DESCRIPTIONS: dict[str, str] = {
    names.REWARD: "mean reward of a response, with its 95% confidence interval",
    names.KL: "KL to the reference, nats per response (log-ratio of the sampled tokens; greedy: no KL)",
    names.TEACHER_KL: "reverse KL to the teacher, nats per response (log-ratio of the sampled tokens)",
    names.LENGTH: "response length in tokens; of a conversation, like all that follows, the policy's own",
    names.ENDED_SHARE: "share of responses that ended by themselves",
    names.DISTINCT_1: "different words / all words, over all responses",
    names.DISTINCT_2: "different word pairs / all word pairs, over all responses",
    names.PERPLEXITY: "perplexity of the responses under the reference, per token",
    names.RETURN_MEAN: "mean return of a token, by Monte Carlo",
    names.VALUE_MEAN: "mean value before a token",
    names.VALUE_ERROR: "(value − return)², mean over a response's tokens",
    names.EXPLAINED_VARIANCE: "1 − Var(return − value) / Var(return) over all tokens; 0: no better than their mean",
    names.VALUE_SLOPE: "slope of returns over values, 1 if calibrated",
    names.VALUE_BIAS: "mean value − mean return",
    names.VALUE_SPREAD: "standard deviation of values over the critic's heads",
    names.ACCURACY: "share that is right; of comparisons the chosen completion higher, a tie half (Wilson)",
    names.ACCURACY_SLICE.pattern: "the same, of the records of one slice",
    names.BEST_OF_N: "share of prompts whose highest score is of a right completion",
    names.BEST_OF_N_SLICE.pattern: "the same, of one slice",
    names.MARGIN: "mean score of the chosen minus the rejected completion",
    names.LOG_LOSS: "−log of the right answer's probability; of comparisons σ(margin), and 0.693 is chance",
    names.CALIBRATION_ERROR: "expected calibration error of the probability of the own answer, in ten bins",
    names.MACRO_F1: "mean over classes of F1",
    names.FIRST_ERROR: "responses whose first wrong step, or that there is none, is found",
    names.PEARSON: "Pearson correlation of scores and labels (interval by Fisher's z)",
    names.PEARSON_OF.pattern: "the same, of one of several scores",
    names.SPEARMAN: "correlation of their ranks",
    names.SPEARMAN_OF.pattern: "the same, of one of several scores",
    names.SQUARED_ERROR: "mean squared error",
    names.SQUARED_ERROR_OF.pattern: "the same, of one of several scores",
    names.ABSOLUTE_ERROR: "mean absolute error, in the labels' units",
    names.ABSOLUTE_ERROR_OF.pattern: "the same, of one of several scores",
    names.LENGTH_CORRELATION: "correlation of a completion's score and its characters",
    names.TASK.pattern: "a metric of the settings [metrics], with its 95% interval over prompts",
    **{str(metric): metric.meaning for metric in names.LIKELIHOOD},
    names.GREEDY.pattern: "the metric, of greedy responses: the likeliest token each time",
    names.MAJORITY.pattern: names.MAJORITY.meaning,
    names.BEST_BY_REWARD.pattern: names.BEST_BY_REWARD.meaning,
    names.TOKENS_WRITTEN: names.TOKENS_WRITTEN.meaning,
}


@dataclass(frozen=True)
class Confusion:
    """Which answers were given for which.

    Attributes:
        labels: The K classes.
        counts: [K][K + 1]: row i, column j: how often j was answered where i is right; the last column: no label.
    """

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Evaluation:
    """One model's results.

    Attributes:
        name: What the model is called in the table.
        model: Where it comes from.
        metrics: By name; components as "reward/NAME", those of greedy responses as "greedy/METRIC".
        samples: The first responses.
        prompts: How many prompts were answered.
        failed: How many responses got `reward.error_score`.
        without_reward: How many of them have no reward, because it was None; they are in no mean of it.
        responses: All responses with their rewards and components; empty where they were not kept.
        samples_per_prompt: How many responses were sampled to each prompt.
        notes: What is to be said of a metric beside its number, such as a signature, by its name.
        confusion: Which answers were given for which, of "sampled" and of "greedy" responses.
    """

    name: str
    model: str
    metrics: dict[str, Estimate]
    samples: list[dict[str, Any]]
    prompts: int
    failed: int
    responses: list[dict[str, Any]] = field(default_factory=list)
    without_reward: int = 0
    samples_per_prompt: int = 1
    notes: dict[str, str] = field(default_factory=dict)
    confusion: dict[str, Confusion] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """The metrics without their intervals."""
        return {metric: estimate.mean for metric, estimate in self.metrics.items()}


@dataclass(frozen=True)
class Chosen:
    """The step whose model a run has kept as its best, and by what.

    Attributes:
        step: The step.
        metric: Its name, "evaluation/reward" for instance.
        best_is: "highest" or "lowest".
        value: The metric in that step. As the best of several it is too good on average.
        model: The model's folder.
    """

    step: int
    metric: str
    best_is: str
    value: float
    model: str

    def line(self) -> str:
        """In words, with what it says of the column "best"."""
        chosen = f"best: step {self.step}, chosen by the {self.best_is} {self.metric} = {number(self.value)}"
        if self.metric.startswith(names.EVALUATION(names.GREEDY(""))):
            return f"{chosen}; a greedy answer is the same again, so as the best of several it is too good on average"
        return (
            f"{chosen}, too good on average as the best of several; evaluated again with other random numbers"
        )


def as_json(evaluations: Sequence[Evaluation], seed: int, best: Chosen | None = None) -> dict[str, Any]:
    """The contents of evaluation.json.

    Args:
        evaluations: Of each model.
        seed: Of the random numbers.
        best: What the evaluation "best" is of, if there is one.
    """
    return {
        "prompts": evaluations[0].prompts,
        "seed": seed,
        "metrics": DESCRIPTIONS | _task_descriptions(evaluations),
        "models": [_without_responses(evaluation) for evaluation in evaluations],
        **({} if best is None else {"best": asdict(best)}),
    }


def _task_descriptions(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """What the task metrics that were measured say, with their signatures."""
    found = {names.TASK(key): metric.meaning for key, metric in TASK_METRICS.items()}
    used = {name for evaluation in evaluations for name in evaluation.metrics}
    notes = {name: note for evaluation in evaluations for name, note in evaluation.notes.items()}
    return {
        name: f"{meaning} ({notes[name]})" if name in notes else meaning
        for name, meaning in found.items()
        if name in used
    }


def _without_responses(evaluation: Evaluation) -> dict[str, Any]:
    row = asdict(replace(evaluation, responses=[]))
    del row["responses"]
    return row


def evaluation_from_json(content: Mapping[str, Any]) -> list[Evaluation]:
    """Inverse of `as_json`."""
    return [
        Evaluation(
            name=row["name"],
            model=row.get("model", ""),
            metrics={name: Estimate(**estimate) for name, estimate in row["metrics"].items()},
            samples=row.get("samples", []),
            prompts=row.get("prompts", 0),
            failed=row.get("failed", 0),
            without_reward=row.get("without_reward", 0),
            samples_per_prompt=row.get("samples_per_prompt", 1),
            notes=row.get("notes", {}),
            confusion=confusion_from_json(row),
        )
        for row in content["models"]
    ]


def confusion_from_json(row: Mapping[str, Any]) -> dict[str, Confusion]:
    """Which answers were given for which, of a model in evaluation.json."""
    return {name: Confusion(**found) for name, found in row.get("confusion", {}).items()}


def chosen_from_json(content: Mapping[str, Any]) -> Chosen | None:
    """By what the model was chosen that is the evaluation "best" in evaluation.json; None: there is none."""
    return Chosen(**content["best"]) if "best" in content else None
