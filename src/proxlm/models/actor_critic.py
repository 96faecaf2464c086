"""The networks of PPO: policy, critic, reference, a teacher if there is one, and how they share weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.config import ModelSettings
from proxlm.models.adapters import CRITIC, add_critic_adapters, critic_adapters_active, reference_active
from proxlm.models.agreement import check_trunk
from proxlm.models.context import context_of
from proxlm.models.encoder_decoder import config_of
from proxlm.models.forward import TokenOutputs, response_states, token_outputs
from proxlm.models.frozen import freeze
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.models.teacher import load_teacher
from proxlm.models.value_head import ValueHead, bins_of, ensemble_of
from proxlm.models.value_model import read_value_model
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.rl.value_ensemble import ONE_HEAD, Ensemble
from proxlm.rl.value_histogram import ValueBins
from proxlm.types import Sequences

# What the names of a value head's parameters begin with.
HEAD = "head"


@dataclass(eq=False)
class ActorCritic:
    """The networks that a PPO step needs.

    Args:
        policy: What samples and learns.
        value_head: The critic's last layer; None: no critic.
        critic_trunk: The critic's own trunk; None: its value head reads the policy's.
        reference: The frozen policy that the KL is taken to; None: the policy's base with the adapters that it began
            with, new ones being off (LoRA).
        own_adapters: The critic is the policy's base with adapters of its own.
        teacher: The frozen model that the policy is distilled from; None: there is none. It shares nothing.
    """

    policy: LanguageModel
    value_head: ValueHead | None
    critic_trunk: Any
    reference: LanguageModel | None
    own_adapters: bool = False
    teacher: LanguageModel | None = None

    @property
    def critic_context(self) -> int | None:
        """The longest sequence in tokens that a trunk of the critic's own reads; None: no limit but the policy's."""
        return None if self.critic_trunk is None else context_of(config_of(self.critic_trunk)).limit

    @property
    def shared(self) -> bool:
        """Whether the critic is a value head on the policy's own states."""
        return self.value_head is not None and self.critic_trunk is None and not self.own_adapters

    def policy_outputs(
        self,
        sequences: Sequences,
        temperature: float,
        entropy: bool = False,
        mask: SamplingMask | None = None,
    ) -> TokenOutputs:
        """Log-probs, entropy and states of the response tokens under the policy, renormalised over a mask's sets."""
        return token_outputs(self.policy, sequences, temperature, entropy, mask)

    def value_of(self, states: Tensor) -> Tensor:
        """States [..., H] → V [...] float32; 0 without a critic."""
        return (
            states.new_zeros(states.shape[:-1]).float()
            if self.value_head is None
            else self.value_head(states)
        )

    def values(self, sequences: Sequences) -> Tensor:
        """V of the state before each response token, [R] float32, from a pass of the critic's own."""
        return self.value_of(self.critic_states(sequences)[0])

    def critic_states(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """The critic's states before each response token [R, H] and after each row's last token [B, H].

        A shared trunk's are without gradient: an update of the policy takes them from `policy_outputs`.
        """
        if self.own_adapters:
            with critic_adapters_active(self.policy):
                return response_states(self.policy, sequences)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.shared):
            return response_states(self.policy, sequences, self.critic_trunk)

    def reference_logprobs(
        self, sequences: Sequences, temperature: float, mask: SamplingMask | None = None
    ) -> Tensor:
        """Log-probs of the response tokens under the reference, [R] float32, without gradient.

        mask: the sets that the reference is renormalised over; None: the whole vocabulary.
        """
        with torch.no_grad():
            if self.reference is not None:
                return token_outputs(self.reference, sequences, temperature, mask=mask).logprobs
            with reference_active(self.policy):
                return token_outputs(self.policy, sequences, temperature, mask=mask).logprobs

    @torch.no_grad()
    def teacher_logprobs(
        self, sequences: Sequences, temperature: float, mask: SamplingMask | None = None
    ) -> Tensor:
        """Log-probs of the response tokens under the teacher, [R] float32; arguments as in `reference_logprobs`."""
        assert self.teacher is not None
        # Its tokens are the policy's, and its head may have more rows: no text has the tokens of those.
        rows = len(self.teacher.network.get_output_embeddings().weight)
        wider = None if mask is None else mask.over(rows)
        return token_outputs(self.teacher, sequences, temperature, mask=wider).logprobs

    @torch.no_grad()
    def move_reference(self, decay: float, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
        """reference ← decay · reference + (1 − decay) · policy, weight by weight.

        whole: gives the whole of a policy's weight that is sharded.
        """
        if self.reference is None:
            raise ValueError("with adapters the reference is the frozen base; it cannot move")
        moved = dict(self.policy.network.named_parameters())
        for name, p in self.reference.network.named_parameters():
            p.lerp_(whole(moved[name]), 1.0 - decay)

    def policy_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that the policy's optimiser updates, by name."""
        return self.policy.trainable()

    def critic_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that the critic's optimiser updates: the value head, and a trunk or adapters of its own."""
        trunk = [] if self.critic_trunk is None else list(self.critic_trunk.named_parameters(prefix="trunk"))
        head = [] if self.value_head is None else list(self.value_head.named_parameters(prefix=HEAD))
        # PEFT marks adapters that are not active as frozen, so theirs is no sign of what learns.
        adapters = self.policy.trainable(CRITIC) if self.own_adapters else []
        return [
            *((name, p) for name, p in trunk if p.requires_grad),
            *adapters,
            *((name, p) for name, p in head if p.requires_grad),
        ]


def load_actor_critic(config: ModelSettings, critic: bool = True) -> ActorCritic:
    """Load the policy, and make its reference and its critic; see `actor_critic_of`."""
    return actor_critic_of(load_language_model(config), config, critic)


def actor_critic_of(policy: LanguageModel, config: ModelSettings, critic: bool = True) -> ActorCritic:
    """Make the reference and the critic of a policy at its start, and load its teacher.

    Args:
        policy: The policy.
        config: The section [model]; critic and critic_from say what the critic is, and teacher what the teacher.
        critic: Whether there is one.

    Raises:
        ModelError: For a reward model that cannot be the critic, or a model that cannot be the teacher.
        ConfigError: For settings that do not fit the policy.
    """
    bins, ensemble = bins_of(config.value), ensemble_of(config.value)
    models = make_actor_critic(policy, config.critic if critic else "none", bins, ensemble)
    if config.critic_from:
        models = critic_from(models, config.critic_from, config.train_layers, bins, ensemble)
    return replace(models, teacher=load_teacher(policy, config)) if config.teacher else models


def make_actor_critic(
    policy: LanguageModel, critic: str, bins: ValueBins | None = None, ensemble: Ensemble = ONE_HEAD
) -> ActorCritic:
    """A critic and a frozen reference for a policy at its start.

    Args:
        policy: The policy; its weights are copied.
        critic: "shared", "separate", "adapter" or "none".
        bins: Of a categorical value head; None: it has one number.
        ensemble: How many value heads there are, and how their values become one.
    """
    reference = None
    # What never learns is there once: copies share it.
    shared: dict[int, Any] = {id(p): p for p in policy.network.parameters() if not p.requires_grad}
    if policy.adapters is None:
        frozen = copy.deepcopy(policy.network, dict(shared)).requires_grad_(False)
        reference = replace(policy, network=frozen)
    trunk = copy.deepcopy(policy.trunk, dict(shared)) if critic == "separate" else None
    head = None if critic == "none" else ValueHead(policy.hidden_size, bins, ensemble).to(policy.device)
    if critic == "adapter":
        add_critic_adapters(policy)
    return ActorCritic(policy, head, trunk, reference, own_adapters=critic == "adapter")


def critic_from(
    models: ActorCritic,
    path: str,
    train_layers: int = 0,
    bins: ValueBins | None = None,
    ensemble: Ensemble = ONE_HEAD,
) -> ActorCritic:
    """The critic starts as a saved one, or as a reward model: trunk and head (Ziegler et al. 2019).

    So V of the state after a text is at first the saved model's output. Its sizes may be others than the policy's.
    With train_layers only its top blocks learn, as the policy's.

    Raises:
        ModelError: It cannot be loaded, or does not fit the policy; see `read_value_model`.
    """
    policy = models.policy
    found = read_value_model(path, policy, bins, ensemble)
    if train_layers:
        freeze(found.network, train_layers)
    trunk = found.trunk.to(policy.device).eval()
    check_trunk(policy, trunk, f'model.critic_from = "{path}"')
    return replace(models, value_head=found.head.to(policy.device), critic_trunk=trunk)
