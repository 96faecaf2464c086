"""The policy's loss in one step: the chosen loss, entropy bonus, KL if it is in the loss, positive examples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import PolicyLoss, entropy_coefficient
from proxlm.rl.policy_losses import LossInputs
from proxlm.train.ppo.algorithms import Algorithm
from proxlm.train.ppo.minibatch_statistics import MinibatchStats
from proxlm.train.ppo.prepare import Prepared
from proxlm.types import Experience


@dataclass(frozen=True)
class StepLoss:
    """The policy's loss in one step.

    kl_coef: β of a KL in the loss, else 0; entropy_coef: of this step; temperature: of the policy.
    """

    algorithm: Algorithm
    ppo: PPOSettings
    temperature: float
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def weighted(
        self, part: Experience, weights: Tensor, logprobs: Tensor, span: slice | None = None
    ) -> tuple[Tensor, PolicyLoss]:
        """A micro-batch's share of the chosen policy loss, and its terms.

        Args:
            part: The micro-batch.
            weights: What each of its tokens counts in the minibatch [R], on the model's device.
            logprobs: Of the span's tokens [r], with gradient.
            span: Which tokens; None: all. A loss that is not token-wise needs all.
        """
        device, ppo = logprobs.device, self.ppo
        at = span or slice(0, len(logprobs))
        offsets = None if self.algorithm.tokenwise else part.sequences.response_offsets.to(device)
        terms = self.algorithm.loss(
            LossInputs(
                logprobs=logprobs,
                old_logprobs=part.old_logprobs[at].to(device),
                advantages=part.advantages[at].to(device),
                action_mask=part.action_mask[at].to(device),
                response_offsets=offsets,
                clip_low=ppo.clip_low,
                clip_high=ppo.clip_high,
                dual_clip=ppo.dual_clip,
                divergence_limit=ppo.divergence_limit,
                max_log_ratio=ppo.max_log_ratio,
                covariant=None if part.covariant is None else part.covariant[at].to(device),
                covariance_kl_coef=ppo.covariance.kl_factor,
            )
        )
        return (weights[at] * part.correction[at].to(device) * terms.loss).sum(), terms

    def of_span(
        self,
        part: Experience,
        weights: Tensor,
        positive: Tensor | None,
        stats: MinibatchStats,
        span: slice,
        logprobs: Tensor,
        entropy: Tensor | None,
    ) -> Tensor:
        """The whole loss of a span of a micro-batch's tokens, a scalar; what it saw is added to `stats`.

        Args:
            part: The micro-batch.
            weights: What each of its tokens counts in the minibatch [R], on the model's device.
            positive: What each counts in the extra loss on positive responses [R], there too; None: without it.
            stats: Of the minibatch.
            span: Which tokens.
            logprobs: Of the span's tokens [r], with gradient.
            entropy: Of the policy at them [r], with gradient, or None without an entropy bonus.
        """
        ppo, device = self.ppo, weights.device
        policy_loss, terms = self.weighted(part, weights, logprobs, span)
        loss = policy_loss
        if entropy is not None:
            loss = loss - self.entropy_coef * (weights[span] * entropy).sum()
        if self.kl_coef > 0:
            reference = part.ref_logprobs[span].to(device)
            kl = kl_estimate(logprobs, reference, ppo.kl_estimator, ppo.max_log_ratio)
            kl_loss = (weights[span] * kl).sum()
            loss = loss + self.kl_coef * kl_loss
            stats.kl_loss += float(kl_loss.detach())
        if positive is not None:
            positive_loss = -(positive[span] * logprobs).sum()
            loss = loss + ppo.positive_coef * positive_loss
            stats.positive_loss += float(positive_loss.detach())
        stats.policy_loss += float(policy_loss.detach())
        stats.add_terms(terms, weights[span] > 0)
        return loss


def step_loss(prepared: Prepared, ppo: PPOSettings, algorithm: Algorithm) -> StepLoss:
    """The loss of the step that `prepared` is of."""
    return StepLoss(
        algorithm,
        ppo,
        temperature=prepared.parameters.temperature,
        kl_coef=prepared.parameters.kl_coef if ppo.kl_in == "loss" else 0.0,
        entropy_coef=entropy_coefficient(ppo.entropy_coef, prepared.metrics["entropy"], ppo.entropy_floor),
    )
