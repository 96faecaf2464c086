"""The trust-region update: natural gradient and line search on the policy's own parameters (loss = "trpo").

Fisher-vector products differentiate twice, so attention runs on its plain implementation, and one micro-batch's
logits are held at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from proxlm.models.actor_critic import ActorCritic
from proxlm.models.forward import response_states
from proxlm.models.language_model import LanguageModel
from proxlm.rl.losses import PolicyLoss
from proxlm.rl.trust_region import trust_region_step
from proxlm.train.ppo.learner import Learner
from proxlm.train.ppo.minibatch_statistics import MinibatchStats
from proxlm.train.ppo.plan import Minibatch
from proxlm.train.ppo.policy_loss import StepLoss, step_loss
from proxlm.train.ppo.prepare import Prepared
from proxlm.types import Experience

# The logit of a token that was not sampled from.
LEFT_OUT = -1e9
# A micro-batch, and what each of its tokens counts.
Part = tuple[Experience, Tensor]


def trust_region_update(learner: Learner, prepared: Prepared) -> MinibatchStats:
    """One step of the policy on the whole batch: the surrogate rises and the mean KL per token is at most δ.

    The parameters stay as they were where the line search finds no such step.

    Args:
        learner: Its policy's parameters are moved; no optimiser is used.
        prepared: The experience, with the plan and the numbers of its step.
    """
    models, settings = learner.models, learner.config.ppo.trpo
    parameters = [p for _, p in models.policy_parameters()]
    loss = step_loss(prepared, learner.config.ppo, learner.algorithm)
    experience, plan, ranks = prepared.experience, prepared.plan, prepared.plan.ranks
    parts = _parts(experience, plan.whole(), models.policy.device)
    share = max(1, round(settings.fisher_share * len(experience.sequences)))
    sample = parts
    if share < len(experience.sequences):
        sample = _parts(experience, plan.of_rows(torch.arange(share)), models.policy.device)
    stats = MinibatchStats(tokens=max(1, int(experience.action_mask.sum())))
    surrogate = _Surrogate(models, loss, parts, parameters)
    gradient = -ranks.sum(surrogate.loss_gradient(stats))

    def fisher(v: Tensor) -> Tensor:
        product = ranks.sum(fisher_product(models.policy, sample, parameters, v, loss.temperature))
        return product + settings.damping * v

    def measure(step: Tensor) -> tuple[float, float]:
        rise_and_kl = ranks.sum(torch.tensor(surrogate.change(step), dtype=torch.float64))
        return float(rise_and_kl[0]), float(rise_and_kl[1])

    found = trust_region_step(
        gradient, fisher, measure, settings.delta, settings.iterations, settings.halvings
    )
    surrogate.move(found.step)
    stats = stats.over(ranks)
    stats.grad_norm["policy"] = float(gradient.norm())
    # What the ratios above saw was the policy before its one step; this is how far the step went.
    stats.approx_kl = found.kl
    stats.extra = {
        "trpo/kl": found.kl,
        "trpo/improvement": found.improvement,
        "trpo/halvings": float(found.tries),
        "trpo/accepted": float(found.accepted),
        "trpo/step_norm": float(found.step.norm()),
    }
    return stats


def _parts(experience: Experience, minibatch: Minibatch, device: torch.device) -> list[Part]:
    return [(experience.select(micro.rows), micro.weights.to(device)) for micro in minibatch.micro_batches]


class _Surrogate:
    """The surrogate on these micro-batches, this rank's, as a function of a step from the present parameters."""

    def __init__(
        self, models: ActorCritic, loss: StepLoss, parts: Sequence[Part], parameters: Sequence[nn.Parameter]
    ) -> None:
        self.models, self.loss, self.parts, self.parameters = models, loss, parts, parameters
        self.start = _flat(parameters)
        self.losses = list[Tensor]()  # of each micro-batch, at the start

    def loss_gradient(self, stats: MinibatchStats) -> Tensor:
        """The gradient [P] of the policy loss at the start, where `change` then measures from."""
        total = torch.zeros_like(self.start)
        for part, weights in self.parts:
            share, terms = self._loss(part, weights)
            stats.policy_loss += float(share.detach())
            stats.add_terms(terms, weights > 0)
            self.losses.append(share.detach())
            total += _flat(torch.autograd.grad(share, list(self.parameters)))
        return total

    @torch.no_grad()
    def change(self, step: Tensor) -> tuple[float, float]:
        """How much the surrogate rises with `step` [P] taken, and the exact mean KL from the old policy."""
        rise = kl = 0.0
        for (part, weights), loss_before in zip(self.parts, self.losses, strict=True):
            self.move(None)
            old = torch.log_softmax(_logits(self.models.policy, part, self.loss.temperature), -1)
            self.move(step)
            new = torch.log_softmax(_logits(self.models.policy, part, self.loss.temperature), -1)
            after, _ = self._loss(part, weights)
            rise += float(loss_before - after)
            kl += float((weights * (old.exp() * (old - new)).sum(-1)).sum())
        self.move(None)
        return rise, kl

    @torch.no_grad()
    def move(self, step: Tensor | None) -> None:
        """Set the parameters to the start plus `step` [P]; None: to the start."""
        flat = self.start if step is None else self.start + step
        pieces = flat.split([p.numel() for p in self.parameters])
        for p, values in zip(self.parameters, pieces, strict=True):
            p.copy_(values.view_as(p))

    def _loss(self, part: Experience, weights: Tensor) -> tuple[Tensor, PolicyLoss]:
        outputs = self.models.policy_outputs(
            part.sequences.to(weights.device), self.loss.temperature, mask=part.sampling_mask
        )
        return self.loss.weighted(part, weights, outputs.logprobs)


def fisher_product(
    model: LanguageModel,
    parts: Sequence[Part],
    parameters: Sequence[nn.Parameter],
    vector: Tensor,
    temperature: float,
) -> Tensor:
    """F v: the Hessian of the mean KL from the present policy, at the present parameters, times v.

    Exact over the vocabulary, not from the sampled tokens alone. The cross-entropy used here has the same derivatives
    as the KL, because the entropy of the fixed side is a constant.

    Args:
        model: The policy.
        parts: Micro-batches, with what each token counts in the mean.
        parameters: Those that F is over, P numbers in all.
        vector: v [P].
        temperature: Of the policy.

    Returns:
        F v [P], of these micro-batches alone.
    """
    total = torch.zeros_like(vector)
    with sdpa_kernel(SDPBackend.MATH):
        for part, weights in parts:
            logprobs = torch.log_softmax(_logits(model, part, temperature, twice=True), -1)
            cross_entropy = -(weights * (logprobs.detach().exp() * logprobs).sum(-1)).sum()
            first = _flat(torch.autograd.grad(cross_entropy, list(parameters), create_graph=True))
            total += _flat(torch.autograd.grad(first.dot(vector), list(parameters)))
    return total


def _logits(model: LanguageModel, part: Experience, temperature: float, twice: bool = False) -> Tensor:
    """[r, V] of the response tokens of one micro-batch, in float32; twice: to be differentiated twice.

    What a sampling mask leaves out has a logit so low that its probability is 0 and log π is finite: 0 · log π is 0.
    """
    states = response_states(model, part.sequences.to(model.device), twice=twice)[0]
    logits = model.logits(states).float() / temperature
    if part.sampling_mask is None:
        return logits
    return logits.masked_fill(part.sampling_mask.to(logits.device).dropped(), LEFT_OUT)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
