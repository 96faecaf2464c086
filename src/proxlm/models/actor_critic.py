"""The four networks of PPO: policy, critic, reference, and how they share weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.config import ModelConfig
from proxlm.models.forward import TokenOutputs, response_states, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.types import Sequences


class ValueHead(nn.Module):
    """V(state) = w · h + b in float32, zero at the start (so V ≡ 0)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] → [...]."""
        with torch.autocast(states.device.type, enabled=False):
            return self.linear(states.float()).squeeze(-1)


@dataclass(eq=False)
class ActorCritic:
    """critic_trunk None: the critic is the value head on the policy's trunk (shared).

    reference None: the reference is the policy's base with its adapters off (LoRA).
    """

    policy: LanguageModel
    value_head: ValueHead
    critic_trunk: Any
    reference: LanguageModel | None

    @property
    def shared(self) -> bool:
        return self.critic_trunk is None

    def policy_outputs(self, sequences: Sequences, temperature: float, entropy: bool = False) -> TokenOutputs:
        """Log-probs, entropy and states of the response tokens under the policy."""
        return token_outputs(self.policy, sequences, temperature, entropy)

    def values(self, sequences: Sequences) -> Tensor:
        """V of the state before each response token, [R] float32, from the critic's own pass."""
        return self.value_head(self.critic_states(sequences)[0])

    def critic_states(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """The critic's states before each response token [R, H] and after each row's last token [B, H]."""
        return response_states(self.policy, sequences, self.critic_trunk)

    def reference_logprobs(self, sequences: Sequences, temperature: float) -> Tensor:
        """Log-probs of the response tokens under the reference, [R] float32; never with gradient."""
        with torch.no_grad():
            if self.reference is not None:
                return token_outputs(self.reference, sequences, temperature).logprobs
            with self.policy.without_adapters():
                return token_outputs(self.policy, sequences, temperature).logprobs

    def policy_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the policy's learning rate moves."""
        return self.policy.trainable()

    def critic_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the critic's learning rate moves: the value head, and a separate critic's trunk."""
        own = [] if self.critic_trunk is None else list(self.critic_trunk.named_parameters(prefix="trunk"))
        own += list(self.value_head.named_parameters(prefix="head"))
        return [(name, p) for name, p in own if p.requires_grad]


def load_actor_critic(config: ModelConfig) -> ActorCritic:
    """Load the policy and make its critic and reference as configured. Raises ModelError, ConfigError."""
    return make_actor_critic(load_language_model(config), config.critic)


def make_actor_critic(policy: LanguageModel, critic: str) -> ActorCritic:
    """A critic ("shared" or "separate") and a frozen reference for a policy at its starting point."""
    reference = None
    if policy.adapters is None:
        frozen = copy.deepcopy(policy.network).requires_grad_(False)
        reference = LanguageModel(
            frozen, policy.tokenizer, policy.device, policy.bfloat16, source=policy.source
        )
    trunk = copy.deepcopy(policy.trunk) if critic == "separate" else None
    return ActorCritic(policy, ValueHead(policy.hidden_size).to(policy.device), trunk, reference)
