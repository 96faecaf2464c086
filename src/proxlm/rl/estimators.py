"""Advantage estimators: shaped rewards in, advantages and the critic's targets out.

`ppo.advantage` chooses one; one of your own is any function of this signature. Whitening, if there is any, comes
after the estimator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.rl.advantages import gae, turn_gae
from proxlm.rl.off_policy import vtrace
from proxlm.rl.ragged import row_of_element, segment_sum


class AdvantageInputs(NamedTuple):
    """What an estimator may use.

    Args:
        rewards: Shaped, KL penalty and score included [R].
        values: V before each token [R]; zeros without a critic.
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        groups: [B] int64, 0 to G − 1; rows that answer the same prompt have the same number.
        bootstrap: V after each row's last token [B], or None: zeros.
        gamma: Discount factor.
        lam: λ of GAE; one number, or one per row [B].
        critic_lam: λ of the critic's targets; None: `lam`.
        turns: Steps of GAE are turns, not tokens.
        group_std: GRPO divides by the standard deviation of a prompt's rewards.
        log_weights: log π_old − log π_roll of the tokens [R]; None: zeros, the rollout is the policy's own.
        trace_rho: ρ̄ of V-trace.
        trace_c: c̄ of V-trace and Retrace.
    """

    rewards: Tensor
    values: Tensor
    action_mask: Tensor
    offsets: Tensor
    groups: Tensor
    bootstrap: Tensor | None = None
    gamma: float = 1.0
    lam: float | Tensor = 0.95
    critic_lam: float | None = None
    turns: bool = False
    group_std: bool = True
    log_weights: Tensor | None = None
    trace_rho: float = 1.0
    trace_c: float = 1.0


class Advantages(NamedTuple):
    """advantages [R], 0 where the policy did not choose; returns [R]: what the critic is to predict."""

    advantages: Tensor
    returns: Tensor


def gae_advantages(inputs: AdvantageInputs) -> Advantages:
    """GAE with its own λ for the critic's targets (Schulman et al. 2015; Yuan et al. 2025, VC-PPO, section 3.2).

    Advantages by λ, returns = V + A by critic_lam: with critic_lam = 1 the critic learns from unbiased returns
    while the policy has less variance. A2C is this with λ = 1 and the loss "pg".
    """
    estimate = turn_gae if inputs.turns else gae

    def estimated(lam: float | Tensor) -> Advantages:
        x = inputs
        return Advantages(*estimate(x.rewards, x.values, x.action_mask, x.offsets, x.gamma, lam, x.bootstrap))

    found = estimated(inputs.lam)
    if inputs.critic_lam is not None:
        found = found._replace(returns=estimated(inputs.critic_lam).returns)
    return found


def vtrace_advantages(inputs: AdvantageInputs) -> Advantages:
    """V-trace with its own λ for the critic's targets (Espeholt et al. 2018): see `off_policy.vtrace`."""
    return _traced(inputs, inputs.trace_rho)


def retrace_advantages(inputs: AdvantageInputs) -> Advantages:
    """The same with ρ̄ = ∞, so that the critic learns the value of the policy itself (Munos et al. 2016's traces)."""
    return _traced(inputs, float("inf"))


def _traced(inputs: AdvantageInputs, rho_bar: float) -> Advantages:
    logs = torch.zeros_like(inputs.values) if inputs.log_weights is None else inputs.log_weights

    def estimated(lam: float | Tensor) -> Advantages:
        x, bounds = inputs, (rho_bar, inputs.trace_c)
        given = (x.rewards, x.values, logs, x.action_mask, x.offsets, x.gamma, lam, x.bootstrap)
        return Advantages(*vtrace(*given, *bounds, x.turns))

    found = estimated(inputs.lam)
    if inputs.critic_lam is not None:
        found = found._replace(returns=estimated(inputs.critic_lam).returns)
    return found


