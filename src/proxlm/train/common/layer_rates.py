"""How fast each weight learns: slower the deeper its block lies, or as patterns of names say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from proxlm.errors import ConfigError
from proxlm.text import listed

# A block's number: a part of the name by itself, or the layer of torch's recurrent modules.
_BLOCK = re.compile(r"\.(\d+)\.|\.\w+_l(\d+)$")
_EMBEDDINGS = ("embed", "wte", "wpe", "shared")
_HEADS = ("embed_out",)


def layer_rates(
    names: Iterable[str], decay: float, patterns: Mapping[str, float], section: str = "optim"
) -> dict[str, float]:
    """The multiple of the learning rate of each weight: decay^depth, times the factors of the patterns that fit it.

    The head and the final norm have depth 0, the topmost block that learns 1, the one below it 2, and the embeddings
    one more than the lowest block (Howard and Ruder 2018; Clark et al. 2020; as BEiT counts, Bao et al. 2022). Each
    stack of blocks, as the two of an encoder–decoder, is counted by itself.

    Args:
        names: Of the weights that learn.
        decay: The factor from a block to the one below it; 1: all alike.
        patterns: Factors by patterns of names (`fnmatch`).
        section: Of these settings, for messages.

    Raises:
        ConfigError: A pattern fits no name.
    """
    depths = _depths(list(names))
    rates = {name: decay**depth for name, depth in depths.items()}
    for pattern, factor in patterns.items():
        found = [name for name in rates if fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(
                f'{section}.rates: "{pattern}" fits no weight that learns; they have names like'
                f" {listed(list(rates), most=3)}, and * stands for anything"
            )
        for name in found:
            rates[name] *= factor
    return rates


def _depths(names: list[str]) -> dict[str, int]:
    """How deep each weight lies below the head."""
    places = {name: (name[: found.start()], int(found[1] or found[2])) for name in names
              if (found := _BLOCK.search(name))}  # fmt: skip
    tops = dict[str, int]()
    for stack, number in places.values():
        tops[stack] = max(number, tops.get(stack, 0))
    depths = {name: tops[stack] - number + 1 for name, (stack, number) in places.items()}
    below = max(depths.values(), default=0) + 1
    return {name: depths.get(name, below if _is_embedding(name) else 0) for name in names}


def _is_embedding(name: str) -> bool:
    return any(x in name for x in _EMBEDDINGS) and not any(x in name for x in _HEADS)
