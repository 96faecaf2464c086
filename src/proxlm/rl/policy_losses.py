"""Policy losses, per token. `ppo.loss` chooses one; one of your own is any function of this signature.

`losses.token_weights` turns tokens into one number, for all of them alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import PolicyLoss, clipped_policy_loss
from proxlm.rl.ragged import row_of_element, segment_sum


@dataclass(frozen=True)
class LossInputs:
    """What a policy loss may use; every tensor [R].

    A loss of which a token depends on others gets whole responses. A token-wise loss may get any span of a
    micro-batch's tokens, and then there are no offsets.

    Args:
        logprobs: log π of the tokens under the policy that learns, with gradient.
        old_logprobs: The same policy's before this step's update.
        advantages: 0 where the policy did not choose.
        action_mask: bool, True where the policy chose the token.
        response_offsets: Offsets [B+1] of the responses, or None for a token-wise loss; read them as `offsets`.
        clip_low: ε below 1 in the clipped ratio, `ppo.clip_low`; the following are settings of `ppo`, too.
        clip_high: ε above 1 in the clipped ratio.
        dual_clip: With A < 0 the loss is at most this times |A|; 0: off.
        divergence_limit: δ, how far a token's probability may move.
        max_log_ratio: Log-ratios are clamped to ± this before exp.
        covariant: bool, the tokens that Clip-Cov and KL-Cov treat apart, or None: another loss is chosen.
        covariance_kl_coef: Factor of KL-Cov's penalty, `ppo.covariance.kl_factor`.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    action_mask: Tensor
    response_offsets: Tensor | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    divergence_limit: float = 0.2
    max_log_ratio: float = 20.0
    covariant: Tensor | None = None
    covariance_kl_coef: float = 1.0

    @property
    def covariant_tokens(self) -> Tensor:
        """`covariant`. Raises ValueError where it is None."""
        if self.covariant is None:
            raise ValueError("LossInputs.covariant: required by Clip-Cov and KL-Cov; see rl/covariance.py")
        return self.covariant

    @property
    def offsets(self) -> Tensor:
        """Offsets [B+1] of whole responses. Raises ValueError for a token-wise loss, which has none."""
        if self.response_offsets is None:
            raise ValueError(
                "LossInputs.offsets: a token-wise loss sees spans of tokens, not whole responses; a loss that needs"
                " responses must not be declared token-wise (Algorithm.tokenwise, or config/algorithms.py)"
            )
        return self.response_offsets


def log_ratio(inputs: LossInputs) -> Tensor:
    """log ρ_t = log π_new − log π_old, clamped to ± max_log_ratio so that its exponential is finite. [R]"""
    return (inputs.logprobs - inputs.old_logprobs).clamp(-inputs.max_log_ratio, inputs.max_log_ratio)


def measured(inputs: LossInputs, loss: Tensor, clipped: Tensor | None = None) -> PolicyLoss:
    """A per-token loss [R] with the ratio and the approximate KL that every run reports; clipped [R] bool or None."""
    with torch.no_grad():
        none = torch.zeros_like(inputs.action_mask)
        approx_kl = 0.5 * (inputs.logprobs - inputs.old_logprobs).square()
        return PolicyLoss(loss, log_ratio(inputs).exp(), none if clipped is None else clipped, approx_kl)


def ppo_loss(inputs: LossInputs) -> PolicyLoss:
    """The clipped objective (Schulman et al. 2017, equation 7), with the dual clip if it is set."""
    return clipped_policy_loss(
        inputs.logprobs,
        inputs.old_logprobs,
        inputs.advantages,
        inputs.clip_low,
        inputs.clip_high,
        inputs.max_log_ratio,
        inputs.dual_clip,
    )


def pg_loss(inputs: LossInputs) -> PolicyLoss:
    """−A log π: the plain policy gradient of REINFORCE and A2C (Williams 1992; Mnih et al. 2016).

    Right for the policy that sampled: use one epoch of one minibatch.
    """
    return measured(inputs, -inputs.advantages * inputs.logprobs)


