"""From scores of responses to rewards of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.rl.ragged import row_of_element, segment_sum


def last_action_index(action_mask: Tensor, offsets: Tensor) -> Tensor:
    """The index of each row's last chosen token in the flat tensor; −1 for a row without one. → [B] int64"""
    if offsets.dim() != 1 or int(offsets[-1]) != len(action_mask):
        raise ValueError(f"offsets end at {int(offsets[-1])}, but there are {len(action_mask)} tokens")
    position = torch.where(action_mask, torch.arange(len(action_mask), device=offsets.device), -1)
    empty = torch.full((len(offsets) - 1,), -1, dtype=torch.int64, device=offsets.device)
    return empty.scatter_reduce(0, row_of_element(offsets), position, "amax")


def token_rewards(
    scores: Tensor,
    kl: Tensor,
    kl_coefficient: float,
    action_mask: Tensor,
    offsets: Tensor,
    per_token: Tensor | None = None,
) -> Tensor:
    """r_t = −β · kl_t (chosen tokens only) + per-token reward, plus the score on the row's last chosen token.

    So Σ_t r_t = score + Σ per-token − β Σ kl, and the last token of an ended response, EOS, keeps its share
    (Ziegler et al. 2019, equation 2; Ouyang et al. 2022).

    Args:
        scores: [B].
        kl: Of each token, in nats [R].
        kl_coefficient: β.
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        per_token: Rewards of single tokens [R], or None.

    Returns:
        [R]. A row without a chosen token gets no score.
    """
    if kl.shape != action_mask.shape or scores.shape != offsets[1:].shape:
        raise ValueError(
            f"shapes do not fit: kl {tuple(kl.shape)}, mask {tuple(action_mask.shape)}, B {len(scores)}"
        )
    rewards = torch.where(action_mask, -kl_coefficient * kl, 0.0)
    if per_token is not None:
        rewards = rewards + per_token
    last = last_action_index(action_mask, offsets)
    has_action = last >= 0
    return rewards.index_add(0, last[has_action], scores[has_action].to(rewards.dtype))


def response_rewards(scores: Tensor, per_token: Tensor | None, offsets: Tensor) -> Tensor:
    """What each response earned in all: its score and the rewards of its tokens. → [B]"""
    return scores if per_token is None else scores + segment_sum(per_token, offsets)


def apply_missing_eos(scores: Tensor, ended: Tensor, mode: str, penalty: float) -> Tensor:
    """The score of responses that were cut at the length limit.

    "ignore": unchanged; "subtract": score − penalty (TRL's missing_eos_penalty); "replace": the score
    is −penalty (openai/lm-human-preferences sets −1).

    Args:
        scores: [B].
        ended: [B] bool, True where the response ended by itself.
        mode: "ignore", "subtract" or "replace".
        penalty: ≥ 0.

    Returns:
        [B].
    """
    if scores.shape != ended.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and ended {tuple(ended.shape)} differ in shape")
    if mode == "ignore":
        return scores
    if mode == "subtract":
        return torch.where(ended, scores, scores - penalty)
    if mode == "replace":
        return torch.where(ended, scores, torch.full_like(scores, -penalty))
    raise ValueError(f'mode must be "ignore", "subtract" or "replace", got "{mode}"')


def overlong_penalty(lengths: Tensor, limit: int, buffer: int, penalty: float) -> Tensor:
    """What a response loses for its length: nothing up to limit − buffer tokens, then linearly up to `penalty`.

    0 for l ≤ limit − buffer; penalty · (l − (limit − buffer)) / buffer up to the limit, and no more beyond it
    (Yu et al. 2025, DAPO, equation 13: soft overlong punishment).

    Args:
        lengths: In tokens [B].
        limit: The longest response in tokens.
        buffer: In tokens; 0: no penalty.
        penalty: At the limit.

    Returns:
        [B] float32, ≥ 0, to be subtracted.
    """
    if buffer == 0:
        return torch.zeros(len(lengths))
    over = (lengths.float() - (limit - buffer)) / buffer
    return penalty * over.clamp(0.0, 1.0)


def potential_rewards(
    potentials: Tensor, action_mask: Tensor, offsets: Tensor, gamma: float, goes_on: Tensor | None = None
) -> Tensor:
    """F_t = γ Φ_t − Φ_{t−1}: a hint on the way that does not change the best policy (Ng et al. 1999).

    Φ_t is the potential of the state after chosen token t; it counts as 0 before the response and after its
    last chosen token, so with γ = 1 a response's F add up to 0. Where a response `goes_on` (its return is
    bootstrapped with the value of the state after it) that state is no end, and its potential counts.

    Args:
        potentials: Φ [R].
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        gamma: Discount factor γ.
        goes_on: [B] bool; None: nowhere.

    Returns:
        [R], 0 where the policy did not choose.
    """
    last = last_action_index(action_mask, offsets)
    ends = last >= 0 if goes_on is None else (last >= 0) & ~goes_on
    phi = potentials.index_fill(0, last[ends], 0.0)
    result, places = torch.zeros_like(phi), action_mask.nonzero()[:, 0]
    row = row_of_element(offsets)[places]
    before = torch.zeros_like(phi[places])
    before[1:] = torch.where(row[1:] == row[:-1], phi[places][:-1], 0.0)
    result[places] = gamma * phi[places] - before
    return result


def normalised_sum(components: Tensor, weights: Tensor, groups: Tensor, eps: float = 1e-6) -> Tensor:
    """Σ_k w_k (r_k − mean r_k) / (std r_k + eps), each reward by the responses of its group (Liu et al. 2026, GDPO).

    The standard deviation is over n − 1, as in GRPO. A reward that is NaN for a response counts neither in the mean
    nor in its sum; one that only one response of a group has, or that all have alike, adds 0.

    Args:
        components: r [K, B], before weighting.
        weights: w [K].
        groups: [B] int64, 0 to G − 1.
        eps: Added to the standard deviation.

    Returns:
        [B].
    """
    given, size = ~components.isnan(), len(torch.bincount(groups))

    def of_group(values: Tensor) -> Tensor:
        """The sum over each response's group, [K, B] → [K, B]."""
        return values.new_zeros(len(values), size).index_add(1, groups, values)[:, groups]

    count = of_group(given.to(components.dtype))
    centred = components - of_group(components.nan_to_num(0.0)) / count
    centred = torch.where(given, centred, 0.0)
    deviation = (of_group(centred.square()) / (count - 1).clamp(min=1)).sqrt()
    return (weights[:, None] * centred / (deviation + eps)).sum(0)
