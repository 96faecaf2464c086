"""A model on prompts: reward, KL to the reference, length, variety, perplexity; several models as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.data.tokenizer import decode
from proxlm.data.turn_end import special_ids
from proxlm.engine.generate import Generate, generate
from proxlm.engine.protocol import Engine
from proxlm.evaluation.metrics import (
    Estimate,
    distinct_n,
    mean_of_rewards,
    mean_with_interval,
    perplexity,
    words_of,
)
from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.rl.ragged import ragged_index, segment_sum
from proxlm.rl.shaping import response_rewards
from proxlm.runlog import metric_names as names
from proxlm.runlog.text import number
from proxlm.seeds import Stream
from proxlm.types import Progress, Prompt, Rollout, Scores, Sequences

DESCRIPTIONS = {
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
    names.ACCURACY: "share of comparisons whose chosen completion scores higher; a tie is half (Wilson's interval)",
    names.ACCURACY_SLICE.pattern: "the same, of the comparisons of one slice",
    names.BEST_OF_N: "share of prompts whose highest score is of a right completion",
    names.BEST_OF_N_SLICE.pattern: "the same, of one slice",
    names.MARGIN: "mean score of the chosen minus the rejected completion",
    names.LOG_LOSS: "−log σ(margin); 0.693 is chance",
    names.CALIBRATION_ERROR: "expected calibration error of σ(|margin|), in ten bins",
    names.LENGTH_CORRELATION: "correlation of a completion's score and its characters",
    names.GREEDY.pattern: "the metric, of greedy responses: the likeliest token each time",
}


@dataclass(frozen=True)
class Evaluation:
    """One model's results.

    Attributes:
        name: What the model is called in the table.
        model: Where it comes from.
        metrics: By name; components as "reward/NAME", those of greedy responses as "greedy/METRIC".
        samples: The first responses.
        prompts: How many responses were measured.
        failed: How many of them got `reward.error_score`.
        without_reward: How many of them have no reward, because it was None; they are in no mean of it.
        responses: All responses with their rewards and components; empty where they were not kept.
    """

    name: str
    model: str
    metrics: dict[str, Estimate]
    samples: list[dict[str, Any]]
    prompts: int
    failed: int
    responses: list[dict[str, Any]] = field(default_factory=list)
    without_reward: int = 0

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


@dataclass(frozen=True)
class _Scored:
    """A rollout, its scores, and what each response earned in all; without a reward None and none."""

    rollout: Rollout
    scores: Scores | None
    rewards: list[float]

    @staticmethod
    def of(rollout: Rollout, reward: Callable[[Rollout], Scores] | None) -> _Scored:
        if reward is None:
            return _Scored(rollout, None, [])
        scores = reward(rollout)
        if not scores.rewarded:
            return _Scored(rollout, None, [])
        total = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
        return _Scored(rollout, scores, total.tolist())

    def reward_metrics(self) -> dict[str, Estimate]:
        """Reward and its components."""
        if self.scores is None:
            return {}
        values = {names.REWARD: self.rewards}
        components = self.scores.components
        if len(components) > 1:
            values |= {names.REWARD_COMPONENT(key): v for key, v in components.items()}
        given = {key: [value for value in every if not math.isnan(value)] for key, every in values.items()}
        return {key: mean_of_rewards(some) for key, some in given.items() if some}

    def response_metrics(self) -> dict[str, Estimate]:
        """Length and the share that ended."""
        rollout = self.rollout
        lengths = segment_sum(rollout.action_mask.float(), rollout.sequences.response_offsets)
        return {
            names.LENGTH: mean_with_interval(lengths.tolist()),
            names.ENDED_SHARE: mean_of_rewards([float(f != "length") for f in rollout.finish]),
        }

    def row(self, b: int) -> dict[str, Any]:
        """Response b as a row."""
        row: dict[str, Any] = {
            "response": self.rollout.texts[b],
            "finish": self.rollout.finish[b],
            "reward": None,
        }
        if self.scores is not None:
            reward = self.rewards[b]
            row["reward"] = None if math.isnan(reward) else round(reward, 5)
            components = {key: values[b] for key, values in self.scores.components.items()}
            row["components"] = {key: None if math.isnan(v) else v for key, v in components.items()}
        return row


def evaluate_model(
    name: str,
    model: LanguageModel,
    engine: Engine,
    reference_logprobs: Callable[[Sequences, float], Tensor],
    prompts: Sequence[Prompt],
    reward: Callable[[Rollout], Scores] | None,
    settings: RolloutSettings,
    *,
    seed: int,
    micro_batch_tokens: int = 4096,
    draw: int = 0,
    samples: int = 16,
    greedy: bool = False,
    on_progress: Progress | None = None,
    generate: Generate = generate,
    teacher_logprobs: Callable[[Sequences, float], Tensor] | None = None,
) -> Evaluation:
    """One response to each prompt, with the same random numbers for every model evaluated (and the same `draw`).

    KL is taken at the sampling temperature (greedy: at 1), perplexity at 1.

    Args:
        name: What the model is called in the table.
        model: What is evaluated.
        engine: Generates its responses.
        reference_logprobs: (sequences, temperature) → the reference's log-probs [R] of the responses.
        prompts: One response each.
        reward: Of the responses; None: no reward is reported.
        settings: How responses are sampled.
        seed: Of the random numbers.
        micro_batch_tokens: Most tokens in one pass of scoring.
        draw: Which of the seed's random numbers; each draw is independent of the others.
        samples: How many responses to keep in `samples`.
        greedy: Also generate the likeliest tokens, and report what they earn beside the sampled ones.
        on_progress: Called with the number of finished responses and of all.
        generate: Samples the rollout.
        teacher_logprobs: As the reference's, of a teacher to which the KL is reported, too; None: there is none.
    """

    def respond(how: RolloutSettings) -> _Scored:
        rollout = generate(
            engine, prompts, how, seed=seed, step=draw, stream=Stream.EVALUATION, on_progress=on_progress
        )
        return _Scored.of(rollout, reward)

    sampled = respond(settings)
    rollout, t = sampled.rollout, settings.temperature or 1.0

    def score(logprobs: Callable[[Sequences, float], Tensor], temperature: float) -> Tensor:
        return _score_tokens(lambda s: logprobs(s, temperature), rollout, model.device, micro_batch_tokens)

    own = score(lambda s, temperature: token_outputs(model, s, temperature).logprobs, t)
    reference = score(reference_logprobs, t)
    plain = reference if t == 1.0 else score(reference_logprobs, 1.0)
    mask, offsets = rollout.action_mask, rollout.sequences.response_offsets

    def kl_to(other: Tensor) -> list[float]:
        found: list[float] = segment_sum((own - other).where(mask, 0.0), offsets).tolist()
        return found

    kl = kl_to(reference)
    taught: dict[str, Estimate] = {}
    if teacher_logprobs is not None:
        taught[names.TEACHER_KL] = mean_with_interval(kl_to(score(teacher_logprobs, t)))
    words = [words_of(text) for text in _own_texts(rollout, model.tokenizer)]
    metrics = {
        **sampled.reward_metrics(),
        names.KL: mean_with_interval(kl),
        **taught,
        **sampled.response_metrics(),
        names.DISTINCT_1: _plain(distinct_n(words, 1)),
        names.DISTINCT_2: _plain(distinct_n(words, 2)),
        names.PERPLEXITY: _plain(perplexity(float(plain[mask].sum()), int(mask.sum()))),
    }
    rows = [
        {"prompt_id": prompt.id, "prompt": prompt.text, **sampled.row(b), "kl": round(kl[b], 5)}
        for b, prompt in enumerate(rollout.prompts)
    ]
    if greedy and settings.temperature > 0:
        likeliest = respond(replace(settings, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0))
        found = likeliest.reward_metrics() | likeliest.response_metrics()
        metrics |= {names.GREEDY(key): estimate for key, estimate in found.items()}
        by_prompt = {prompt.id: likeliest.row(b) for b, prompt in enumerate(likeliest.rollout.prompts)}
        rows = [{**row, "greedy": by_prompt.get(row["prompt_id"])} for row in rows]
    shown = [
        {key: row[key] for key in ("prompt_id", "prompt", "response", "reward")} for row in rows[:samples]
    ]
    failed = 0 if sampled.scores is None else sampled.scores.failed
    without = sum(map(math.isnan, sampled.rewards))
    return Evaluation(name, model.source, metrics, shown, len(rollout), failed, rows, without)


def _own_texts(rollout: Rollout, tokenizer: Any) -> list[str]:
    """What the policy wrote: the responses' texts, and of conversations its turns without the environment's
    messages.
    """
    if rollout.rewards is None:
        return rollout.texts
    tokens, lengths = rollout.sequences.response_tokens, rollout.sequences.response_lengths.tolist()
    rows = zip(tokens.split(lengths), rollout.action_mask.split(lengths), strict=True)
    hidden = special_ids(tokenizer)
    return [decode(tokenizer, [t for t in row[chosen].tolist() if t not in hidden]) for row, chosen in rows]


def _plain(value: float) -> Estimate:
    return Estimate(value, value, value)


@torch.no_grad()
def _score_tokens(
    logprobs: Callable[[Sequences], Tensor], rollout: Rollout, device: torch.device, micro_batch_tokens: int
) -> Tensor:
    """logprobs(sequences) over micro-batches → [R] on the CPU."""
    result = torch.zeros(len(rollout.logprobs))
    for rows in micro_batches(rollout.sequences.lengths, micro_batch_tokens):
        part = rollout.sequences.select(rows).to(device)
        result[ragged_index(rollout.sequences.response_offsets, rows)] = logprobs(part).cpu()
    return result


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
        "metrics": DESCRIPTIONS,
        "models": [_without_responses(evaluation) for evaluation in evaluations],
        **({} if best is None else {"best": asdict(best)}),
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
        )
        for row in content["models"]
    ]


def chosen_from_json(content: Mapping[str, Any]) -> Chosen | None:
    """By what the model was chosen that is the evaluation "best" in evaluation.json; None: there is none."""
    return Chosen(**content["best"]) if "best" in content else None


def as_table(evaluations: Sequence[Evaluation], counted: str = "held-out prompts") -> str:
    """A plain-text table: a row per metric, a column per model, intervals as mean ± half-width or with both ends.

    counted: What the evaluations count.
    """
    found = list(dict.fromkeys(key for e in evaluations for key in e.metrics))
    rows = [["metric", *(e.name for e in evaluations)]]
    rows += [[name, *(_cell(e.metrics.get(name)) for e in evaluations)] for name in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    rule = "  ".join("─" * width for width in widths)
    failed = "".join(f"; {e.failed} rewards of {e.name} failed" for e in evaluations if e.failed)
    failed += "".join(
        f"; {e.without_reward} responses of {e.name} have no reward" for e in evaluations if e.without_reward
    )
    note = f"({evaluations[0].prompts} {counted}; ± and (… to …): the 95% interval of the mean{failed})"
    return "\n".join([lines[0], rule, *lines[1:], note])


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return str(estimate)
