"""A large model with a few of its blocks for a moment: what a comparison of two passes needs of it.

Blocks that are alike but for their weights say the same about how rows, positions and masks are treated. So the first
ones are enough, up to the last that is the first of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# A model of fewer parameters is compared whole; that takes a moment.
LARGE = 50_000_000
# A block's number, under the names that model types give it, is no difference in kind.
NUMBERS = {"layer_idx", "layer_id", "layer_number", "block_idx"}


@contextmanager
def few_blocks(network: nn.Module, large: int | None = None) -> Iterator[bool]:
    """Leave a large network its first blocks only while the block of code runs.

    Yields:
        Whether blocks are left out; False for a small network, or one whose blocks all differ.
    """
    places = (
        []
        if sum(p.numel() for p in network.parameters()) < (LARGE if large is None else large)
        else stacks(network)
    )
    cuts = [(parent, name, stack, _enough(stack)) for parent, name, stack in places]
    cuts = [cut for cut in cuts if cut[3] < len(cut[2])]
    try:
        for parent, name, stack, count in cuts:
            parent._modules[name] = nn.ModuleList(list(stack)[:count])
        yield bool(cuts)
    finally:
        for parent, name, stack, _ in cuts:
            parent._modules[name] = stack


def holds(network: nn.Module, check: Callable[[], bool]) -> bool:
    """Whether a check holds: of a large network with few blocks, or of all of them where it does not hold there."""
    with few_blocks(network) as cut:
        if cut:
            try:
                if check():
                    return True
            except (
                Exception
            ):  # a model that needs all its blocks; the whole one says what is wrong, if anything is
                pass
    return check()


def stacks(module: nn.Module) -> list[tuple[nn.Module, str, nn.ModuleList]]:
    """Every list of modules that is not inside another one: its parent, its name there, and itself."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            found.append((module, name, child))
        else:
            found += stacks(child)
    return found


def _enough(stack: nn.ModuleList) -> int:
    """How many of the first blocks have one of each kind among them, at least two."""
    kinds = [_kind(block) for block in stack]
    return max([2, *(kinds.index(kind) + 1 for kind in kinds)])


def _kind(block: nn.Module) -> str:
    """Modules, shapes and settings of a block; not its weights, nor its number."""
    parts = [
        (name, type(part).__name__, part.extra_repr(), _settings(part))
        for name, part in block.named_modules()
    ]
    return repr(parts)


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    plain = bool | int | float | str | None
    found = [(key, x) for key, x in vars(module).items() if isinstance(x, plain) and key not in NUMBERS]
    return sorted(found, key=lambda setting: setting[0])
