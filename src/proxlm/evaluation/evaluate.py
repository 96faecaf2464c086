"""A model on prompts: reward, KL to the reference, length, variety, perplexity; several models as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

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
    metrics: TaskMetrics | None = None,
    own_logprobs: Callable[[Sequences, float], Tensor] | None = None,
    pick: Sequence[str] = (),
) -> Evaluation:
    """Responses to each prompt, with the same random numbers for every model evaluated (and the same `draw`).

    KL is taken at the sampling temperature (greedy: at 1), perplexity at 1.

    Args:
        name: What the model is called in the table.
        model: What is evaluated.
        engine: Generates its responses.
        reference_logprobs: (sequences, temperature) → the reference's log-probs [R] of the responses.
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
    log_probs = own_logprobs or (
        lambda sequences, temperature: token_outputs(model, sequences, temperature).logprobs
    )
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
        return Responses.of(rollout, reward, metrics, model.tokenizer, logprobs_of)

    def logprobs_of(rollout: Rollout) -> list[float]:
        """Of whole responses, at temperature 1."""
        found = _score_tokens(lambda s: log_probs(s, 1.0), rollout, model.device, micro_batch_tokens)
        kept = found.where(rollout.action_mask, 0.0)
        return segment_sum(kept, rollout.sequences.response_offsets).tolist()

    sampled = respond(settings, repeats)
    rollout, t = sampled.rollout, settings.temperature or 1.0

    def score(logprobs: Callable[[Sequences, float], Tensor], temperature: float) -> Tensor:
        return _score_tokens(lambda s: logprobs(s, temperature), rollout, model.device, micro_batch_tokens)

    own = score(log_probs, t)
    reference = score(reference_logprobs, t)
    plain = reference if t == 1.0 else score(reference_logprobs, 1.0)
    mask, offsets = rollout.action_mask, rollout.sequences.response_offsets

    def kl_to(other: Tensor) -> list[float]:
        found: list[float] = segment_sum((own - other).where(mask, 0.0), offsets).tolist()
        return found

    kl = kl_to(reference)
    taught: dict[str, Estimate] = {}
    if teacher_logprobs is not None:
        taught[names.TEACHER_KL] = sampled.over_prompts(kl_to(score(teacher_logprobs, t)))
    words = [words_of(text) for text in sampled.texts]
    found = {
        **sampled.reward_metrics(),
        **sampled.task_metrics(),
        names.KL: sampled.over_prompts(kl),
        **taught,
        **sampled.response_metrics(),
        names.DISTINCT_1: Estimate.exactly(distinct_n(words, 1)),
        names.DISTINCT_2: Estimate.exactly(distinct_n(words, 2)),
        names.PERPLEXITY: Estimate.exactly(perplexity(float(plain[mask].sum()), int(mask.sum()))),
    }
    rows = [
        {**of_prompt(prompt), **sampled.row(b), "kl": round(kl[b], 5)}
        for b, prompt in enumerate(rollout.prompts)
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
        prompts=len({prompt.id for prompt in rollout.prompts}),
        failed=0 if sampled.scores is None else sampled.scores.failed,
        responses=rows,
        without_reward=sum(map(math.isnan, sampled.rewards)),
        samples_per_prompt=repeats,
        notes={names.TASK(key): note for key, note in sampled.measured.notes.items()},
        confusion={name: matrix for name, matrix in confusion.items() if matrix is not None},
    )


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
