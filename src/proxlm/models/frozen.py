"""Which parts of a model learn: its top blocks alone, or all but what patterns name; and how many blocks never do.

The blocks below the lowest one that learns, and the embeddings under them, compute the same states in every pass of
policy, reference and critic. So the states behind them are computed once for a token (`Sequences.frozen_states`), and
every pass starts there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from proxlm.errors import ConfigError
from proxlm.kernels.block_layouts import has_layout, layout_of
from proxlm.models.few_blocks import stacks
from proxlm.text import listed

if TYPE_CHECKING:
    from proxlm.models.language_model import LanguageModel


def freeze(network: Any, train_layers: int = 0, patterns: Sequence[str] = ()) -> None:
    """Let only a part of a network learn.

    Args:
        network: A transformers model.
        train_layers: How many of its top blocks learn, and nothing else; 0: all.
        patterns: Of names of weights that do not learn (`fnmatch`).

    Raises:
        ConfigError: There are fewer blocks, a pattern fits no weight, or nothing is left to learn.
    """
    if train_layers:
        learning = {id(p) for _, block in top_blocks(network, train_layers) for p in block.parameters()}
        for p in network.parameters():
            p.requires_grad_(id(p) in learning)
    names = dict(network.named_parameters())
    for pattern in patterns:
        found = [p for name, p in names.items() if fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(
                f'model.freeze: "{pattern}" fits no weight of the model; they have names like'
                f" {listed(list(names), most=3)}, and * stands for anything"
            )
        for p in found:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in names.values()):
        raise ConfigError(f"model.freeze: {listed(list(patterns), most=3)} leaves no weight that learns")


def learns_so(model: LanguageModel, train_layers: int, patterns: Sequence[str]) -> bool:
    """Whether just what these settings leave learns in a loaded model; with patterns, no weight that they name.

    Raises ConfigError for more blocks than the model has.
    """
    learning = model.trainable()
    if any(fnmatchcase(name, pattern) for name, _ in learning for pattern in patterns):
        return False
    if not train_layers:
        return not patterns or len(learning) < len(list(model.network.parameters()))
    blocks = [block for _, block in top_blocks(model.network, train_layers)]
    return _any(blocks[:1], {id(p) for _, p in learning}) and {id(p) for _, p in learning} <= {
        id(p) for block in blocks for p in block.parameters()
    }


def top_blocks(network: Any, count: int) -> list[tuple[str, nn.Module]]:
    """The top `count` blocks of a network with their names; of an encoder–decoder, the decoder's.

    Raises:
        ConfigError: It has no more blocks than that, or none.
    """
    found = stacks(network)
    if network.config.is_encoder_decoder:
        inside = {id(module) for module in network.get_decoder().modules()}
        found = [stack for stack in found if id(stack[2]) in inside]
    blocks: nn.ModuleList = max((stack for _, _, stack in found), key=len, default=nn.ModuleList())
    if count >= len(blocks):
        has = f"has {len(blocks)} blocks" if len(blocks) else "has no blocks"
        raise ConfigError(
            f"model.train_layers = {count}: the model {has}; set it to fewer, or to 0 to train all of it"
        )
    name = next(name for name, module in network.named_modules() if module is blocks)
    return [(f"{name}.{i}", blocks[i]) for i in range(len(blocks) - count, len(blocks))]


def frozen_blocks(model: LanguageModel) -> int:
    """How many of the first blocks never learn, the embeddings below them included; at most all but one.

    0 for a model type that proxlm's own passes do not know: its passes cannot start in the middle.
    """
    if not has_layout(model.network.config):
        return 0
    # PEFT marks adapters that are not active as frozen, so theirs is no sign of what learns.
    adapted = model.adapters is not None
    learning = {
        id(p)
        for name, p in model.network.named_parameters()
        if ("lora_" in name if adapted else p.requires_grad)
    }
    layout = layout_of(model.trunk)
    if _any(layout.embeddings, learning):
        return 0
    below = 0
    while below < len(layout.blocks) - 1 and not _any([layout.blocks[below].layer], learning):
        below += 1
    return below


def _any(modules: Iterable[Any], learning: set[int]) -> bool:
    return any(id(p) in learning for module in modules for p in module.parameters())


def shares_frozen_blocks(model: LanguageModel, trunk: Any) -> bool:
    """Whether a trunk begins with the very weights of the model's embeddings and frozen blocks."""
    if trunk is model.trunk:
        return True
    if trunk.config.model_type != model.network.config.model_type:
        return False
    own, other = layout_of(model.trunk), layout_of(trunk)
    pairs = [*zip(own.embeddings, other.embeddings, strict=True)]
    pairs += [(a.layer, b.layer) for a, b in zip(own.blocks, other.blocks, strict=False)][
        : model.frozen_blocks
    ]
    return all(p is q for a, b in pairs for p, q in zip(a.parameters(), b.parameters(), strict=False))
