"""A model that its caller lends to a job: it comes back with other weights, and otherwise as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proxlm.models.adapters import POLICY, merged
from proxlm.models.language_model import LanguageModel

# What a job may change of a tokenizer.
_OF_TOKENIZER = ("chat_template", "truncation_side")


@contextmanager
def lent_network(network: Any, tokenizer: Any, wrapped: list[Any]) -> Iterator[None]:
    """Take a transformers model for the time of a block, and give it back when that ends, also by an error.

    Adapters that the block has put on it are then part of its weights.

    Args:
        network: The model.
        tokenizer: Its tokenizer.
        wrapped: The block adds what it makes of the network to this list, which is emptied: anything with `adapters`,
            PEFT's model around it or None.
    """
    device, attention = next(network.parameters()).device, network.config._attn_implementation
    with _as_it_was(network, tokenizer):
        try:
            yield
        finally:
            for model in wrapped:
                if model.adapters is not None:
                    merged(model.adapters)
            wrapped.clear()
            if network.config._attn_implementation != attention:
                network.set_attn_implementation(attention)
            network.to(device)


@contextmanager
def lent_language_model(model: LanguageModel) -> Iterator[None]:
    """The same for a LanguageModel: its own adapters stay beside its weights, and those of a critic go."""
    sets = set() if model.adapters is None else set(model.adapters.peft_config)
    with _as_it_was(model.network, model.tokenizer):
        try:
            yield
        finally:
            if model.adapters is not None:
                for name in model.adapters.peft_config.keys() - sets:
                    model.adapters.delete_adapter(name)
                model.adapters.set_adapter(POLICY)


@contextmanager
def _as_it_was(network: Any, tokenizer: Any) -> Iterator[None]:
    """Without gradients in the block; then with those it had, what learns, training mode, and settings.

    The block has to leave the network's modules and parameters as they are.
    """
    # Saving a model writes its class and precision into its configuration.
    settings = [
        (vars(x), dict(vars(x))) for x in (network.config, getattr(network, "generation_config", None)) if x
    ]
    learning = [(p, p.requires_grad, p.grad) for p in network.parameters()]
    training = [(module, module.training) for module in network.modules()]
    of_tokenizer = {name: getattr(tokenizer, name, None) for name in _OF_TOKENIZER}
    for p, _, _ in learning:
        p.grad = None
    try:
        yield
    finally:
        for p, learns, gradient in learning:
            p.requires_grad_(learns)
            p.grad = gradient
        for module, is_training in training:
            module.training = is_training
        for values, old in settings:
            values.clear()
            values.update(old)
        for name, value in of_tokenizer.items():
            if getattr(tokenizer, name, None) != value:
                setattr(tokenizer, name, value)
