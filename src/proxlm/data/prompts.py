"""Prompts for rollouts: loading and checking them, setting some aside, and batches of them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from proxlm.config import DataSettings
from proxlm.config.signature import checked
from proxlm.data.chat import ChatFormat, encode_rendered, with_system
from proxlm.data.formats import Conversation, prompt_content
from proxlm.data.messages import Message
from proxlm.data.records import Source, iter_records
from proxlm.data.seams import check_seams
from proxlm.data.shots import Shots, templated
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tokenizer import encode_prompt, encode_source
from proxlm.errors import BadRecordError, ConfigError, DataError
from proxlm.seeds import Purpose, derive_seed
from proxlm.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSources:
    """Where prompts come from: files, or records in memory.

    Attributes:
        train: The prompts to train on.
        eval: Held-out prompts; None: some of `train` are set aside.
        examples: Solved examples to stand before prompts; None: those of `data.examples`.
    """

    train: Source
    eval: Source | None = None
    examples: Source | None = None

    @staticmethod
    def of(data: DataSettings) -> PromptSources:
        """The files that the settings name."""
        return PromptSources(data.prompts, data.eval_prompts or None)


@dataclass(frozen=True)
class LoadedPrompts:
    """The prompts to use, and how many valid records were left out.

    Attributes:
        prompts: The prompts.
        skipped: Records longer than the limit (if that is not an error).
        repeated: In training: records with the same prompt as a held-out one.
        unused: Records of the held-out file beyond eval_count.
        fewer_shots: Prompts with fewer examples before them than data.shots, because more would be too long.
    """

    prompts: list[Prompt]
    skipped: int = 0
    repeated: int = 0
    unused: int = 0
    fewer_shots: int = 0


def load_prompts(
    data: DataSettings,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    which: Literal["train", "eval"],
    seed: int,
    source: bool = False,
    skipped: Skipped | None = None,
    sources: PromptSources | None = None,
    check: Callable[[Record], object] | None = None,
) -> LoadedPrompts:
    """The prompts to train on, or those to evaluate on; no prompt is in both.

    Held-out prompts are data.eval_count records of data.eval_prompts or, without such a file, of data.prompts; the
    others are for training. A training record with the same prompt as a held-out one is left out, also if each has
    its own file. Prompt.id is the row in the file, from 0, among the usable records; Prompt.text is what the model
    sees (with chat: the rendered conversation; with data.shots: the examples, too); Prompt.fields is the whole
    record. No prompt has itself among its examples, and no prompt for training one that is held out.

    Args:
        data: The section [data].
        tokenizer: The policy's.
        max_prompt_tokens: The longest prompt.
        which: Prompts to train on, or held-out ones.
        seed: Draws the held-out prompts.
        source: The prompts are for an encoder: whole texts, with what the tokenizer puts at their ends.
        sources: Where to read the prompts from instead of the files that the settings name.
        skipped: Receives what is left out, except unused held-out records; by default the first bad record raises
            its error.
        check: Raises BadRecordError for a record that cannot be used for another reason than its prompt.

    Raises:
        DataError: With file and line.
    """
    skipped = skipped if skipped is not None else Skipped()
    sources = sources or PromptSources.of(data)
    file, rows, repeated, unused, held_out = _choose(data, sources, which, seed, skipped, check)
    shots = Shots(data, seed, skipped, sources.examples, held_out) if data.shots else None
    encode = _Encoder(data, ChatFormat.of(tokenizer, data), file, source, shots)
    prompts: list[Prompt] = []
    too_long = fewer_shots = 0
    for row in rows:
        record = file.records[row]
        with skipped.judging(record):
            prompt, count = encode(row), data.shots
            while (
                len(prompt.input_ids) > max_prompt_tokens and count and data.on_long_prompt == "fewer_shots"
            ):
                count -= 1
                prompt = encode(row, count)
            length = len(prompt.input_ids)
            if length <= max_prompt_tokens:
                prompts.append(prompt)
                fewer_shots += count < data.shots
                continue
            with_examples = f" with {count} examples" if count else ""
            reason = f"the prompt has {length} tokens{with_examples}, the limit is {max_prompt_tokens}"
            if data.on_long_prompt != "skip" and not skipped.skip:
                fewer = ", or lower data.shots (also: data.on_long_prompt = fewer_shots)" if count else ""
                raise DataError(
                    f"{record.where}: {reason}; shorten it, or skip such prompts with data.on_long_prompt ="
                    f" skip{fewer}"
                )
            skipped.leave_out(record, "over the length limit", reason)
            too_long += 1
    if too_long and too_long == len(rows):
        raise DataError(f"{file.path}: every prompt has more than {max_prompt_tokens} tokens; none is left")
    if rows and not prompts:
        first = skipped.first_in(file.path)
        raise DataError(f"{file.path}: no usable prompt is left; the first bad one: {first}")
    if not source:
        check_seams(tokenizer, (prompt.text for prompt in prompts))
    if fewer_shots:
        _log.warning(
            "%d of %d prompts have fewer than %d examples, to fit", fewer_shots, len(prompts), data.shots
        )
    return LoadedPrompts(prompts, too_long, repeated, unused, fewer_shots)


class PromptStream:
    """An endless stream of batches of prompts; each epoch has every prompt once, in a new order.

    A batch is a pure function of (seed, step), so there is no state to save. Where one epoch ends and the next
    begins within a batch, the same prompt can be in it twice.
    """

    @checked()
    def __init__(self, prompts: list[Prompt], batch_size: int, seed: int) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on")
        self.prompts, self.batch_size, self.seed = prompts, batch_size, seed

    def batch(self, step: int) -> list[Prompt]:
        """The batch_size prompts of a step, which counts from 0."""
        first, size = step * self.batch_size, len(self.prompts)
        positions = range(first, first + self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {position // size for position in positions}}
        return [self.prompts[orders[position // size][position % size]] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        return _shuffled(len(self.prompts), derive_seed(self.seed, Purpose.PROMPTS, epoch))


@dataclass(frozen=True)
class _File:
    """A file's records with their prompts; equal keys mean equal prompts."""

    path: str
    field: str
    records: list[Record]
    contents: list[str | Conversation]

    @property
    def keys(self) -> list[str]:
        return [_key(content) for content in self.contents]


