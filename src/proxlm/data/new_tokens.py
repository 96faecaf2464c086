"""Which new tokens would save a tokenizer the most on a text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from proxlm.config.signature import checked
from proxlm.data.han import HAN
from proxlm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# A word takes the space before it along, as in the tokens of byte-level BPE.
_CANDIDATES = re.compile(rf"[{HAN}]| ?[^\W\d_{HAN}]+")
_HAN = re.compile(f"[{HAN}]")
_LEAST = 2  # times that a candidate stands in the text
_AT_ONCE = 4096


@checked()
def new_tokens(tokenizer: Any, texts: Iterable[str], count: int, han_only: bool = False) -> list[str]:
    """The words and Han characters of texts that cost a tokenizer the most tokens.

    What a candidate costs is its number of occurrences times the tokens that one token would save.

    Args:
        tokenizer: One of transformers.
        texts: Documents.
        count: The most new tokens.
        han_only: Han characters alone.

    Returns:
        The new tokens, the dearest first; fewer where fewer stand twice in the texts and are split.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise ConfigError("tokenizer: expected a tokenizer of transformers")
    found: Counter[str] = Counter()
    for text in texts:
        found.update((_HAN if han_only else _CANDIDATES).findall(text))
    frequent = [candidate for candidate, times in found.items() if times >= _LEAST]
    cost: dict[str, int] = {}
    for at in range(0, len(frequent), _AT_ONCE):
        group = frequent[at : at + _AT_ONCE]
        for candidate, pieces in zip(group, pieces_of(tokenizer, group), strict=True):
            if len(pieces) > 1 or tokenizer.unk_token_id in pieces:
                cost[candidate] = found[candidate] * max(1, len(pieces) - 1)
    return sorted(cost, key=lambda candidate: (-cost[candidate], candidate))[:count]


def pieces_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text by itself, without special tokens."""
    if not texts:
        return []
    encoded = tokenizer([*texts], add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]