def reinforce_advantages(inputs: AdvantageInputs) -> Advantages:
    """A_t = Σ_{s ≥ t} γ^{s−t} r_s: the return, no baseline (Williams 1992).

    With whitening over the batch and the clipped loss this is REINFORCE++ (Hu 2025, equation 7).
    """
    nothing = torch.zeros_like(inputs.values)
    returns = gae(inputs.rewards, nothing, inputs.action_mask, inputs.offsets, inputs.gamma, 1.0)[0]
    return Advantages(returns, returns)


def rloo_advantages(inputs: AdvantageInputs) -> Advantages:
    """A = R − mean R of the prompt's other responses, for every chosen token (Ahmadian et al. 2024, RLOO).

    R is the response's whole shaped reward. The baseline is independent of the response, so the gradient is
    unbiased. Raises ValueError where a prompt has a single response.
    """
    totals, count, total, _ = _group_moments(inputs)
    others = (total[inputs.groups] - totals) / (count[inputs.groups] - 1)
    return _every_token(totals - others, totals, inputs)


def grpo_advantages(inputs: AdvantageInputs, eps: float = 1e-6) -> Advantages:
    """A = (R − mean) / (std + eps) over the prompt's responses, for every chosen token (Shao et al. 2024, GRPO).

    std with Bessel's correction. Without group_std: A = R − mean (Liu et al. 2025, Dr. GRPO), which is
    (n − 1) / n of RLOO's. Dividing by std weighs prompts by how little their rewards vary: a bias, unlike RLOO.
    Raises ValueError where a prompt has a single response.
    """
    totals, count, total, squares = _group_moments(inputs)
    advantages = totals - (total / count)[inputs.groups]
    if inputs.group_std:
        advantages = advantages / ((squares / (count - 1)).sqrt() + eps)[inputs.groups]
    return _every_token(advantages, totals, inputs)


def _group_moments(inputs: AdvantageInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row's whole reward [B]; each group's count, sum, and sum of squared deviations [G].

    All in float64: in float32 the mean of equal rewards is off by a rounding, and dividing by their deviation would
    blow it up.
    """
    totals = segment_sum(inputs.rewards.double(), inputs.offsets)
    count = torch.bincount(inputs.groups).to(totals.dtype)
    if bool((count == 1).any()):
        raise ValueError(
            "a prompt with a single response has no baseline; set ppo.samples_per_prompt to 2 or more"
        )
    total = torch.zeros_like(count).index_add(0, inputs.groups, totals)
    deviation = totals - (total / count)[inputs.groups]
    squares = torch.zeros_like(count).index_add(0, inputs.groups, deviation.square())
    return totals, count, total, squares


def _every_token(per_row: Tensor, totals: Tensor, inputs: AdvantageInputs) -> Advantages:
    """The row's number at each of its chosen tokens, 0 elsewhere; in the dtype of the rewards."""
    row, dtype = row_of_element(inputs.offsets), inputs.rewards.dtype
    return Advantages(*(torch.where(inputs.action_mask, n.to(dtype)[row], 0.0) for n in (per_row, totals)))


def group_numbers(prompt_ids: Tensor) -> Tensor:
    """Prompt ids [B] → group numbers 0 to G − 1 [B], the same for the same id."""
    return torch.unique(prompt_ids, return_inverse=True)[1]


def varied_groups(rewards: Tensor, groups: Tensor) -> Tensor:
    """True for the rows of groups whose rewards are not all equal (Yu et al. 2025, DAPO: dynamic sampling).

    A group of equal rewards has no advantage anywhere, so it only dilutes the batch. rewards, groups [B] → [B] bool.
    """
    size = len(torch.bincount(groups))
    low = rewards.new_full((size,), torch.inf).scatter_reduce(0, groups, rewards, "amin")
    high = rewards.new_full((size,), -torch.inf).scatter_reduce(0, groups, rewards, "amax")
    return (high > low)[groups]
