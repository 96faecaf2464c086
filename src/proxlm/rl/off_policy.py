"""Advantages and the critic's targets from responses that another policy sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.rl.advantages import discounted_sums, temporal_differences, turn_starts


def vtrace(
    rewards: Tensor,
    values: Tensor,
    log_weights: Tensor,
    action_mask: Tensor,
    offsets: Tensor,
    gamma: float,
    lam: float | Tensor,
    bootstrap: Tensor | None = None,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    turns: bool = False,
) -> tuple[Tensor, Tensor]:
    """V-trace (Espeholt et al. 2018, IMPALA, equation 1 and remarks 1 and 2), with GAE's advantages.

    w_t = π / μ of the token, ρ_t = min(ρ̄, w_t), c_t = min(c̄, w_t), δ_t = r_t + γ V_{t+1} − V_t:

        D_t = ρ_t δ_t + γλ c_t D_{t+1},   return_t = V_t + D_t,   A_t = δ_t + γλ D_{t+1}.

    The targets' fixed point is the value of π_ρ̄(a) ∝ min(ρ̄ μ(a), π(a)), whatever c̄ and λ: near μ for a small ρ̄, π for
    ρ̄ ≥ w everywhere. c̄ and λ decide about speed and variance. With ρ̄ = ∞ and c̄ = 1 the traces are those of
    Retrace(λ) (Munos et al. 2016) and the fixed point is the value of π.

    A_t is of the action a_t in its state and has no ρ_t of its own: the policy's loss weighs the token. On-policy,
    where w = 1, this is `gae`, and with turns `turn_gae`.

    Args:
        rewards: [R].
        values: V before each token [R].
        log_weights: log w of the tokens [R]; of a turn, the sum of its tokens' is taken.
        action_mask: [R] bool, True where the policy chose the token; the others are no steps, as in `gae`.
        offsets: [B+1].
        gamma: Discount factor γ, in [0, 1].
        lam: λ in [0, 1]; one number, or one for each row [B].
        bootstrap: V after each row's last token [B]; None: zeros.
        rho_bar: ρ̄ > 0.
        c_bar: c̄ > 0.
        turns: Steps are turns: every token of a turn has its turn's numbers.

    Returns:
        Raw advantages [R], 0 where the policy did not choose, and returns [R], in the dtype of `values`.
    """
    if log_weights.shape != action_mask.shape:
        raise ValueError(
            f"shapes do not fit: log-weights {tuple(log_weights.shape)}, mask {tuple(action_mask.shape)}"
        )
    chosen = turn_starts(action_mask, offsets) if turns else action_mask
    steps = temporal_differences(rewards, values, chosen, offsets, gamma, bootstrap)
    advantages, targets = torch.zeros_like(values), values.clone()
    if not len(steps.at):
        return advantages, targets
    weights = steps.sums(torch.where(action_mask, log_weights, 0.0)).exp()
    decay = torch.full_like(weights, gamma * lam) if isinstance(lam, float | int) else gamma * lam[steps.rows]
    corrected = weights.clamp(max=rho_bar) * steps.delta
    found = discounted_sums(corrected, steps.rows, decay * weights.clamp(max=c_bar))
    same_row = steps.rows[1:] == steps.rows[:-1]
    following = torch.cat([torch.where(same_row, found[1:], 0.0), found.new_zeros(1)])
    of_step = torch.addcmul(steps.delta, following, decay.to(found.dtype))
    owner = steps.owner[action_mask]
    advantages[action_mask] = of_step[owner]
    targets[action_mask] = (values[steps.at] + found)[owner]
    return advantages, targets
