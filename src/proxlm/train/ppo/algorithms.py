"""From the names in the settings to the functions: advantages and policy losses, ours and the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from proxlm.config.algorithms import advantage_of, loss_of
from proxlm.config.ppo import PPOSettings
from proxlm.errors import ConfigError
from proxlm.rl.estimators import AdvantageInputs, Advantages
from proxlm.rl.losses import PolicyLoss
from proxlm.rl.policy_losses import LossInputs, measured
from proxlm.user_code import load, parse_reference

AdvantageFunction = Callable[[AdvantageInputs], Advantages]
LossFunction = Callable[[LossInputs], PolicyLoss]


@dataclass(frozen=True)
class Algorithm:
    """What `ppo.advantage` and `ppo.loss` stand for.

    Args:
        advantage: The estimator.
        loss: The policy's loss.
        critic: Whether values are used.
        whiten: Whether advantages are whitened.
        rowwise: A response's raw advantages do not depend on other responses.
        tokenwise: A token's loss does not depend on other tokens; such a loss gets spans of tokens, without offsets.
    """

    advantage: AdvantageFunction
    loss: LossFunction
    critic: bool
    whiten: bool
    rowwise: bool
    tokenwise: bool


def build_algorithm(
    ppo: PPOSettings, advantage: Callable[..., Any] | None = None, loss: Callable[..., Any] | None = None
) -> Algorithm:
    """The functions that the settings name, or those given here.

    Args:
        ppo: The settings.
        advantage: Takes AdvantageInputs and returns Advantages, or a tensor [R]; None: that of `ppo.advantage`.
        loss: Takes LossInputs and returns PolicyLoss, or a tensor [R]; None: that of `ppo.loss`.

    Raises:
        ConfigError: For a file or function that does not exist, or what is no function.
        UserCodeError: For a file that cannot be run.
    """
    for name, given in (("advantage", advantage), ("loss", loss)):
        if given is not None and not callable(given):
            raise ConfigError(
                f"{name}: expected a function, got {type(given).__name__}; a named one is set by ppo.{name}"
            )
    known = advantage_of("" if advantage is not None else ppo.advantage)
    known_loss = loss_of("" if loss is not None else ppo.loss)
    whiten = known.whiten if ppo.whiten_advantages == "auto" else ppo.whiten_advantages == "always"
    return Algorithm(
        advantage=_checked_advantage(advantage or _function("ppo.advantage", ppo.advantage, known.function)),
        loss=_checked_loss(loss or _function("ppo.loss", ppo.loss, known_loss.function)),
        critic=known.critic,
        whiten=whiten,
        rowwise=known.rowwise,
        tokenwise=known_loss.tokenwise,
    )


def _function(key: str, name: str, built_in: str) -> Callable[..., Any]:
    if reference := parse_reference(name):
        found: Any = load(key, reference)
        if not callable(found):
            raise ConfigError(f'{key} = "{name}": not a function')
        return found
    module, _, function = built_in.partition(":")
    return getattr(import_module(module), function)


def _checked_advantage(function: Callable[..., Any]) -> AdvantageFunction:
    """The function; a plain tensor is taken as advantages, and anything else is refused with a clear error."""

    def advantage(inputs: AdvantageInputs) -> Advantages:
        found = function(inputs)
        if isinstance(found, Tensor):
            found = Advantages(found, found + inputs.values)
        if not isinstance(found, Advantages) or any(t.shape != inputs.values.shape for t in found):
            raise ConfigError(
                f"ppo.advantage: {_name(function)} must return Advantages or a tensor of shape"
                f" {tuple(inputs.values.shape)}, one number for each response token; got {_shown(found)}"
            )
        return found

    return advantage


def _checked_loss(function: Callable[..., Any]) -> LossFunction:
    """The function; a plain tensor is taken as the loss, and anything else is refused with a clear error."""

    def loss(inputs: LossInputs) -> PolicyLoss:
        found = function(inputs)
        if isinstance(found, Tensor) and found.shape == inputs.logprobs.shape:
            found = measured(inputs, found)
        if not isinstance(found, PolicyLoss) or found.loss.shape != inputs.logprobs.shape:
            raise ConfigError(
                f"ppo.loss: {_name(function)} must return PolicyLoss or a tensor of shape"
                f" {tuple(inputs.logprobs.shape)}, one number for each response token; got {_shown(found)}"
            )
        return found

    return loss


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
