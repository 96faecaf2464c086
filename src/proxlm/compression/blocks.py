"""Leaving out the blocks that change their states the least (ShortGPT, Men et al. 2024, arXiv 2403.03853)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.errors import ModelError
from proxlm.models.few_blocks import stacks


def the_blocks(network: nn.Module, source: str) -> tuple[str, nn.ModuleList]:
    """The one list of blocks of a decoder and its name. Raises ModelError if there is another number of them."""
    found = stacks(network)
    if len(found) != 1:
        raise ModelError(f"{source}: {len(found)} lists of blocks, where a decoder has one")
    _, _, stack = found[0]
    (name,) = [name for name, module in network.named_modules() if module is stack]
    return name, stack


@torch.no_grad()
def block_influence(network: Any, texts: Sequence[Sequence[int]], source: str) -> list[float]:
    """1 − the mean cosine between what goes into a block and what comes out, over all tokens; one number a block.

    Args:
        network: A decoder of transformers.
        texts: Token ids.
        source: Where it came from, for messages.
    """
    _, stack = the_blocks(network, source)
    sums, count = torch.zeros(len(stack), dtype=torch.float64), 0

    def listen(place: int) -> Any:
        def hook(_block: nn.Module, inputs: Any, output: Any) -> None:
            before, after = inputs[0], output[0] if isinstance(output, tuple) else output
            sums[place] += _cosines(before, after).sum()

        return hook

    handles = [block.register_forward_hook(listen(place)) for place, block in enumerate(stack)]
    try:
        for ids in texts:
            network(input_ids=torch.tensor([list(ids)], device=network.device), use_cache=False)
            count += len(ids)
    finally:
        for handle in handles:
            handle.remove()
    return [float(1 - one / count) for one in sums]


def _cosines(before: Tensor, after: Tensor) -> Tensor:
    return torch.cosine_similarity(before.double(), after.double(), dim=-1)


def without_blocks(network: Any, dropped: Sequence[int], source: str) -> Any:
    """A plain model of the same type without some blocks; the others keep their weights and order.

    Raises:
        ModelError: No block would be left.
    """
    name, stack = the_blocks(network, source)
    kept = [place for place in range(len(stack)) if place not in set(dropped)]
    if not kept:
        raise ModelError(f"{source}: has {len(stack)} blocks; blocks.drop must leave one at least")
    config = copy.deepcopy(network.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[place] for place in kept]
    places = {f"{name}.{old}.": f"{name}.{new}." for new, old in enumerate(kept)}
    gone = tuple(f"{name}.{place}." for place in range(len(stack)) if place not in kept)
    tensors = {}
    for key, tensor in network.state_dict().items():
        if not key.startswith(gone):
            old = next((old for old in places if key.startswith(old)), "")
            tensors[f"{places[old]}{key.removeprefix(old)}" if old else key] = tensor
    return rebuilt(network, config, tensors)


def rebuilt(network: Any, config: Any, tensors: dict[str, Tensor]) -> Any:
    """A model of the same class with another configuration and exactly these tensors."""
    made = type(network)(config).to(network.device).eval()
    made.load_state_dict(tensors, strict=True)
    if network.generation_config is not None:
        made.generation_config = copy.deepcopy(network.generation_config)
    return made
