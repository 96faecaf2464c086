"""From token ids to the text of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def response_text(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], stops: Sequence[str] = ()
) -> str:
    """The response as it reads after its prompt, without special tokens.

    Decoding the response alone would lose a leading space in SentencePiece-type tokenizers.

    Args:
        tokenizer: of the model.
        prompt: token ids before the response; none for an encoder–decoder, whose response is a text by itself.
        response: token ids.
        stops: the text is cut before the earliest of these.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **options)
    whole = tokenizer.decode([*prompt, *response], **options)
    text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(response), **options)
    position = stop_position(text, stops)
    return text if position is None else text[:position]


def stop_position(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, or None."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)
