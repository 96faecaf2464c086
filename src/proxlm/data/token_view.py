"""Tokens for people: a text with the boundaries of its tokens, and how long texts are in tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxlm.masking import masked
from proxlm.text import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Stands between two tokens; no tokenizer's own sign, and seldom in a text.
BOUNDARY = "│"
_INCOMPLETE = "\ufffd"
_BARS = 8


def boundaries(tokenizer: Tokenizer, ids: Sequence[int], most: int = 80) -> str:
    """A text as its tokens with a mark between two; control characters are spelled out, special tokens written.

    A character that several tokens make up stands once, with their number: 春(3).

    Args:
        tokenizer: The tokenizer.
        ids: The text's tokens.
        most: Of more tokens the middle is left out, and counted.
    """
    if len(ids) > most:
        head, tail = most * 2 // 3, most - most * 2 // 3
        left_out = f" … {len(ids) - most} tokens … "
        return boundaries(tokenizer, ids[:head], most) + left_out + boundaries(tokenizer, ids[-tail:], most)
    pieces: list[str] = []
    start = 0
    while start < len(ids):
        end, piece = start + 1, _text(tokenizer, ids[start : start + 1])
        while _INCOMPLETE in piece and end < len(ids) and end - start < 6:
            end += 1
            piece = _text(tokenizer, ids[start:end])
        if _INCOMPLETE in piece:  # no character at all
            end, piece = start + 1, str(tokenizer.convert_ids_to_tokens(ids[start]))
        pieces.append(visible(masked(piece)) + (f"({end - start})" if end - start > 1 else ""))
        start = end
    return BOUNDARY.join(pieces)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    # Behind a token, because SentencePiece leaves out the space of the first one.
    whole = tokenizer.decode([ids[0], *ids], clean_up_tokenization_spaces=False)
    first = tokenizer.decode([ids[0]], clean_up_tokenization_spaces=False)
    return whole.removeprefix(first) if whole.startswith(first) and len(whole) > len(first) else str(whole)


def lengths_in_words(lengths: Sequence[int], unit: str) -> list[str]:
    """How long texts are: quantiles, and a histogram in numbers. Two lines; none without lengths.

    Args:
        lengths: In tokens.
        unit: What is counted: "prompt".
    """
    if not lengths:
        return []
    ordered = sorted(lengths)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    lowest, highest = ordered[0], ordered[-1]
    quantiles = f"{unit}s of {lowest} to {highest} tokens, median {at(0.5)}, 95% up to {at(0.95)}, in all"
    width = max(1, -(-(highest - lowest + 1) // _BARS))
    parts = []
    for low in range(lowest, highest + 1, width):
        high = min(low + width - 1, highest)
        count = bisect_right(ordered, high) - bisect_right(ordered, low - 1)
        parts.append(f"{low}–{high}: {count:,}" if high > low else f"{low}: {count:,}")
    return [f"{quantiles} {sum(ordered):,}", "  ".join(parts)]
