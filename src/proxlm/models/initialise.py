"""What a new model has by name: the random numbers of its matrices, its activation and the ε of its norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.config import NewModelSettings
from proxlm.errors import ConfigError
from proxlm.models.residual import residual_modules
from proxlm.text import listed

# Names of a configuration's fields.
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def set_parts(config: Any, new: NewModelSettings, key: str = "new") -> None:
    """Put the activation and the ε of the norms into a transformers configuration.

    Raises:
        ConfigError: The model type has no field for one of them.
    """
    if new.activation != "type" and not _set_activation(config, new.activation):
        raise ConfigError(f"{key}.activation: {new.type} has no activation to choose; leave it out")
    if new.norm_eps:
        found = [name for name in _EPSILONS if isinstance(getattr(config, name, None), float)]
        if not found:
            raise ConfigError(f"{key}.norm_eps: {new.type} has no ε to choose; leave it out")
        for name in found:
            setattr(config, name, new.norm_eps)


def check_parts(network: Any, new: NewModelSettings, key: str = "new") -> None:
    """Raise ConfigError unless a network was built with the activation and the ε that its configuration says."""
    from transformers.activations import ACT2FN

    if new.activation != "type":
        kind = type(ACT2FN[new.activation])
        if not any(isinstance(module, kind) for module in network.modules()):
            raise ConfigError(
                f"{key}.activation: {new.type} builds its MLPs without {new.activation}; leave it out"
            )
    if new.norm_eps:
        found = [_epsilon(module) for module in network.modules()]
        if other := [eps for eps in found if eps is not None and eps != new.norm_eps]:
            raise ConfigError(
                f"{key}.norm_eps: {new.type} has norms with {other[0]:g} all the same; leave it out"
            )


@torch.no_grad()
def initialise(network: nn.Module, new: NewModelSettings, key: str = "new") -> None:
    """Give the weights of a new network numbers by the name of `new.initialisation`.

    Matrices of linear layers follow it, their biases are 0, embeddings (and a head tied to one) are normal with
    `new.std`. Norms stay as they are. Of an LSTM each gate's matrix is one of its own, and its biases stay.

    Raises:
        ConfigError: The type has other matrices, or `new.scale_residual` does not know where its residual stream is.
    """
    if new.initialisation == "type":
        return
    from transformers.pytorch_utils import Conv1D

    done = set[int]()

    def fill(p: Tensor, function: Callable[[Tensor], object], matrix: Tensor | None = None) -> None:
        if id(p) not in done:
            function(p if matrix is None else matrix)
        done.add(id(p))

    embed, draw = partial(nn.init.normal_, std=new.std), _drawing(new)
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            fill(module.weight, embed)
            if module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    for module in network.modules():
        if isinstance(module, nn.Linear | Conv1D):
            fill(module.weight, draw, module.weight.T if isinstance(module, Conv1D) else None)
            if module.bias is not None:
                fill(module.bias, nn.init.zeros_)
        elif isinstance(module, nn.LSTM):
            for p in module.parameters():
                if p.dim() == 2:
                    fill(p, lambda gates: [draw(gate) for gate in gates.chunk(4)])
    if other := [name for name, p in network.named_parameters() if p.dim() > 1 and id(p) not in done]:
        raise ConfigError(
            f"{key}.initialisation: {new.type} has weights that are no linear layers ({listed(other, most=2)}); leave"
            " it out"
        )
    if new.scale_residual:
        _scale_residual(network, new, key)


def _drawing(new: NewModelSettings) -> Callable[[Tensor], object]:
    """What fills a matrix [out, in] by the name; He's for ReLU, with the number of inputs."""
    functions: dict[str, Callable[[Tensor], object]] = {
        "normal": partial(nn.init.normal_, std=new.std),
        "xavier-uniform": nn.init.xavier_uniform_,
        "xavier-normal": nn.init.xavier_normal_,
        "he-uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
        "he-normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    }
    return functions[new.initialisation]


def _scale_residual(network: nn.Module, new: NewModelSettings, key: str) -> None:
    """Divide the matrices that add to the residual stream of a stack of blocks by the root of their number."""
    blocks = residual_modules(network)
    for added in blocks:
        number = sum(map(len, added))
        if {len(modules) for modules in added} != {number // len(added)} or number < 2 * len(added):
            break
        for weight in (module.weight for modules in added for module in modules):
            assert isinstance(weight, Tensor)
            weight.div_(math.sqrt(number))
    else:
        if blocks:
            return
    raise ConfigError(
        f"{key}.scale_residual: it is not known which matrices of {new.type} add to its residual stream; set it to"
        " false"
    )


def _set_activation(config: Any, name: str) -> bool:
    """Whether the configuration has a field for the activation, which is then set."""
    if isinstance(gated := getattr(config, "feed_forward_proj", None), str):  # T5, which reads dense_act_fn
        config.feed_forward_proj = f"gated-{name}" if gated.startswith("gated-") else name
        config.dense_act_fn = "gelu_new" if config.feed_forward_proj == "gated-gelu" else name
        return True
    field = next((field for field in _ACTIVATIONS if isinstance(getattr(config, field, None), str)), None)
    if field is not None:
        setattr(config, field, name)
    return field is not None


def _epsilon(module: nn.Module) -> float | None:
    """The ε of a norm; None: it is none."""
    if "norm" not in type(module).__name__.lower():
        return None
    found: Any = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found
