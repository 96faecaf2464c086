"""Training examples for the supervised jobs: packed blocks of text, and responses with a loss mask."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxlm.config import TextSettings
from proxlm.data.chat import ChatFormat, encode_rendered
from proxlm.data.documents import Documents
from proxlm.data.formats import Conversation, training_content
from proxlm.data.messages import Message
from proxlm.data.on_disk import NumbersOnDisk
from proxlm.data.records import Source, iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tokenizer import (
    encode_continuation,
    encode_document_parts,
    encode_documents,
    encode_prompt,
    encode_source,
    encode_target,
)
from proxlm.errors import BadRecordError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_DOCUMENTS_AT_ONCE = 1024
_BYTES_AT_ONCE = 2**18
_log = logging.getLogger(__name__)
_Content = tuple[str, str] | Conversation


@dataclass(frozen=True)
class SFTExample:
    """A prompt and its response, which ends with EOS.

    Attributes:
        prompt_ids: The prompt's token ids.
        response_ids: The response's token ids.
        loss_mask: Aligned with response_ids: True for the tokens that the model learns to generate.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]


def pretrain_blocks(tokenizer: Tokenizer, texts: Sequence[str], block: int) -> Tensor:
    """Documents joined as BOS text EOS BOS text EOS ..., cut into blocks, [n, block] int32, kept on disk.

    There is a BOS only if the tokenizer puts one. A document of more than 256 KiB is encoded in parts
    (Documents.parts). The tokens after the last whole block, fewer than `block`, are left out and their number is
    logged. Raises DataError if there is not even one whole block.
    """
    stream = NumbersOnDisk(torch.int32)
    for ids in _encoded(tokenizer, texts if isinstance(texts, Documents) else Documents(texts)):
        stream.extend(ids)
    count, left_over = divmod(len(stream), block)
    if count == 0:
        raise DataError(
            f"the text has {len(stream)} tokens, less than one block of {block}; give more text"
            " or a lower train.block"
        )
    if left_over:
        _log.info("packed %d tokens in blocks of %d; left out at the end: %d", len(stream), block, left_over)
    return stream.tensor()[: count * block].view(count, block)


def _encoded(tokenizer: Tokenizer, documents: Documents) -> Iterator[list[int]]:
    """Token ids of all documents, a document or a part of a long one at a time."""
    waiting: list[str] = []
    size = 0
    for i in range(len(documents)):
        if waiting and (len(waiting) == _DOCUMENTS_AT_ONCE or size + documents.size(i) > _BYTES_AT_ONCE):
            yield from encode_documents(tokenizer, waiting)
            waiting, size = [], 0
        if documents.size(i) > _BYTES_AT_ONCE:
            yield from encode_document_parts(tokenizer, documents.parts(i, _BYTES_AT_ONCE))
        else:
            waiting.append(documents[i])
            size += documents.size(i)
    yield from encode_documents(tokenizer, waiting)


