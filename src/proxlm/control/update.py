"""One update: passes × minibatches over a batch, with the losses of proxlm.rl."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from proxlm.config import ControlPPOSettings
from proxlm.control.batch import ControlBatch
from proxlm.control.network import Agent
from proxlm.rl.losses import PolicyLoss, clipped_policy_loss, clipped_value_loss
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.ppo.minibatch_statistics import MinibatchStats


def shuffled_minibatches(batch: ControlBatch, count: int, seed: int) -> list[Tensor]:
    """The minibatches of one pass: indices of steps, or of whole segments with an LSTM, in a random order.

    Segments are dealt so that each minibatch has about as many steps as the others.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch.policy_state is None:
        order = torch.randperm(len(batch.values), generator=generator)
        return list(torch.tensor_split(order, count))
    lengths = batch.offsets[1:] - batch.offsets[:-1]
    order = torch.randperm(len(lengths), generator=generator)
    # With all segments laid end to end, a segment belongs to the minibatch that its middle lies in.
    middle = torch.cumsum(lengths[order], 0) - lengths[order] // 2 - 1
    part = middle * count // int(lengths.sum())
    return [rows for k in range(count) if len(rows := order[part == k])]


def update_agent(
    agent: Agent,
    optimisers: Mapping[str, Optimiser],
    batch: ControlBatch,
    config: ControlPPOSettings,
    *,
    seed: int,
    step: int,
    steps: int,
) -> list[MinibatchStats]:
    """Learn from a batch.

    Args:
        agent: Policy and critic, changed in place.
        optimisers: The policy's and the critic's.
        batch: The steps to learn from.
        config: Losses, passes and minibatches.
        seed: Of the minibatches.
        step: Number of this PPO step, from 0.
        steps: PPO steps of the whole run, for the learning-rate schedules.

    Returns:
        The statistics of each optimiser step, in order.
    """
    stats = list[MinibatchStats]()
    planned = config.epochs * config.minibatches
    for epoch in range(config.epochs):
        minibatches = shuffled_minibatches(
            batch, config.minibatches, derive_seed(seed, Purpose.PASS, step, epoch)
        )
        for chosen in minibatches:
            stats.append(_gradient(agent, batch.select(chosen), config))
            done, total = step * planned + len(stats) - 1, steps * planned
            for name, optimiser in optimisers.items():
                stats[-1].grad_norm[name], stats[-1].lr[name] = optimiser.step(done, total)
        kls = [s.approx_kl for s in stats[-len(minibatches) :]]
        if config.target_kl > 0 and sum(kls) / len(kls) > config.target_kl:
            break
    return stats


def _gradient(agent: Agent, part: ControlBatch, config: ControlPPOSettings) -> MinibatchStats:
    """The gradient of a minibatch's mean loss: policy + value_coef · critic − entropy_coef · entropy."""
    choice, values = agent.both(
        part.observations, part.segments(part.policy_state), part.segments(part.critic_state)
    )
    terms = clipped_policy_loss(
        choice.logprob(part.actions),
        part.logprobs,
        part.advantages,
        config.clip_low,
        config.clip_high,
        config.max_log_ratio,
        config.dual_clip,
    )
    policy_loss = terms.loss.mean()
    value_loss = clipped_value_loss(values, part.values, part.returns, config.clip_value).mean()
    loss = policy_loss + config.value_coef * value_loss
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * choice.entropy().mean()
    loss.backward()
    return _stats(terms, policy_loss, value_loss)


@torch.no_grad()
def _stats(terms: PolicyLoss, policy_loss: Tensor, value_loss: Tensor) -> MinibatchStats:
    """The statistics of this minibatch; the policy chose every step of it."""
    ratio = terms.ratio
    return MinibatchStats(
        tokens=len(ratio),
        policy=True,
        policy_loss=float(policy_loss),
        value_loss=float(value_loss),
        ratio_mean=float(ratio.mean()),
        ratio_max=float(ratio.max()),
        ratio_error=float((ratio - 1).abs().max()),
        clip_fraction=float(terms.clipped.float().mean()),
        approx_kl=float(terms.approx_kl.mean()),
    )
