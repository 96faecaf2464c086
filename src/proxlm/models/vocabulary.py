"""New tokens for a model: each begins as the mean of the pieces that its text had before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proxlm.config.signature import checked
from proxlm.data.new_tokens import pieces_of
from proxlm.data.tokenizer import decode
from proxlm.errors import ConfigError, ModelError
from proxlm.models.language_model import LanguageModel
from proxlm.text import reason_of, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@checked()
def extend_vocabulary(model: LanguageModel, tokens: Sequence[str]) -> list[str]:
    """Add tokens to a model and its tokenizer, in place.

    The new rows of the embedding, and of the output head where it has weights of its own, are the means of the rows
    of the tokens that the text was spelled in before (Hewitt 2021; Gee et al. 2022). All other rows stay as they are.

    Args:
        model: Without adapters.
        tokens: Texts. One that is a token already is left out. A new token is found wherever its text stands, also
            inside a longer word.

    Returns:
        The tokens that were added.

    Raises:
        ConfigError: A token is empty, or white space alone.
        ModelError: The model has adapters, or its embedding cannot grow.
    """
    if model.adapters is not None:
        raise ModelError(f"{model.source}: has adapters; merge them first, and extend what that gives")
    added = add_tokens(model.tokenizer, tokens)
    if added:
        _grow(model, added)
    return [*added]


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict[str, list[int]]:
    """Add tokens to a tokenizer; returns those that were new, with the ids that spelled them before.

    Raises:
        ConfigError: A token is empty, or a text around one would decode otherwise than before.
    """
    from tokenizers import AddedToken

    for token in tokens:
        if not token.strip():
            raise ConfigError(
                f"tokens: {shown(repr(token), 30)} is empty; a new token has a character that is seen"
            )
    wanted = list(dict.fromkeys(tokens))
    pieces = dict(zip(wanted, pieces_of(tokenizer, wanted), strict=True))
    unknown = tokenizer.unk_token_id
    new = {token: ids for token, ids in pieces.items() if len(ids) != 1 or ids == [unknown]}
    around = [f"a{token}b {token} c" for token in new]
    before = [_read_back(tokenizer, text) for text in around]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new])
    for token, text, old in zip(new, around, before, strict=True):
        if (read := _read_back(tokenizer, text)) not in (old, text):
            raise ConfigError(
                f"tokens: with the new token {shown(repr(token), 30)} this tokenizer reads {shown(repr(text), 40)}"
                f" back as {shown(repr(read), 40)}; leave it out"
            )
    return new


def _read_back(tokenizer: Tokenizer, text: str) -> str:
    return decode(tokenizer, pieces_of(tokenizer, [text])[0])


@torch.no_grad()
def _grow(model: LanguageModel, added: dict[str, list[int]]) -> None:
    network: Any = model.network
    ids = [int(model.tokenizer.convert_tokens_to_ids(token)) for token in added]
    if max(ids) >= network.get_input_embeddings().weight.shape[0]:
        try:
            network.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        except Exception as error:  # of a type's own code
            raise ModelError(f"{model.source}: its embedding cannot grow: {reason_of(error, 160)}") from error
    head = network.get_output_embeddings()
    rows: list[Tensor] = [network.get_input_embeddings().weight]
    if head is not None and head.weight.data_ptr() != rows[0].data_ptr():
        rows.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        rows.append(head.bias)
    for weight in rows:
        for id, pieces in zip(ids, added.values(), strict=True):
            weight[id] = weight[pieces].mean(0)
    model.agrees = "unknown"
