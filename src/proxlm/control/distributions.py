"""Distributions over actions. Samples are functions of given noise, so that a run holds no generator state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Categorical:
    """One of A actions; outputs [..., A] are logits."""

    outputs: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The action whose logit plus Gumbel noise [..., A] is the largest, a sample (Gumbel 1954). → [...] int64"""
        return (self.outputs + noise).argmax(-1)

    def mode(self) -> Tensor:
        """The likeliest action. → [...] int64"""
        return self.outputs.argmax(-1)

    def logprob(self, actions: Tensor) -> Tensor:
        """log π of actions [...], in nats. → [...]"""
        logs = torch.log_softmax(self.outputs, -1)
        return logs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """−Σ π log π, in nats. → [...]"""
        logs = torch.log_softmax(self.outputs, -1)
        return -(logs.exp() * logs).sum(-1)


@dataclass(frozen=True)
class DiagonalGaussian:
    """A independent numbers; outputs [..., A] are means, log_std [A] is the same in every state.

    An action outside the environment's bounds is clipped before it is sent; its log-prob is that of the number that
    was sampled: clipping is part of the environment, and the policy is the Gaussian that its gradient assumes.
    """

    outputs: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """μ + σ · noise, standard normal noise [..., A]. → [..., A]"""
        return self.outputs + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean. → [..., A]"""
        return self.outputs

    def logprob(self, actions: Tensor) -> Tensor:
        """Σ −½ ((a − μ) / σ)² − log σ − ½ log 2π, in nats. actions [..., A] → [...]"""
        scaled = (actions - self.outputs) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Σ log σ + ½ log 2πe, in nats; it does not depend on the state. → [...]"""
        of_state = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return of_state.expand(self.outputs.shape[:-1])


Distribution = Categorical | DiagonalGaussian


def noise_for(continuous: bool, shape: tuple[int, ...], seed: int) -> Tensor:
    """The noise of `sample`: normal or Gumbel numbers, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    if continuous:
        return torch.randn(shape, generator=generator)
    return -torch.empty(shape).exponential_(generator=generator).log()
