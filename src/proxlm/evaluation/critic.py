"""A critic on held-out prompts: how near its values are to the returns of responses that it has not learnt from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.engine.generate import Generate, generate
from proxlm.engine.protocol import Engine
from proxlm.evaluation.intervals import Estimate, mean_with_interval
from proxlm.evaluation.results import Evaluation
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.advantages import explained_variance
from proxlm.rl.calibration import calibration
from proxlm.rl.ragged import segment_sum
from proxlm.rl.running_statistics import RunningStatistics, with_values
from proxlm.rl.shaping import response_rewards
from proxlm.rl.value_ensemble import spread_of_heads
from proxlm.runlog import metric_names as names
from proxlm.seeds import Stream
from proxlm.train.ppo.algorithms import Algorithm
from proxlm.train.ppo.learner import StepParameters
from proxlm.train.ppo.prepare import prepare
from proxlm.types import Experience, Progress, Prompt, Rollout, Scores


def evaluate_critic(
    name: str,
    models: ActorCritic,
    engine: Engine,
    prompts: Sequence[Prompt],
    reward: Callable[[Rollout], Scores],
    config: PPOConfig,
    algorithm: Algorithm,
    *,
    kl_coef: float,
    statistics: RunningStatistics,
    draw: int = 0,
    on_progress: Progress | None = None,
    generate: Generate = generate,
) -> Evaluation:
    """Values and Monte-Carlo returns of one response to each prompt, with the same random numbers for every critic.

    Args:
        name: What the critic is called in the table.
        models: Policy, critic and reference.
        engine: Generates the policy's responses.
        prompts: One response each.
        reward: Of the responses. Those for which it gives None are left out.
        config: Of the run: the rewards of tokens and their returns are made as in its steps.
        algorithm: The advantage, whose returns are the critic's targets.
        kl_coef: β.
        statistics: That scores are scaled by; without any yet, those of these responses.
        draw: Which of the seed's random numbers; each draw is independent of the others.
        on_progress: Called with the number of finished responses and of all.
        generate: Samples the rollout.
    """
    settings, seed = config.rollout, config.run.seed
    rollout = generate(
        engine, prompts, settings, seed=seed, step=draw, stream=Stream.EVALUATION, on_progress=on_progress
    )
    scores = reward(rollout)
    failed, without = scores.failed, int((~scores.scored).sum())
    rows, offsets = scores.scored.nonzero()[:, 0], rollout.sequences.response_offsets
    if not len(rows):
        return Evaluation(name, models.policy.source, {}, [], len(rollout), failed, [], without)
    rollout, scores = rollout.select(rows), scores.select(rows, offsets)
    rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
    if config.shaping.scale != "none" and statistics.n == 0:
        statistics = with_values(RunningStatistics(), rewards[rewards.isfinite()])
    experience = prepare(
        models,
        rollout,
        scores,
        config,
        parameters=StepParameters(settings.temperature, kl_coef, statistics, critic_only=True),
        algorithm=replace(algorithm, rowwise=False),  # nothing is learnt from what is read
    ).experience
    metrics = {names.REWARD: mean_with_interval(rewards.tolist()), **critic_metrics(experience)}
    first = experience.sequences.response_offsets[:-1]
    responses = [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "response": rollout.texts[b],
            "finish": rollout.finish[b],
            "reward": round(float(rewards[b]), 5),
            "value": round(float(experience.values[first[b]]), 5),
            "return": round(float(experience.returns[first[b]]), 5),
        }
        for b, prompt in enumerate(rollout.prompts)
    ]
    return Evaluation(
        name, models.policy.source, metrics, [], len(rollout) + without, failed, responses, without
    )


def critic_metrics(experience: Experience) -> dict[str, Estimate]:
    """Error, explained variance and calibration of an experience's values; what has no number is left out.

    The error's interval is over responses, each with the mean over its own tokens.
    """
    mask, offsets = experience.action_mask, experience.sequences.response_offsets
    values, returns = experience.values, experience.returns
    chosen = segment_sum(mask.double(), offsets)

    def by_response(x: Tensor) -> Estimate:
        return mean_with_interval(
            (segment_sum(torch.where(mask, x.double(), 0.0), offsets) / chosen).tolist()
        )

    slope, bias = calibration(values, returns, mask)
    found = {
        names.RETURN_MEAN: by_response(returns),
        names.VALUE_MEAN: by_response(values),
        names.VALUE_ERROR: by_response((values - returns).square()),
        names.EXPLAINED_VARIANCE: Estimate.exactly(explained_variance(values, returns, mask)),
        names.VALUE_SLOPE: Estimate.exactly(slope),
        names.VALUE_BIAS: Estimate.exactly(bias),
    }
    if experience.values_of_heads is not None:
        found[names.VALUE_SPREAD] = by_response(spread_of_heads(experience.values_of_heads))
    return {name: estimate for name, estimate in found.items() if math.isfinite(estimate.mean)}
