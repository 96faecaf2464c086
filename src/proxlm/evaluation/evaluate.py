"""A model on prompts: reward, KL to the reference, length, variety, perplexity; several models as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.data.tokenizer import decode
from proxlm.data.turn_end import special_ids
from proxlm.engine.generate import Generate, generate
from proxlm.engine.protocol import Engine
from proxlm.evaluation.intervals import Estimate, mean_of_rewards, mean_with_interval
from proxlm.evaluation.metrics import distinct_n, perplexity, words_of
from proxlm.evaluation.results import Evaluation
from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.rl.ragged import ragged_index, segment_sum
from proxlm.rl.shaping import response_rewards
from proxlm.runlog import metric_names as names
from proxlm.seeds import Stream
from proxlm.types import Progress, Prompt, Rollout, Scores, Sequences


@dataclass(frozen=True)
class _Scored:
    """A rollout, its scores, and what each response earned in all; without a reward None and none."""

    rollout: Rollout
    scores: Scores | None
    rewards: list[float]
    lengths: list[float]

    @staticmethod
    def of(rollout: Rollout, reward: Callable[[Rollout], Scores] | None) -> _Scored:
        lengths = segment_sum(rollout.action_mask.float(), rollout.sequences.response_offsets).tolist()
        if reward is None:
            return _Scored(rollout, None, [], lengths)
        scores = reward(rollout)
        if not scores.rewarded:
            return _Scored(rollout, None, [], lengths)
        total = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
        return _Scored(rollout, scores, total.tolist(), lengths)

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
        return {
            names.LENGTH: mean_with_interval(self.lengths),
            names.ENDED_SHARE: mean_of_rewards([float(f != "length") for f in self.rollout.finish]),
        }

    def row(self, b: int) -> dict[str, Any]:
        """Response b as a row."""
        row: dict[str, Any] = {
            "response": self.rollout.texts[b],
            "finish": self.rollout.finish[b],
            "length": int(self.lengths[b]),
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
        names.DISTINCT_1: Estimate.exactly(distinct_n(words, 1)),
        names.DISTINCT_2: Estimate.exactly(distinct_n(words, 2)),
        names.PERPLEXITY: Estimate.exactly(perplexity(float(plain[mask].sum()), int(mask.sum()))),
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
