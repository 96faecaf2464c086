"""Magnitude pruning: the smallest weights of the blocks' matrices become 0 (Han et al. 2015), and stay it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from proxlm.config.compress import MagnitudeSettings
from proxlm.errors import ModelError
from proxlm.models.few_blocks import stacks
from proxlm.text import shown


def block_matrices(network: nn.Module) -> list[tuple[str, Tensor, bool]]:
    """The matrices of the linear layers inside the blocks: name, weight, and whether its rows are the inputs.

    Embeddings, the output head and norms are not among them.
    """
    from transformers.pytorch_utils import Conv1D

    stack_ids = {id(module) for _, _, stack in stacks(network) for module in stack.modules()}
    return [
        (f"{name}.weight", module.weight, isinstance(module, Conv1D))
        for name, module in network.named_modules()
        if id(module) in stack_ids and isinstance(module, nn.Linear | Conv1D)
    ]


@torch.no_grad()
def prune_magnitude(network: nn.Module, settings: MagnitudeSettings, source: str) -> None:
    """Set weights to 0, in place.

    Exactly ⌊sparsity · n⌋ of n weights, the smallest by size; among equal ones those that come first.

    Args:
        network: A transformers model.
        settings: How many, and among which they are the smallest.
        source: Where it came from, for messages.

    Raises:
        ModelError: It has no blocks with linear layers, or rows that are no multiple of four (2:4).
    """
    matrices = block_matrices(network)
    if not matrices:
        raise ModelError(f"{source}: no blocks with linear layers, whose weights could be pruned")
    if settings.pattern == "2:4":
        for name, weight, turned in matrices:
            _two_of_four(weight, turned, f"{source}: {shown(name, 60)}")
        return
    groups = [[w] for _, w, _ in matrices] if settings.scope == "matrix" else [[w for _, w, _ in matrices]]
    for weights in groups:
        sizes = torch.cat([w.abs().flatten() for w in weights])
        kept = torch.ones_like(sizes, dtype=torch.bool)
        kept[sizes.argsort(stable=True)[: int(settings.sparsity * len(sizes))]] = False
        for w, mask in zip(weights, kept.split([w.numel() for w in weights]), strict=True):
            w.mul_(mask.view_as(w))


def _two_of_four(weight: Tensor, turned: bool, what: str) -> None:
    """The two smaller ones of every four neighbours along the inputs become 0."""
    rows = weight.T if turned else weight
    if rows.shape[1] % 4:
        raise ModelError(f"{what} has {rows.shape[1]} inputs, no multiple of 4, which the pattern 2:4 needs")
    groups = rows.reshape(len(rows), -1, 4)
    order = groups.abs().argsort(dim=-1, stable=True)
    mask = torch.ones_like(groups).scatter_(-1, order[..., :2], 0.0).view_as(rows)
    weight.mul_(mask.T if turned else mask)


def share_of_zeros(network: nn.Module) -> float:
    """Which share of the weights of the blocks' matrices is 0."""
    weights = [w for _, w, _ in block_matrices(network)]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))


@contextmanager
def zeros_held(network: nn.Module) -> Iterator[None]:
    """Weights of the blocks' matrices that are 0 now are 0 again after every optimiser step while the code runs.

    It is the projection of every step on the weights that are left, whatever the optimiser.
    """
    masks = {id(w): (w != 0) for _, w, _ in block_matrices(network)}
    masks = {key: mask for key, mask in masks.items() if not bool(mask.all())}

    @torch.no_grad()
    def hold(optimiser: Any, _arguments: Any, _named: Any) -> None:
        for group in optimiser.param_groups:
            for p in group["params"]:
                if (mask := masks.get(id(p))) is not None:
                    p.mul_(mask.to(p.device))

    handle = register_optimizer_step_post_hook(hold)
    try:
        yield
    finally:
        handle.remove()
