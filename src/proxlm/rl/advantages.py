"""Advantages, returns, whitening, and how good the critic is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.rl.ragged import part_of_row, row_of_element

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks: what makes a statistic one of the whole batch."""


def one_rank(total: Tensor) -> Tensor:
    """The `Reduce` of a batch that is all here."""
    return total


def gae(
    rewards: Tensor,
    values: Tensor,
    action_mask: Tensor,
    offsets: Tensor,
    gamma: float,
    lam: float | Tensor,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over ragged rows (Schulman et al. 2015, equation 16).

    δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   return_t = A_t + V_t.

    V after the last token is `bootstrap` (0 where the response ended). A token the policy did not choose is not
    a step: V and A are carried across it unchanged, and a reward on it belongs to the chosen token before it.
    Its own advantage is 0 and its own return is its value.

    Args:
        rewards: [R].
        values: V before each token [R].
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        gamma: Discount factor γ, in [0, 1].
        lam: λ in [0, 1]; one number, or one for each row [B].
        bootstrap: V after each row's last token [B]; None: zeros.

    Returns:
        Raw advantages [R] and returns [R], in the dtype of `values`.
    """
    steps = temporal_differences(rewards, values, action_mask, offsets, gamma, bootstrap)
    advantages = torch.zeros_like(values)
    if not len(steps.at):
        return advantages, values.clone()
    decay = gamma * lam[steps.rows] if isinstance(lam, Tensor) else gamma * lam
    advantages[steps.at] = discounted_sums(steps.delta, steps.rows, decay)
    return advantages, advantages + values


class Steps(NamedTuple):
    """The n steps of a ragged batch.

    at [n]: which tokens they are; rows [n]: of which row; delta [n]: δ_t = r_t + γ V_{t+1} − V_t; owner [R]: the step
    that each token belongs to, itself or the one before it, −1 if there is none in its row.
    """

    at: Tensor
    rows: Tensor
    delta: Tensor
    owner: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Σ of the values [R] of each step's tokens, [n], in the dtype of `delta`."""
        owned = self.owner >= 0
        sums = torch.zeros_like(self.delta)
        return sums.index_add_(0, self.owner[owned], values.to(sums.dtype)[owned])


def temporal_differences(
    rewards: Tensor,
    values: Tensor,
    action_mask: Tensor,
    offsets: Tensor,
    gamma: float,
    bootstrap: Tensor | None = None,
) -> Steps:
    """The steps of `gae`, with the same arguments: the masked tokens, each with the rewards up to the next one."""
    if not rewards.shape == values.shape == action_mask.shape or int(offsets[-1]) != len(values):
        raise ValueError(
            f"shapes do not fit: rewards {tuple(rewards.shape)}, values {tuple(values.shape)}, "
            f"mask {tuple(action_mask.shape)}, offsets end at {int(offsets[-1])}"
        )
    row, at = row_of_element(offsets), action_mask.nonzero()[:, 0]
    rows, v = row[at], values[at]
    if not len(at):
        return Steps(at, rows, v, torch.full_like(row, -1))
    newest = (
        torch.cumsum(action_mask, 0) - 1
    )  # the step that a token is at or behind, perhaps of a row before
    owned = (newest >= 0) & (rows[newest.clamp(min=0)] == row)
    steps = Steps(at, rows, v, torch.where(owned, newest, -1))
    last = torch.cat([rows[1:] != rows[:-1], rows.new_ones(1, dtype=torch.bool)])
    ends = v.new_zeros(len(offsets) - 1) if bootstrap is None else bootstrap.to(v.dtype)
    following = torch.where(last, ends[rows], v.roll(-1))
    return steps._replace(delta=steps.sums(rewards) + gamma * following - v)


def discounted_sums(x: Tensor, rows: Tensor, decay: float | Tensor) -> Tensor:
    """Σ_{s ≥ t} (Π_{t ≤ k < s} decay_k) x_s within each row; x and its rows, ascending, [n] → [n].

    decay: one number, or one for each element [n].
    """
    lengths = torch.bincount(rows)
    position = torch.arange(len(x), device=x.device) - (torch.cumsum(lengths, 0) - lengths)[rows]
    table = x.new_zeros(int(lengths.max()), len(lengths))  # shorter rows end in zeros, which add nothing
    table[position, rows] = x
    if isinstance(decay, Tensor):
        factors = torch.zeros_like(table)
        factors[position, rows] = decay.to(x.dtype)
    else:
        factors = x.new_full((1, len(lengths)), decay).expand_as(table)
    at, by = table.unbind(0), factors.unbind(0)
    for t in range(len(at) - 2, -1, -1):
        at[t].addcmul_(at[t + 1], by[t])
    return table[position, rows]


def turn_starts(action_mask: Tensor, offsets: Tensor) -> Tensor:
    """True at the first token of each turn, a run of chosen tokens with no others between them. → [R] bool"""
    row = row_of_element(offsets)
    continues = torch.zeros_like(action_mask)
    continues[1:] = action_mask[:-1] & (row[1:] == row[:-1])
    return action_mask & ~continues


def turn_gae(
    rewards: Tensor,
    values: Tensor,
    action_mask: Tensor,
    offsets: Tensor,
    gamma: float,
    lam: float | Tensor,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GAE whose steps are turns: a turn is one action, taken in the state before its first token.

    The reward of a turn is the sum of its tokens' (and of what follows up to the next turn); discount and λ
    act between turns. Every token of a turn has the turn's advantage and return. One token a turn: `gae`.
    A response of one turn: a bandit, A = Σ r − V(prompt). (Zhou et al. 2024, ArCHer, is the two-level view.)

    Args and returns are those of `gae`.
    """
    starts = turn_starts(action_mask, offsets)
    advantages, returns = gae(rewards, values, starts, offsets, gamma, lam, bootstrap)
    if not bool(starts.any()):
        return advantages, returns
    # The newest start at or before each token; a chosen token always has one in its own row.
    newest = torch.cumsum(starts, 0).sub(1).clamp(min=0)
    first = starts.nonzero().squeeze(-1)[newest]
    return torch.where(action_mask, advantages[first], 0.0), torch.where(action_mask, returns[first], values)


def kl_advantages(
    kl: Tensor, coefficient: float, action_mask: Tensor, offsets: Tensor, gamma: float, lam: float
) -> Tensor:
    """−β Σ_{u ≥ t} (γλ)^{u − t} kl_u over the row's chosen tokens: the KL as each token's own advantage.

    It is GAE's sum without values, over tokens whatever the estimator's steps are. Added to advantages of rewards
    without a KL, with γ = λ = 1 it gives the gradient of the whole KL, as in the rewards; with λ = 0 that of each
    token's KL alone, in the states as they were sampled.

    Args:
        kl: Of each token, in nats [R].
        coefficient: β.
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        gamma: Discount factor γ.
        lam: λ in [0, 1].

    Returns:
        [R], 0 where the policy did not choose.
    """
    penalties = torch.where(action_mask, -coefficient * kl, 0.0)
    return gae(penalties, torch.zeros_like(penalties), action_mask, offsets, gamma, lam)[0]


def length_adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """λ = max(0, 1 − 1 / (α l)) for a response of l chosen tokens (Yue et al. 2025, VAPO, equation 9).

    Long responses need λ near 1, or the reward at their end never reaches their beginning.

    Args:
        lengths: In chosen tokens [B].
        alpha: α > 0.

    Returns:
        λ of each response [B] float32; 0 for one without chosen tokens.
    """
    return (1.0 - 1.0 / (alpha * lengths.float().clamp(min=1))).clamp(min=0.0)


def whiten(
    values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8, reduce: Reduce = one_rank
) -> Tensor:
    """(x − mean) / sqrt(var + eps) with the masked mean and population variance; 0 where mask is False.

    Computed in float64: in float32 the mean of equal values is off by a rounding, and dividing by so small a
    deviation would turn it into an advantage.

    Args:
        values: [R].
        mask: [R] bool, True for the elements that count.
        shift_mean: False: the mean is added back (openai/lm-human-preferences, `whiten`).
        eps: Added to the variance.
        reduce: Sums over ranks, where each holds other rows: mean and variance are then those of all values.

    Returns:
        [R]; zeros without any element that counts.
    """
    if values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ in shape")
    chosen = torch.where(mask, values, 0.0).double()
    count = reduce(mask.sum()).clamp(min=1)
    mean = reduce(chosen.sum()) / count
    centred = torch.where(mask, chosen - mean, 0.0)
    variance = reduce(centred.square().sum()) / count
    whitened = centred * torch.rsqrt(variance + eps)
    if not shift_mean:
        whitened = torch.where(mask, whitened + mean, 0.0)
    return whitened.to(values.dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(return − value) / Var(return) over masked elements: 1 is perfect, 0 no better than the mean.

    Args:
        values: The critic's [R].
        returns: What it is to predict [R].
        mask: [R] bool, True for the elements that count.

    Returns:
        A float; NaN where the returns do not vary by more than float32's rounding.
    """
    return _explained(values, returns, mask, float32_rounding(values, returns, mask))


def _explained(values: Tensor, returns: Tensor, mask: Tensor, rounding: float) -> float:
    """`explained_variance`; NaN where the returns vary by `rounding` or less."""
    r, v = returns[mask].double(), values[mask].double()
    if r.numel() < 2 or float(r.std(correction=0)) <= rounding:
        return float("nan")
    return 1.0 - float((r - v).var(correction=0) / r.var(correction=0))


def float32_rounding(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """What equal values, or equal returns, of a batch may differ by: each is a float32 sum of values and rewards."""
    if not values.shape == returns.shape == mask.shape:
        raise ValueError(f"shapes differ: {tuple(values.shape)}, {tuple(returns.shape)}, {tuple(mask.shape)}")
    both = torch.cat([values[mask], returns[mask]]).double()
    return 1e-6 * float(both.abs().max()) if len(both) else 0.0


def explained_variance_by_position(
    values: Tensor, returns: Tensor, mask: Tensor, offsets: Tensor, parts: int = 4
) -> list[float]:
    """`explained_variance` of the first, second, … of `parts` equal shares of every row, by position.

    It shows a critic that is right near the end of a response and wrong at its beginning.

    Args:
        values: The critic's [R].
        returns: What it is to predict [R].
        mask: [R] bool, True for the elements that count.
        offsets: [B+1].
        parts: Into how many parts each row is cut.

    Returns:
        `parts` floats.
    """
    if int(offsets[-1]) != len(mask):
        raise ValueError(f"offsets end at {int(offsets[-1])}, but there are {len(mask)} tokens")
    part = part_of_row(offsets, parts)
    rounding = float32_rounding(values, returns, mask)  # of the whole batch: a part may hold nothing else
    return [_explained(values, returns, mask & (part == k), rounding) for k in range(parts)]
