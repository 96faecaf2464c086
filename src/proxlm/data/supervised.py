"""Training examples for the supervised jobs: packed blocks of text, and responses with a loss mask."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxlm.config import TextSettings
from proxlm.data.assistant_turns import encode_turns, find_turns
from proxlm.data.chat import ChatFormat, encode_rendered
from proxlm.data.documents import Documents
from proxlm.data.formats import Conversation, training_content
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
from proxlm.data.turn_end import TurnEnd, turn_end_of
from proxlm.errors import BadRecordError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_DOCUMENTS_AT_ONCE = 1024
_BYTES_AT_ONCE = 2**18
# A conversation of so many messages is measured before its turns are looked for.
_MANY_MESSAGES = 64
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
    for ids in encoded(tokenizer, texts if isinstance(texts, Documents) else Documents(texts)):
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


def encoded(tokenizer: Tokenizer, documents: Documents) -> Iterator[list[int]]:
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
    eos: Collection[int] = (),
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
        eos: EOS tokens of the model's generation config.

    Yields:
        An example, or None for a record that record_texts yields but that makes no example.

    Raises:
        DataError: With file and line.
    """
    skipped = skipped if skipped is not None else Skipped()
    chat = ChatFormat.of(tokenizer, text)
    make = ExampleMaker(chat, turn_end_of(chat, eos), max_tokens, encoder_decoder)
    for record, content in _contents(text, paths, skipped):
        example = None
        with skipped.judging(record):
            example = make(content, record.where)
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


@dataclass
class ExampleMaker:
    """Callable: a record's content, prompt and response or a conversation → its example."""

    chat: ChatFormat
    end: TurnEnd
    max_tokens: int
    encoder_decoder: bool
    warned: bool = False

    def __call__(self, content: _Content, where: str) -> SFTExample:
        example = self._pair(*content) if isinstance(content, tuple) else self._conversation(content, where)
        length = len(example.prompt_ids) + len(example.response_ids)
        if self.encoder_decoder:  # the start token stands before the response
            length = max(len(example.prompt_ids), len(example.response_ids) + 1)
        if not example.prompt_ids:
            raise BadRecordError(f"{where}: the prompt has no tokens", "empty")
        self._check_length(length, where)
        return example

    def _check_length(self, length: int, where: str) -> None:
        if length > self.max_tokens:
            what = "in prompt or response" if self.encoder_decoder else "with the response"
            raise BadRecordError(
                f"{where}: {length} tokens {what}, the limit is {self.max_tokens}; shorten it",
                "over the length limit",
            )

    def _pair(self, prompt: str, response: str) -> SFTExample:
        tokenizer = self.chat.tokenizer
        if self.encoder_decoder:
            target = encode_target(tokenizer, response)
            return SFTExample(tuple(encode_source(tokenizer, prompt)), tuple(target), (True,) * len(target))
        ids = encode_continuation(tokenizer, response)
        if not ids or ids[-1] not in self.end.eos:
            ids.append(tokenizer.eos_token_id)
        return SFTExample(tuple(encode_prompt(tokenizer, prompt)), tuple(ids), (True,) * len(ids))

    def _conversation(self, content: Conversation, where: str) -> SFTExample:
        """The tokens of each turn of the assistant are learnt, unless its weight is 0."""
        if len(content.messages) > _MANY_MESSAGES:  # finding each turn renders those before it once more
            text = self.chat.render(content.messages, where, extras=content.extras)
            length = len(encode_rendered(self.chat.tokenizer, text))
            if length > 2 * self.max_tokens:
                self._check_length(length, where)
        turns = find_turns(content, self.chat, self.end, where)
        if not turns.as_sampled and not self.warned:
            self.warned = True
            _log.warning(
                "%s: behind its generation prompt the chat template writes the assistant's words otherwise (without"
                " a beginning of reasoning, say): they are learnt as it writes them",
                where,
            )
        made = encode_turns(turns, self.chat, self.end)
        return SFTExample(tuple(made.prompt), tuple(made.response), tuple(made.learnt))
