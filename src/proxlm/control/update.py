"""One update: passes × minibatches over an experience, with the losses of proxlm.rl."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import ControlPPOSettings
from proxlm.control.experience import Experience, select
from proxlm.control.network import Agent
from proxlm.rl.losses import PolicyLoss, clipped_policy_loss, clipped_value_loss
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.ppo.minibatch_statistics import MinibatchStats


@dataclass(frozen=True)
class Learner:
    """All that an update needs besides the experience. steps: PPO steps of the whole run, for the schedules."""

    agent: Agent
    optimisers: dict[str, Optimiser]
    config: ControlPPOSettings
    seed: int
    step: int
    steps: int


def plan_pass(experience: Experience, minibatches: int, seed: int) -> list[Tensor]:
    """The minibatches of one pass: indices of steps, or of whole segments where there is an LSTM, shuffled anew.

    Segments are dealt out so that each minibatch has about as many steps as the others.
    """
    generator = torch.Generator().manual_seed(seed)
    if experience.policy_state is None:
        order = torch.randperm(len(experience.values), generator=generator)
        return list(torch.tensor_split(order, minibatches))
    lengths = experience.offsets[1:] - experience.offsets[:-1]
    order = torch.randperm(len(lengths), generator=generator)
    # The minibatch in which a segment's middle lies, when all are laid end to end.
    middle = torch.cumsum(lengths[order], 0) - lengths[order] // 2 - 1
    part = middle * minibatches // int(lengths.sum())
    return [rows for k in range(minibatches) if len(rows := order[part == k])]


def update(learner: Learner, experience: Experience) -> list[MinibatchStats]:
    """Learn from an experience. Returns the statistics of each optimiser step, in order."""
    config, stats = learner.config, list[MinibatchStats]()
    planned = config.epochs * config.minibatches
    for epoch in range(config.epochs):
        seed = derive_seed(learner.seed, Purpose.PASS, learner.step, epoch)
        plan = plan_pass(experience, config.minibatches, seed)
        for chosen in plan:
            stats.append(_gradient(learner, select(experience, chosen)))
            done, total = learner.step * planned + len(stats) - 1, learner.steps * planned
            for who, optimiser in learner.optimisers.items():
                stats[-1].grad_norm[who], stats[-1].lr[who] = optimiser.step(done, total)
        seen = [s.approx_kl for s in stats[-len(plan) :]]
        if config.target_kl > 0 and sum(seen) / len(seen) > config.target_kl:
            break
    return stats


def _gradient(learner: Learner, part: Experience) -> MinibatchStats:
    """The gradient of a minibatch's mean loss: policy + value_coef · critic − entropy_coef · entropy."""
    config = learner.config
    choice, values = learner.agent.both(
        part.observations, part.rows(part.policy_state), part.rows(part.critic_state)
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
    """What this minibatch saw; every step is one the policy chose."""
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
