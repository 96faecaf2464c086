"""Prompts for rollouts: load and check them, set some aside, and deal them out in batches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from proxlm.config import DataConfig
from proxlm.data.chat import check_messages, encode_rendered, read_template, render, with_system
from proxlm.data.records import Record, missing_field, read_records
from proxlm.data.tokenizer import encode_prompt, encode_source
from proxlm.errors import ConfigError, DataError
from proxlm.seeds import derive_seed
from proxlm.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class LoadedPrompts:
    """The prompts to use, and how many records were left out, by reason.

    skipped: longer than the limit (on_long_prompt = skip); repeated: in training, the same prompt as a
    held-out one; unused: of the held-out file, beyond eval_count.
    """

    prompts: list[Prompt]
    skipped: int = 0
    repeated: int = 0
    unused: int = 0


def load_prompts(
    data: DataConfig,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    which: Literal["train", "eval"],
    seed: int,
    source: bool = False,
) -> LoadedPrompts:
    """The prompts to train on, or those to evaluate on; never one in both.

    eval: eval_count records, drawn by `seed`, of data.eval_prompts or else of data.prompts, whose rest is for
    training. Prompt.id is the row in its file, from 0; Prompt.text is what the model sees (with chat: the
    rendered conversation); Prompt.fields is the whole record. A training record with the same prompt as a
    held-out one is left out, also where each has its own file. source: the prompts are for an encoder, whole texts
    with what the tokenizer puts at their ends. Raises DataError naming file and line.
    """
    file, rows, repeated, unused = _choose(data, which, seed)
    encode = _Encoder(data, tokenizer, read_template(data.chat_template), file, source)
    prompts = [encode(row) for row in rows]
    too_long = [p for p in prompts if len(p.input_ids) > max_prompt_tokens]
    if too_long and data.on_long_prompt == "fail":
        line, length = file.records[too_long[0].id].line, len(too_long[0].input_ids)
        raise DataError(
            f"{file.path}:{line}: the prompt has {length} tokens, the limit is {max_prompt_tokens}; shorten it, or"
            " leave such prompts out: data.on_long_prompt = skip"
        )
    if too_long and len(too_long) == len(prompts):
        raise DataError(f"{file.path}: every prompt has more than {max_prompt_tokens} tokens; none is left")
    kept = [p for p in prompts if len(p.input_ids) <= max_prompt_tokens]
    return LoadedPrompts(kept, len(too_long), repeated, unused)


class PromptStream:
    """Batches of prompts without end: each epoch has every prompt once, in a new order.

    A batch is a pure function of (seed, step), so there is no state to save. Epochs may meet within a batch;
    the same prompt can then stand in it twice.
    """

    def __init__(self, prompts: list[Prompt], batch_size: int, seed: int) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on")
        self.prompts, self.batch_size, self.seed = prompts, batch_size, seed

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of step `step`, from 0: batch_size of them."""
        first, size = step * self.batch_size, len(self.prompts)
        positions = range(first, first + self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {position // size for position in positions}}
        return [self.prompts[orders[position // size][position % size]] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        return _shuffled(len(self.prompts), derive_seed(self.seed, "prompts", epoch))


@dataclass(frozen=True)
class _File:
    """A file's records with their prompts; equal keys mean equal prompts."""

    path: str
    field: str
    records: list[Record]
    contents: list[str | list[Any]]

    @property
    def keys(self) -> list[str]:
        return [repr(content) for content in self.contents]


def _read(data: DataConfig, path: str) -> _File:
    if not path:
        raise ConfigError("data.prompts: needed, but not given")
    is_text = Path(path.lower().removesuffix(".gz")).suffix == ".txt"
    field = "text" if is_text else data.prompt_field
    records = read_records(path)
    return _File(path, field, records, [_content(path, record, field) for record in records])


@dataclass(frozen=True)
class _Encoder:
    """A row of the file → Prompt."""

    data: DataConfig
    tokenizer: Tokenizer
    template: str | None
    file: _File
    source: bool

    def __call__(self, row: int) -> Prompt:
        record, content = self.file.records[row], self.file.contents[row]
        where = f'{self.file.path}:{record.line}: field "{self.file.field}"'
        if isinstance(content, str) and not self.data.chat:
            if self.data.system:
                raise ConfigError(
                    "data.system: needs data.chat = true, or prompts that are lists of messages"
                )
            text = content
            ids = (encode_source if self.source else encode_prompt)(self.tokenizer, text)
        else:
            messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
            text = render(
                self.tokenizer,
                with_system(messages, self.data.system),
                self.template,
                where,
                add_generation_prompt=True,
            )
            ids = encode_rendered(self.tokenizer, text)
        if not ids:
            raise DataError(f"{where}: the prompt has no tokens")
        return Prompt(row, tuple(ids), text, record.fields)


def _content(path: str, record: Record, field: str) -> str | list[Any]:
    """The record's prompt: a text that is not blank, or messages that end before the model's turn."""
    where = f'{path}:{record.line}: field "{field}"'
    if field not in record.fields:
        raise missing_field(path, record, field, "data.prompt_field")
    value = record.fields[field]
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: the prompt is empty")
        return value
    if not isinstance(value, list):
        raise DataError(f"{where}: a prompt must be a text or a list of messages, not {type(value).__name__}")
    if check_messages(value, where)[-1]["role"] == "assistant":
        raise DataError(f"{where}: the last message is the assistant's; a prompt must end before its turn")
    return value


def _choose(
    data: DataConfig, which: Literal["train", "eval"], seed: int
) -> tuple[_File, list[int], int, int]:
    """The file to use, its rows to use, and how many others are repeated and unused (see LoadedPrompts)."""
    if not data.eval_prompts:
        file = _read(data, data.prompts)
        rest, held_out = _split(file, data.eval_count, seed)
        if which == "eval":
            return file, held_out, 0, 0
        return file, rest, len(file.records) - len(rest) - len(held_out), 0
    other = _read(data, data.eval_prompts)
    if which == "eval":
        rows = _draw(len(other.records), data.eval_count, seed)
        return other, rows, 0, len(other.records) - len(rows)
    file, held_out_keys = _read(data, data.prompts), set(other.keys)
    rows = [row for row, key in enumerate(file.keys) if key not in held_out_keys]
    if not rows:
        raise DataError(f"{file.path}: every prompt also stands in data.eval_prompts = {other.path}")
    return file, rows, len(file.records) - len(rows), 0


def _draw(size: int, count: int, seed: int) -> list[int]:
    return sorted(_shuffled(size, derive_seed(seed, "held-out"))[:count])


def _split(file: _File, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and held-out rows, both in file order.

    The held-out prompts are all different; rows that repeat one of them are in neither.
    """
    rows_by_prompt: dict[str, list[int]] = {}
    for row, key in enumerate(file.keys):
        rows_by_prompt.setdefault(key, []).append(row)
    groups = list(rows_by_prompt.values())
    if count >= len(groups):
        raise DataError(
            f"{file.path}: {len(groups)} different prompts, but data.eval_count = {count} to set aside;"
            " lower data.eval_count, or give more prompts or data.eval_prompts"
        )
    chosen = set(_draw(len(groups), count, seed))
    held_out = sorted(groups[i][0] for i in chosen)
    return sorted(row for i, rows in enumerate(groups) if i not in chosen for row in rows), held_out


def _shuffled(size: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
