"""Small policies and critics: tanh layers with orthogonal weights, and an LSTM if memory is needed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from proxlm.config import NetworkSettings
from proxlm.control.distributions import Categorical, DiagonalGaussian, Distribution
from proxlm.control.spaces import Spaces

LSTMState = tuple[Tensor, Tensor]
"""An LSTM's hidden and cell state, [B, H] each."""


class Segments(NamedTuple):
    """Which steps belong together: offsets [B + 1], and the LSTM's state before each segment's first step."""

    offsets: Tensor
    state: LSTMState


def segments_for(offsets: Tensor, state: LSTMState | None) -> Segments | None:
    """The segments for a network with this state; None for one without an LSTM, which needs none."""
    return None if state is None else Segments(offsets, state)


class Trunk(nn.Module):
    """Observations → features: `layers` of Linear and tanh, then an LSTM if it has units."""

    def __init__(self, inputs: int, config: NetworkSettings, generator: torch.Generator) -> None:
        super().__init__()
        widths = [inputs] + [config.width] * config.layers
        self.layers = nn.ModuleList(
            orthogonal(nn.Linear(a, b), math.sqrt(2), generator) for a, b in pairwise(widths)
        )
        self.lstm = nn.LSTM(config.width, config.lstm) if config.lstm else None
        self.features = config.lstm or config.width
        if self.lstm is not None:
            for name, p in self.lstm.named_parameters():
                if "weight" in name:
                    nn.init.orthogonal_(p, generator=generator)
                else:
                    nn.init.zeros_(p)

    def forward(self, x: Tensor, segments: Segments | None = None) -> tuple[Tensor, LSTMState | None]:
        """Features [R, F] of observations [R, D], and the LSTM's state after each segment [B, H].

        Without an LSTM, x may have any shape [..., D] and segments are not used.
        """
        for layer in self.layers:
            x = torch.tanh(layer(x))
        if self.lstm is None:
            return x, None
        if segments is None:
            raise ValueError("an LSTM needs to know which steps belong together")
        lengths = segments.offsets[1:] - segments.offsets[:-1]
        h, c = (part.unsqueeze(0) for part in segments.state)
        if len(x) == len(lengths):  # every segment has one step, as while acting
            out, (h, c) = self.lstm(x.unsqueeze(0), (h, c))
            return out.squeeze(0), (h.squeeze(0), c.squeeze(0))
        packed = pack_sequence(list(torch.split(x, lengths.tolist())), enforce_sorted=False)
        out, (h, c) = self.lstm(packed, (h, c))
        return torch.cat(unpack_sequence(out)), (h.squeeze(0), c.squeeze(0))


class Agent(nn.Module):
    """A policy and a critic. With a shared critic both heads use the policy's trunk.

    Heads: the policy's initial weights are a hundredth of the usual size, so that the first policy is nearly uniform
    (Andrychowicz et al. 2021); the value head's have gain 1.
    """

    def __init__(self, spaces: Spaces, config: NetworkSettings, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.continuous, self.units = spaces.continuous, config.lstm
        self.policy_trunk = Trunk(spaces.observation, config, generator)
        self.policy_head = orthogonal(nn.Linear(self.policy_trunk.features, spaces.action), 0.01, generator)
        self.critic_trunk = (
            Trunk(spaces.observation, config, generator) if config.critic == "separate" else None
        )
        self.critic_head = orthogonal(nn.Linear(self.policy_trunk.features, 1), 1.0, generator)
        if spaces.continuous:
            self.policy_log_std = nn.Parameter(torch.full((spaces.action,), config.log_std))

    def initial_state(self, count: int) -> LSTMState:
        """The LSTM's state at the beginning of `count` episodes."""
        return torch.zeros(count, self.units), torch.zeros(count, self.units)

    def act(self, x: Tensor, segments: Segments | None) -> tuple[Distribution, LSTMState | None]:
        """The distribution over actions for observations [R, D], and the state after each segment."""
        features, state = self.policy_trunk(x, segments)
        return self._distribution(features), state

    def value(self, x: Tensor, segments: Segments | None) -> tuple[Tensor, LSTMState | None]:
        """V [R] of observations [R, D], and the critic's state after each segment."""
        features, state = (self.critic_trunk or self.policy_trunk)(x, segments)
        return self.critic_head(features).squeeze(-1), state

    def both(
        self, x: Tensor, policy: Segments | None, critic: Segments | None
    ) -> tuple[Distribution, Tensor]:
        """Distribution and V of the same observations; a shared trunk is run once."""
        features, _ = self.policy_trunk(x, policy)
        seen = features if self.critic_trunk is None else self.critic_trunk(x, critic)[0]
        return self._distribution(features), self.critic_head(seen).squeeze(-1)

    def _distribution(self, features: Tensor) -> Distribution:
        outputs = self.policy_head(features)
        return DiagonalGaussian(outputs, self.policy_log_std) if self.continuous else Categorical(outputs)

    def parameters_of(self, part: str) -> list[tuple[str, nn.Parameter]]:
        """The named parameters of the "policy" or the "critic"."""
        return [(name, p) for name, p in self.named_parameters() if name.startswith(f"{part}_")]


def orthogonal(layer: nn.Linear, gain: float, generator: torch.Generator) -> nn.Linear:
    """Orthogonal weights (Saxe et al. 2014) times `gain`, biases of 0."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
