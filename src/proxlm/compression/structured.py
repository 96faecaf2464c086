"""Leaving out attention heads and channels of the MLP, the least important ones of every block.

How important a head or a channel is: the mean over tokens of |x · ∂loss/∂x|, where x is what it puts out before the
next matrix. That is by how much the loss would change, to first order, without it (Michel et al. 2019 for heads,
Molchanov et al. 2019 for channels).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.compression.blocks import rebuilt, the_blocks
from proxlm.config.compress import StructuredSettings
from proxlm.errors import ModelError

# The types whose blocks are Llama's (kernels/block_layouts.py) and whose configuration names the size of a head.
TYPES = ("llama", "mistral", "qwen2", "qwen3")
_MULTIPLE = 32


def importance(network: Any, texts: Sequence[Sequence[int]], source: str) -> list[tuple[Tensor, Tensor]]:
    """Of each block, how important its heads [Q] and its channels [I] are.

    Args:
        network: A decoder of one of TYPES.
        texts: Token ids, two or more each.
        source: Where it came from, for messages.

    Raises:
        ModelError: It is of another type.
    """
    if network.config.model_type not in TYPES:
        raise ModelError(
            f"{source}: model type {network.config.model_type}; heads and channels are left out of"
            f" {', '.join(TYPES)}; take method = blocks or magnitude"
        )
    stack: Any = the_blocks(network, source)[1]
    heads = network.config.num_attention_heads
    found = [
        (
            torch.zeros(heads, dtype=torch.float64),
            torch.zeros(b.mlp.down_proj.in_features, dtype=torch.float64),
        )
        for b in stack
    ]
    seen: dict[tuple[int, int], Tensor] = {}

    def listen(place: int, part: int) -> Any:
        def hook(_module: nn.Module, inputs: Any) -> None:
            inputs[0].retain_grad()
            seen[place, part] = inputs[0]

        return hook

    handles = [
        module.register_forward_pre_hook(listen(place, part))
        for place, block in enumerate(stack)
        for part, module in enumerate((block.self_attn.o_proj, block.mlp.down_proj))
    ]
    learning = [(p, p.requires_grad) for p in network.parameters()]
    try:
        for p, _ in learning:
            p.requires_grad_(False)
        for ids in texts:
            row = torch.tensor([list(ids)], device=network.device)
            states = network.get_input_embeddings()(row).detach().requires_grad_()
            logits = network(inputs_embeds=states, use_cache=False).logits[0, :-1]
            nn.functional.cross_entropy(logits.float(), row[0, 1:], reduction="sum").backward()
            for (place, part), x in seen.items():
                assert x.grad is not None
                product = (x * x.grad)[0].detach().double().cpu()
                if part == 0:  # of a head, what its numbers do together
                    product = product.view(len(ids), heads, -1).sum(-1)
                found[place][part].add_(product.abs().sum(0))
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
        for p, learns in learning:
            p.requires_grad_(learns)
    tokens = sum(len(ids) for ids in texts)
    return [(of_heads / tokens, of_channels / tokens) for of_heads, of_channels in found]


def kept_sizes(config: Any, settings: StructuredSettings) -> tuple[int, int]:
    """How many groups of heads and how many channels stay in every block.

    No more groups go than were asked for: transformers wants a width that is a multiple of the number of heads.
    """
    groups, channels = config.num_key_value_heads, config.intermediate_size
    share = config.num_attention_heads // groups
    asked = max(1, round(groups * (1 - settings.heads)))
    stay = next(n for n in range(asked, groups + 1) if n == groups or config.hidden_size % (n * share) == 0)
    multiple = _MULTIPLE if channels % _MULTIPLE == 0 else 1
    left = round(channels * (1 - settings.channels) / multiple) * multiple
    return stay, max(multiple, left)


@torch.no_grad()
def without_heads_and_channels(
    network: Any, found: Sequence[tuple[Tensor, Tensor]], settings: StructuredSettings, source: str
) -> Any:
    """A plain, smaller model of the same type: in every block the most important groups of heads, and channels.

    Args:
        network: The model.
        found: What `importance` gave.
        settings: Which shares are left out.
        source: Where it came from, for messages.

    Raises:
        ModelError: Nothing would be left out.
    """
    config = copy.deepcopy(network.config)
    if kept_sizes(config, settings) == (config.num_key_value_heads, config.intermediate_size):
        raise ModelError(
            f"{source}: nothing would be left out: its width of {config.hidden_size} must be a multiple of the heads"
            f" that stay, and channels go in steps of {_MULTIPLE}; raise structured.heads or structured.channels"
        )
    name, _ = the_blocks(network, source)
    groups, (kept_groups, kept_channels) = config.num_key_value_heads, kept_sizes(config, settings)
    share = config.num_attention_heads // groups
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.head_dim, config.intermediate_size = size, kept_channels
    config.num_key_value_heads, config.num_attention_heads = kept_groups, kept_groups * share
    tensors = dict(network.state_dict())
    for place, (heads, channels) in enumerate(found):
        group = _most(heads.view(groups, share).sum(1), kept_groups)
        query = _expanded(group, share * size)
        key, channel = _expanded(group, size), _most(channels, kept_channels)
        rows = {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": key}
        rows |= {"mlp.gate_proj": channel, "mlp.up_proj": channel}
        for part, index in rows.items():
            for end in ("weight", "bias"):
                if (full := f"{name}.{place}.{part}.{end}") in tensors:
                    tensors[full] = tensors[full][index]
        for part, index in (("self_attn.o_proj", query), ("mlp.down_proj", channel)):
            full = f"{name}.{place}.{part}.weight"
            tensors[full] = tensors[full][:, index]
    return rebuilt(network, config, tensors)


def _most(values: Tensor, count: int) -> Tensor:
    """The places of the `count` largest values in their order; of equal ones the first."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def _expanded(places: Tensor, width: int) -> Tensor:
    """Places of parts of `width` numbers → the places of these numbers."""
    return (places[:, None] * width + torch.arange(width)).flatten()
