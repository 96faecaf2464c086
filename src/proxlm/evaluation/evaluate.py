"""A model on prompts: reward, KL to the reference, length, variety, perplexity; several models as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.engine.generate import Generate, generate
from proxlm.engine.protocol import Engine
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.metrics import distinct_n, perplexity, words_of
from proxlm.evaluation.picks import picked_metrics
from proxlm.evaluation.responses import Responses, of_prompt
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics
from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.rl.ragged import ragged_index, segment_sum
from proxlm.runlog import metric_names as names
from proxlm.seeds import Stream
from proxlm.types import Progress, Prompt, Rollout, Scores, Sequences

# (sequences, temperature) → log-probs of the responses' tokens [R].
TokenLogProbs = Callable[[Sequences, float], Tensor]


def evaluate_model(
    name: str,
    model: LanguageModel,
    engine: Engine,
    reference_logprobs: TokenLogProbs,
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
    teacher_logprobs: TokenLogProbs | None = None,
    metrics: TaskMetrics | None = None,
    own_logprobs: TokenLogProbs | None = None,
    pick: Sequence[str] = (),
) -> Evaluation:
    """Responses to each prompt, with the same random numbers for every model evaluated (and the same `draw`).

    KL is taken at the sampling temperature (greedy: at 1), perplexity at 1.

    Args:
        name: What the model is called in the table.
        model: What is evaluated.
        engine: Generates its responses.
        reference_logprobs: The reference's.
        prompts: One response each, or as many as `metrics` asks for; the greedy one is one.
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
        metrics: Of the responses beside their reward.
        own_logprobs: As the reference's, of what is evaluated; None: the model's.
        pick: Ways to choose one of each prompt's responses (picks.py), which are reported beside all of them.
    """
    own = own_logprobs or (
        lambda sequences, temperature: token_outputs(model, sequences, temperature).logprobs
    )
    scoring = _Scoring(own, reference_logprobs, teacher_logprobs, model.device, micro_batch_tokens)
    repeats = metrics.metrics.samples_per_prompt if metrics is not None and settings.temperature > 0 else 1

    def respond(how: RolloutSettings, repeats: int) -> Responses:
        rollout = generate(
            engine,
            [prompt for prompt in prompts for _ in range(repeats)],
            how,
            seed=seed,
            step=draw,
            stream=Stream.EVALUATION,
            on_progress=on_progress,
        )
        return Responses.of(rollout, reward, metrics, model.tokenizer, scoring.logprobs_of_responses)

    sampled = respond(settings, repeats)
    kl, found = scoring.measured(sampled, settings.temperature or 1.0)
    found = sampled.reward_metrics() | sampled.task_metrics() | found
    rows = [
        {**of_prompt(prompt), **sampled.row(b), "kl": round(kl[b], 5)}
        for b, prompt in enumerate(sampled.rollout.prompts)
    ]
    confusion = {"sampled": sampled.measured.confusion}
    for way in pick:
        found |= picked_metrics(way, sampled, metrics)
    if greedy and settings.temperature > 0:
        likeliest = respond(replace(settings, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0), 1)
        beside = likeliest.reward_metrics() | likeliest.task_metrics() | likeliest.response_metrics()
        found |= {names.GREEDY(key): estimate for key, estimate in beside.items()}
        by_prompt = {prompt.id: likeliest.row(b) for b, prompt in enumerate(likeliest.rollout.prompts)}
        rows = [{**row, "greedy": by_prompt.get(row["prompt_id"])} for row in rows]
        confusion["greedy"] = likeliest.measured.confusion
    shown = [
        {key: row[key] for key in ("prompt_id", "prompt", "response", "reward")}
        for row in rows[: samples * repeats : repeats]
    ]
    return Evaluation(
        name,
        model.source,
        found,
        shown,
        prompts=len({prompt.id for prompt in sampled.rollout.prompts}),
        failed=0 if sampled.scores is None else sampled.scores.failed,
        responses=rows,
        without_reward=sum(map(math.isnan, sampled.rewards)),
        samples_per_prompt=repeats,
        notes={names.TASK(key): note for key, note in sampled.measured.notes.items()},
        confusion={name: matrix for name, matrix in confusion.items() if matrix is not None},
    )


@dataclass(frozen=True)
class _Scoring:
    """Passes over responses: of the model, of the reference and, where there is one, of a teacher."""

    own: TokenLogProbs
    reference: TokenLogProbs
    teacher: TokenLogProbs | None
    device: torch.device
    micro_batch_tokens: int

    def measured(self, sampled: Responses, temperature: float) -> tuple[list[float], dict[str, Estimate]]:
        """The KL to the reference of each response [B], and what passes and texts tell of all of them."""
        rollout = sampled.rollout
        mask = rollout.action_mask
        own = self._read(self.own, rollout, temperature)
        reference = self._read(self.reference, rollout, temperature)
        plain = reference if temperature == 1.0 else self._read(self.reference, rollout, 1.0)
        kl = _sums(own - reference, rollout)
        found: dict[str, Estimate] = {names.KL: sampled.over_prompts(kl)}
        if self.teacher is not None:
            of_teacher = self._read(self.teacher, rollout, temperature)
            found[names.TEACHER_KL] = sampled.over_prompts(_sums(own - of_teacher, rollout))
        words = [words_of(text) for text in sampled.texts]
        return kl, {
            **found,
            **sampled.response_metrics(),
            names.DISTINCT_1: Estimate.exactly(distinct_n(words, 1)),
            names.DISTINCT_2: Estimate.exactly(distinct_n(words, 2)),
            names.PERPLEXITY: Estimate.exactly(perplexity(float(plain[mask].sum()), int(mask.sum()))),
        }

    def logprobs_of_responses(self, rollout: Rollout) -> list[float]:
        """Of whole responses [B], at temperature 1."""
        return _sums(self._read(self.own, rollout, 1.0), rollout)

    @torch.no_grad()
    def _read(self, logprobs: TokenLogProbs, rollout: Rollout, temperature: float) -> Tensor:
        """Of the responses' tokens, in micro-batches → [R] on the CPU."""
        result = torch.zeros(len(rollout.logprobs))
        for rows in micro_batches(rollout.sequences.lengths, self.micro_batch_tokens):
            part = rollout.sequences.select(rows).to(self.device)
            result[ragged_index(rollout.sequences.response_offsets, rows)] = logprobs(part, temperature).cpu()
        return result


def _sums(of_tokens: Tensor, rollout: Rollout) -> list[float]:
    """Of each response [B], over the tokens that the model chose."""
    kept = of_tokens.where(rollout.action_mask, 0.0)
    return segment_sum(kept, rollout.sequences.response_offsets).tolist()
