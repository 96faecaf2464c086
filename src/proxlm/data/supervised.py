"""Training examples for the supervised jobs: packed blocks of text, and responses with a loss mask."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proxlm.config import TextConfig
from proxlm.data.chat import Message, check_messages, encode_rendered, read_template, render
from proxlm.data.records import Record, missing_field, read_records
from proxlm.data.tokenizer import (
    encode_continuation,
    encode_documents,
    encode_prompt,
    encode_source,
    encode_target,
)
from proxlm.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_DOCUMENTS_AT_ONCE = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SFTExample:
    """A prompt and its response, which ends with EOS.

    loss_mask is aligned with response_ids: True for the tokens that the model is to write itself.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]


def pretrain_blocks(tokenizer: Tokenizer, texts: Sequence[str], block: int) -> Tensor:
    """Documents joined as BOS text EOS BOS text EOS ..., cut into blocks, [n, block] int64.

    BOS is there if the tokenizer puts one. The tokens after the last whole block, fewer than `block`, are
    left out and their number is logged. Raises DataError if there is not one whole block.
    """
    stream = array("q")
    for first in range(0, len(texts), _DOCUMENTS_AT_ONCE):
        for ids in encode_documents(tokenizer, texts[first : first + _DOCUMENTS_AT_ONCE]):
            stream.extend(ids)
    count, rest = divmod(len(stream), block)
    if count == 0:
        raise DataError(
            f"the text has {len(stream)} tokens, less than one block of {block}; give more text"
            " or a lower train.block"
        )
    if rest:
        _log.info("packed %d tokens in blocks of %d; left out at the end: %d", len(stream), block, rest)
    return torch.frombuffer(stream, dtype=torch.int64)[: count * block].clone().view(count, block)


def sft_examples(
    text: TextConfig,
    paths: Sequence[str],
    tokenizer: Tokenizer,
    max_tokens: int,
    encoder_decoder: bool = False,
) -> list[SFTExample]:
    """The files' records as examples of at most `max_tokens` tokens, prompt and response together.

    For an encoder–decoder prompt and response are texts of their own, each of at most `max_tokens`.

    A record has text.prompt_field and text.response_field, or a conversation in text.messages_field, whose
    response begins with the assistant's first turn. Messages after its last turn teach nothing and are not
    used. Raises DataError naming file and line.
    """
    template = read_template(text.chat_template)
    examples = []
    for path in paths:
        for record in read_records(path):
            example = _example(text, path, record, tokenizer, template, encoder_decoder)
            where, length = f"{path}:{record.line}", len(example.prompt_ids) + len(example.response_ids)
            if encoder_decoder:  # the start token stands before the response
                length = max(len(example.prompt_ids), len(example.response_ids) + 1)
            if not example.prompt_ids:
                raise DataError(f"{where}: the prompt has no tokens")
            if length > max_tokens:
                what = "in prompt or response" if encoder_decoder else "with the response"
                raise DataError(f"{where}: {length} tokens {what}, the limit is {max_tokens}; shorten it")
            examples.append(example)
    if not examples:
        raise DataError("text.train: no file was given")
    return examples


def record_texts(text: TextConfig, paths: Sequence[str]) -> list[tuple[str, ...]]:
    """What a new tokenizer is trained on: for each record its prompt and response, or all its messages."""
    names = (text.prompt_field, text.response_field)
    found = []
    for path in paths:
        for record in read_records(path):
            if text.prompt_field in record.fields:
                parts = tuple(str(record.fields.get(name, "")) for name in names)
            else:
                messages = record.fields.get(text.messages_field, [])
                where = f'{path}:{record.line}: field "{text.messages_field}"'
                parts = tuple(message["content"] for message in check_messages(messages, where))
            found.append(parts)
    return found


def _example(
    text: TextConfig,
    path: str,
    record: Record,
    tokenizer: Tokenizer,
    template: str | None,
    encoder_decoder: bool,
) -> SFTExample:
    where = f"{path}:{record.line}"
    if text.prompt_field not in record.fields:
        if text.messages_field not in record.fields:
            raise missing_field(path, record, text.prompt_field, "text.prompt_field or text.messages_field")
        value = record.fields[text.messages_field]
        messages = check_messages(value, f'{where}: field "{text.messages_field}"')
        return _conversation(messages, tokenizer, template, where)
    if text.response_field not in record.fields:
        raise missing_field(path, record, text.response_field, "text.response_field")
    prompt, response = (_text(record, name, where) for name in (text.prompt_field, text.response_field))
    if not response:
        raise DataError(f'{where}: field "{text.response_field}" is empty')
    if text.chat:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return _conversation(messages, tokenizer, template, where)
    if encoder_decoder:
        target = encode_target(tokenizer, response)
        return SFTExample(tuple(encode_source(tokenizer, prompt)), tuple(target), (True,) * len(target))
    ids = encode_continuation(tokenizer, response)
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return SFTExample(tuple(encode_prompt(tokenizer, prompt)), tuple(ids), (True,) * len(ids))


def _text(record: Record, name: str, where: str) -> str:
    value: Any = record.fields[name]
    if not isinstance(value, str):
        raise DataError(f'{where}: field "{name}" must be a text, not {type(value).__name__}')
    return value


def _conversation(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str | None, where: str
) -> SFTExample:
    """Renders longer and longer beginnings of the conversation; what a turn of the assistant adds is its own.

    That holds only where each beginning's tokens begin the next one's, which is checked.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(f"{where}: the conversation has no turn of the assistant")
    if turns[0] == 0:
        raise DataError(f"{where}: the conversation begins with the assistant, so there is no prompt")
    ids: list[int] = []
    mask: list[bool] = []
    for turn in turns:
        before = encode_rendered(
            tokenizer, render(tokenizer, messages[:turn], template, where, add_generation_prompt=True)
        )
        after = encode_rendered(tokenizer, render(tokenizer, messages[: turn + 1], template, where))
        if before[: len(ids)] != ids or after[: len(before)] != before:
            raise DataError(
                f"{where}: the chat template renders what stands before message {turn + 1} differently"
                " without it, so its own tokens cannot be told; use another chat_template"
            )
        if turn == turns[0]:
            prompt_length = len(before)
        mask += [False] * (len(before) - len(ids)) + _own_tokens(after[len(before) :], tokenizer.eos_token_id)
        ids = after
    while (
        len(mask) > prompt_length and not mask[-1]
    ):  # what the template writes after the end of the last turn
        ids, mask = ids[:-1], mask[:-1]
    if ids[-1] != tokenizer.eos_token_id:
        ids, mask = [*ids, tokenizer.eos_token_id], [*mask, True]
    return SFTExample(tuple(ids[:prompt_length]), tuple(ids[prompt_length:]), tuple(mask[prompt_length:]))


def _own_tokens(turn: Sequence[int], eos: int) -> list[bool]:
    """Which tokens of a rendered turn the model writes: up to its EOS; all, where the template puts none."""
    end = max((i for i, token in enumerate(turn) if token == eos), default=len(turn) - 1)
    return [i <= end for i in range(len(turn))]
