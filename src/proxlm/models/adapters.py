"""LoRA adapters (Hu et al. 2021) by PEFT: the policy's, and the critic's on the same frozen base.

A model with adapters keeps one copy of its base. The policy's adapters and the critic's are sets of PEFT's with names
of their own, of which one is active at a time; the reference is the base with all of them off.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from proxlm.config import LoraSettings
from proxlm.errors import ConfigError
from proxlm.text import reason_of

if TYPE_CHECKING:
    from proxlm.models.language_model import LanguageModel

# PEFT's names of the sets of adapters.
POLICY, CRITIC = "default", "critic"


def add_lora(model: LanguageModel, lora: LoraSettings) -> LanguageModel:
    """Freeze the base and put rank-r adapters on its linear layers; the output head is left out by default.

    Args:
        model: Its network gets PEFT's layers, in place.
        lora: Rank, alpha and targets.

    Returns:
        The model with its adapters.

    Raises:
        ConfigError: PEFT is not installed, or the model has no layer of the targets.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError('model.lora needs PEFT: pip install "proxlm[lora]"') from error
    from transformers.pytorch_utils import Conv1D

    head = model.network.get_output_embeddings()
    if not lora.targets and not any(
        isinstance(module, nn.Linear | Conv1D) and module is not head for module in model.network.modules()
    ):
        model_type = model.network.config.model_type
        raise ConfigError(
            f"model.lora: model type {model_type} has no linear layer but its output head for adapters to sit on;"
            " set model.lora.rank = 0"
        )
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets) or "all-linear",
        task_type="SEQ_2_SEQ_LM" if model.encoder_decoder else "CAUSAL_LM",
        # GPT-2 keeps its weights as [in, out].
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.network.modules()),
    )
    try:
        adapted = peft.get_peft_model(model.network, settings)
    except ValueError as error:
        raise ConfigError(f"model.lora.targets = {lora.targets}: {reason_of(error)}") from error
    return replace(model, adapters=adapted.eval())


def add_critic_adapters(model: LanguageModel) -> None:
    """Add a second set of adapters with the policy's settings, for the critic; at the start they change nothing."""
    model.adapters.add_adapter(CRITIC, copy.deepcopy(model.adapters.peft_config[POLICY]))
    model.adapters.eval()
    require_gradients(p for _, p in model.trainable() + model.trainable(CRITIC))


@contextlib.contextmanager
def critic_adapters_active(model: LanguageModel) -> Iterator[None]:
    """The critic's adapters instead of the policy's, in this block; both stay trainable."""
    trainable = [p for _, p in model.trainable() + model.trainable(CRITIC)]
    model.adapters.set_adapter(CRITIC)
    try:
        require_gradients(trainable)
        yield
    finally:
        model.adapters.set_adapter(POLICY)
        require_gradients(trainable)


@contextlib.contextmanager
def adapters_off(model: LanguageModel) -> Iterator[None]:
    """The bare base, bit for bit, in this block: the reference of a policy with LoRA."""
    with model.adapters.disable_adapter() if model.adapters is not None else contextlib.nullcontext():
        yield


def adapter_parameters(network: Any, name: str) -> list[tuple[str, nn.Parameter]]:
    """The named parameters of one set of adapters."""
    return [(key, p) for key, p in network.named_parameters() if f".{name}." in key and "lora_" in key]


def require_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Undo what PEFT does when it switches between sets: it freezes those that are not active."""
    for p in parameters:
        p.requires_grad_(True)