def _read(
    data: DataSettings, source: Source, skipped: Skipped, check: Callable[[Record], object] | None
) -> _File:
    if not source:
        raise ConfigError("data.prompts: required, but not given")
    path = str(source)
    is_text = isinstance(source, str) and Path(path.lower().removesuffix(".gz")).suffix == ".txt"
    field = "text" if is_text and not data.template else data.prompt_field
    file = _File(path, field, [], [])
    for record in iter_records(source, skipped):
        with skipped.judging(record):
            content = prompt_content(templated(record, data), data, file.field)
            if check is not None:
                check(record)
            file.contents.append(content)
            file.records.append(record)
    if not file.records:
        raise DataError(f"{path}: no record can be used; the first bad one: {skipped.first_in(path)}")
    return file


@dataclass(frozen=True)
class _Encoder:
    """Callable: a row of the file → its Prompt."""

    data: DataSettings
    chat: ChatFormat
    file: _File
    source: bool
    shots: Shots | None = None

    def __call__(self, row: int, count: int | None = None) -> Prompt:
        """count: of examples before the prompt; None: `data.shots`."""
        record, content = self.file.records[row], self.file.contents[row]
        asked = ""
        if self.shots is not None:
            asked = self._text(content, record)[0]
            content = self.shots.before(content, row, self.data.shots if count is None else count)
        text, messages = self._text(content, record)
        if messages:
            ids = encode_rendered(self.chat.tokenizer, text)
        else:
            ids = (encode_source if self.source else encode_prompt)(self.chat.tokenizer, text)
        if not ids:
            raise BadRecordError(f"{self._where(content, record)}: the prompt has no tokens", "empty")
        return Prompt(row, tuple(ids), text, record.fields, messages, asked)

    def _text(self, content: str | Conversation, record: Record) -> tuple[str, list[Message]]:
        """What the model sees, and the messages that it was rendered from."""
        if isinstance(content, str):
            if self.data.system:
                raise ConfigError(
                    "data.system: needs data.chat = true, or prompts that are lists of messages"
                )
            return content, []
        messages = with_system(content.messages, self.data.system)
        where = self._where(content, record)
        text = self.chat.render(messages, where, add_generation_prompt=True, extras=content.extras)
        return text, messages

    def _where(self, content: str | Conversation, record: Record) -> str:
        field = content.field if isinstance(content, Conversation) else self.file.field
        return f'{record.where}: field "{field}"'


def _key(content: str | Conversation) -> str:
    """The same text for the same prompt, in whatever order its objects have their keys."""
    if isinstance(content, str):
        return content
    everything = [content.messages, content.extras.tools, content.extras.variables]
    return "messages" + json.dumps(everything, sort_keys=True, default=str)


def _choose(
    data: DataSettings,
    sources: PromptSources,
    which: Literal["train", "eval"],
    seed: int,
    skipped: Skipped,
    check: Callable[[Record], object] | None,
) -> tuple[_File, list[int], int, int, list[str | Conversation]]:
    """The file to use, its rows to use, how many others are repeated and unused (see LoadedPrompts), and for training
    the held-out prompts.
    """
    if sources.eval is None:
        file = _read(data, sources.train, skipped, check)
        training, held_out = _split(file, data.eval_count, seed)
        if which == "eval":
            return file, held_out, 0, 0, []
        repeated = _repeated(file, {*training, *held_out}, skipped)
        return file, training, repeated, 0, [file.contents[row] for row in held_out]
    other = _read(data, sources.eval, skipped, check)
    if which == "eval":
        rows = _draw(len(other.records), data.eval_count, seed)
        return other, rows, 0, len(other.records) - len(rows), []
    file, held_out_keys = _read(data, sources.train, skipped, check), set(other.keys)
    rows = [row for row, key in enumerate(file.keys) if key not in held_out_keys]
    if not rows:
        raise DataError(f"{file.path}: every prompt is also in data.eval_prompts = {other.path}")
    return file, rows, _repeated(file, set(rows), skipped), 0, other.contents


def _repeated(file: _File, used: set[int], skipped: Skipped) -> int:
    """Leave out the rows that are not used because a held-out prompt is the same; returns their number."""
    rows = [row for row in range(len(file.records)) if row not in used]
    for row in rows:
        skipped.leave_out(
            file.records[row], "the same as a held-out one", "the prompt is also a held-out one"
        )
    return len(rows)


def _draw(size: int, count: int, seed: int) -> list[int]:
    return sorted(_shuffled(size, derive_seed(seed, Purpose.HELD_OUT))[:count])


def _split(file: _File, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and held-out rows, both in file order.

    The held-out prompts are all different; rows that repeat one of them are in neither list.
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
