"""A step's scored rollout: prompts drawn, answered and scored, and with dynamic filtering drawn again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from proxlm.config import PPOJob
from proxlm.data.prompts import PromptStream
from proxlm.models.language_model import LanguageModel
from proxlm.rl.estimators import varied_groups
from proxlm.rl.shaping import response_rewards
from proxlm.rollout.native import EVALUATION, generate
from proxlm.train.observe import Clock
from proxlm.types import Prompt, Rollout, Scores

RewardOfRollout = Callable[[Rollout], Scores]
# The stream of random numbers of the samples that reference moments are taken on.
REFERENCE = EVALUATION + 2


def collect(
    policy: LanguageModel,
    prompts: PromptStream,
    reward: RewardOfRollout,
    job: PPOJob,
    *,
    temperature: float,
    draw: int,
    version: int,
    clock: Clock,
) -> tuple[Rollout, Scores, int, dict[str, float]]:
    """The responses of one step with their scores. Returns (rollout, scores, how often prompts were drawn, metrics).

    draw: the number of the first batch of prompts; it also seeds the sampling. With filter_groups, prompts whose
    responses all got the same reward are left out and others are drawn, up to filter_rounds times; if none is left
    the last draw is used as it is, for a step cannot be empty.
    """
    ppo = job.ppo
    sampling = replace(job.rollout, temperature=temperature)
    kept: list[tuple[Rollout, Scores]] = []
    seen = found = 0
    for draws in range(1, (ppo.filter_rounds if ppo.filter_groups else 1) + 1):
        batch = [p for p in prompts.batch(draw + draws - 1) for _ in range(ppo.samples_per_prompt)]
        with clock("generate"):
            rollout = generate(
                policy,
                batch,
                sampling,
                seed=job.run.seed,
                step=draw + draws - 1,
                version=version,
                on_progress=clock.log.progress,
            )
        with clock("score"):
            scores = reward(rollout)
        if not ppo.filter_groups:
            return rollout, scores, draws, {}
        rows = _varied_rows(rollout, scores, ppo.samples_per_prompt, ppo.batch_size - found)
        seen += ppo.batch_size
        if len(rows):
            offsets = rollout.sequences.response_offsets
            kept.append((rollout.select(rows), scores.select(rows, offsets)))
            found += len(rows) // ppo.samples_per_prompt
        if found >= ppo.batch_size:
            break
    metrics = {
        "filter/draws": float(draws),
        "filter/kept_prompts": float(found),
        "filter/drawn_prompts": float(seen),
    }
    if not kept:
        return rollout, scores, draws, metrics
    return Rollout.join([r for r, _ in kept]), Scores.join([s for _, s in kept]), draws, metrics


def _varied_rows(rollout: Rollout, scores: Scores, samples: int, wanted: int) -> Tensor:
    """The rows of the first `wanted` prompts drawn whose `samples` responses differ in reward.

    A prompt that stands twice in a batch is two draws, so that a step never has more rows than it asks for.
    """
    drawn = torch.arange(len(rollout)) // samples
    rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
    varied = varied_groups(rewards, drawn)
    return varied.nonzero()[: wanted * samples, 0]


def reference_rewards(
    policy: LanguageModel, prompts: PromptStream, reward: RewardOfRollout, job: PPOJob
) -> Tensor:
    """What `shaping.reference_samples` responses of the policy at its start earn, [n] (Ziegler et al. 2019)."""
    count = job.shaping.reference_samples
    batches = -(-count // prompts.batch_size)
    drawn: list[Prompt] = [p for i in range(batches) for p in prompts.batch(i)][:count]
    rollout = generate(policy, drawn, job.rollout, seed=job.run.seed, step=0, stream=REFERENCE)
    scores = reward(rollout)
    return response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