def sft_examples(
    text: TextSettings,
    paths: Sequence[Source],
    tokenizer: Tokenizer,
    max_tokens: int,
    encoder_decoder: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[SFTExample | None]:
    """The files' records as training examples.

    formats.py says what a record may hold. The response of a conversation begins with the assistant's first turn.
    Messages after its last turn are not used. Records of weight 0 are left out.

    Args:
        text: The section [text].
        paths: The files.
        tokenizer: The model's.
        max_tokens: The longest prompt and response together; of an encoder–decoder, each by itself.
        encoder_decoder: Whether the model is an encoder–decoder.
        skipped: Receives bad records; by default the first one raises its error.

    Yields:
        An example, or None for a record that record_texts yields but that makes no example.

    Raises:
        DataError: With file and line.
    """
    skipped = skipped if skipped is not None else Skipped()
    chat = ChatFormat.of(tokenizer, text)
    for record, content in _contents(text, paths, skipped):
        example = None
        with skipped.judging(record):
            made = _example(content, chat, encoder_decoder, record)
            _check_lengths(made, max_tokens, encoder_decoder, record.where)
            example = made
        yield example


def record_texts(
    text: TextSettings, paths: Sequence[Source], skipped: Skipped | None = None
) -> Iterator[tuple[str, ...]]:
    """The texts to train a new tokenizer on: each record's prompt and response, or all its messages."""
    for _, content in _contents(text, paths, skipped if skipped is not None else Skipped()):
        if isinstance(content, tuple):
            yield content
        else:
            yield tuple(message["content"] or "" for message in content.messages)


def _contents(
    text: TextSettings, paths: Sequence[Source], skipped: Skipped
) -> Iterator[tuple[Record, _Content]]:
    """The usable records, and the content of each."""
    if not paths:
        raise DataError("text.train: no file was given")
    for path in paths:
        for record in iter_records(path, skipped):
            content: _Content | None = None
            with skipped.judging(record):
                content = training_content(record, text)
                if content is None:
                    skipped.leave_out(record, "weight 0", "its weight is 0")
            if content is not None:
                yield record, content


def _check_lengths(example: SFTExample, max_tokens: int, encoder_decoder: bool, where: str) -> None:
    length = len(example.prompt_ids) + len(example.response_ids)
    if encoder_decoder:  # the start token stands before the response
        length = max(len(example.prompt_ids), len(example.response_ids) + 1)
    if not example.prompt_ids:
        raise BadRecordError(f"{where}: the prompt has no tokens", "empty")
    if length > max_tokens:
        what = "in prompt or response" if encoder_decoder else "with the response"
        raise BadRecordError(
            f"{where}: {length} tokens {what}, the limit is {max_tokens}; shorten it", "over the length limit"
        )


def _example(content: _Content, chat: ChatFormat, encoder_decoder: bool, record: Record) -> SFTExample:
    tokenizer = chat.tokenizer
    if not isinstance(content, tuple):
        return _conversation(content, chat, record.where)
    prompt, response = content
    if encoder_decoder:
        target = encode_target(tokenizer, response)
        return SFTExample(tuple(encode_source(tokenizer, prompt)), tuple(target), (True,) * len(target))
    ids = encode_continuation(tokenizer, response)
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return SFTExample(tuple(encode_prompt(tokenizer, prompt)), tuple(ids), (True,) * len(ids))


def _conversation(content: Conversation, chat: ChatFormat, where: str) -> SFTExample:
    """A conversation as an example: the tokens that each turn of the assistant adds are those to learn, unless its
    weight is 0.

    They are found by rendering longer and longer prefixes of the conversation. That is right only if the tokens of
    each prefix are a prefix of the next one's, which is checked.
    """
    tokenizer, messages = chat.tokenizer, content.messages
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise BadRecordError(f"{where}: the conversation has no turn of the assistant", "malformed messages")
    if turns[0] == 0:
        reason = f"{where}: the conversation begins with the assistant, so there is no prompt"
        raise BadRecordError(reason, "malformed messages")

    def encoded(part: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        text = chat.render(part, where, add_generation_prompt=add_generation_prompt, extras=content.extras)
        return encode_rendered(tokenizer, text)

    ids: list[int] = []
    mask: list[bool] = []
    for turn in turns:
        before = encoded(messages[:turn], add_generation_prompt=True)
        after = encoded(messages[: turn + 1], add_generation_prompt=False)
        if before[: len(ids)] != ids or after[: len(before)] != before:
            raise BadRecordError(
                f"{where}: the chat template renders what comes before message {turn + 1} differently"
                " without it, so the message's own tokens cannot be identified; use another chat_template",
                "refused by the chat template",
            )
        if turn == turns[0]:
            prompt_length = len(before)
        own = _own_tokens(after[len(before) :], tokenizer.eos_token_id)
        learnt = [is_own and content.weights[turn] == 1 for is_own in own]
        mask += [False] * (len(before) - len(ids)) + learnt
        ids = after
    # Without what the template writes after the end of the last turn.
    while len(mask) > prompt_length and not mask[-1]:
        ids, mask = ids[:-1], mask[:-1]
    if ids[-1] != tokenizer.eos_token_id:
        ids, mask = [*ids, tokenizer.eos_token_id], [*mask, True]
    return SFTExample(tuple(ids[:prompt_length]), tuple(ids[prompt_length:]), tuple(mask[prompt_length:]))


def _own_tokens(turn: Sequence[int], eos: int) -> list[bool]:
    """Which tokens of a rendered turn the model generates: those up to its EOS; all, if the template writes none."""
    end = max((i for i, token in enumerate(turn) if token == eos), default=len(turn) - 1)
    return [i <= end for i in range(len(turn))]