def surrogate_loss(inputs: LossInputs) -> PolicyLoss:
    """−ρ A, not clipped: what the trust-region step raises (Schulman et al. 2015, TRPO, equation 14)."""
    return measured(inputs, -log_ratio(inputs).exp() * inputs.advantages)


def gspo_loss(inputs: LossInputs) -> PolicyLoss:
    """−min(s A, clip(s) A) with one ratio per response, s = exp(mean_t log ρ_t) (Zheng et al. 2025, GSPO, eq. 5–7).

    The mean is over chosen tokens. With ppo.aggregation = "sequence" this is the paper's objective; its clip is
    far narrower than PPO's (3e-4 and 4e-4 there). A response of one token: PPO.
    """
    mask, offsets, limit = inputs.action_mask, inputs.offsets, inputs.max_log_ratio
    row = row_of_element(offsets)
    logs = torch.where(mask, inputs.logprobs - inputs.old_logprobs, 0.0)
    chosen = segment_sum(mask.to(logs.dtype), offsets).clamp(min=1)
    of_row = (segment_sum(logs, offsets) / chosen).clamp(-limit, limit)
    terms = clipped_policy_loss(
        of_row[row],
        torch.zeros_like(inputs.old_logprobs),
        inputs.advantages,
        inputs.clip_low,
        inputs.clip_high,
        limit,
    )
    return measured(inputs, terms.loss, terms.clipped)


def cispo_loss(inputs: LossInputs) -> PolicyLoss:
    """−sg(clip(ρ, 1 − ε_low, 1 + ε_high)) A log π (MiniMax 2025, M1, equation 4: CISPO).

    The importance weight is clipped, not the gradient: tokens beyond the clip still learn.
    """
    ratio = log_ratio(inputs).exp().detach()
    weight = ratio.clamp(1.0 - inputs.clip_low, 1.0 + inputs.clip_high)
    return measured(inputs, -weight * inputs.advantages * inputs.logprobs, ratio != weight)


def dppo_loss(inputs: LossInputs) -> PolicyLoss:
    """−ρ A, without gradient where the step leads further from π_old and |π − π_old| > δ (Qi et al. 2026, DPPO).

    |π(a) − π_old(a)| is the total variation of "this token or another", a bound that likely tokens meet and rare
    ones hardly do; PPO's ratio does the opposite. δ is ppo.divergence_limit.
    """
    logs = log_ratio(inputs)
    with torch.no_grad():
        moved = inputs.logprobs.exp() - inputs.old_logprobs.exp()
        away = (inputs.advantages > 0) & (moved > 0) | (inputs.advantages < 0) & (moved < 0)
        cut = away & (moved.abs() > inputs.divergence_limit)
    loss = -logs.exp() * inputs.advantages
    return measured(inputs, torch.where(cut, loss.detach(), loss), cut)


def clip_cov_loss(inputs: LossInputs) -> PolicyLoss:
    """The clipped loss, and 0 at Clip-Cov's tokens: they have no gradient (Cui et al. 2025, section 4.2)."""
    terms, apart = ppo_loss(inputs), inputs.covariant_tokens
    return terms._replace(loss=torch.where(apart, 0.0, terms.loss), clipped=terms.clipped | apart)


def kl_cov_loss(inputs: LossInputs) -> PolicyLoss:
    """−ρ A, plus β KL(π_old ‖ π) at KL-Cov's tokens (Cui et al. 2025, section 4.2).

    The KL is estimated by ρ − 1 − log ρ, whose mean over tokens of π_old it is, and so is its gradient; it is 0 in
    the first minibatch.
    """
    kl = kl_estimate(inputs.old_logprobs, inputs.logprobs, "k3", inputs.max_log_ratio)
    penalty = torch.where(inputs.covariant_tokens, inputs.covariance_kl_coef * kl, 0.0)
    return measured(inputs, penalty - log_ratio(inputs).exp() * inputs.advantages)
