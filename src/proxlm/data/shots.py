"""Few-shot prompts: solved examples that stand before a prompt, as text or as turns of a conversation."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from proxlm.config import DataSettings, TextSettings
from proxlm.data.fields import field_at
from proxlm.data.formats import Conversation, missing_field, training_content
from proxlm.data.messages import Message
from proxlm.data.records import Source, iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError, DataError
from proxlm.seeds import Purpose, derive_seed

_FIELD = re.compile(r"\{([^{}]+)\}")


def templated(record: Record, data: DataSettings) -> Record:
    """The record with `data.template`, its fields filled in, as its prompt; the same one without a template.

    Raises:
        BadRecordError: A field of the template is not there, or is no text or number.
    """
    if not data.template:
        return record

    def value(match: re.Match[str]) -> str:
        found = field_at(record.fields, match[1])
        if found is None:
            raise missing_field(record, match[1], "data.template")
        if not isinstance(found, str | int | float):
            kind = type(found).__name__
            raise BadRecordError(
                f'{record.where}: field "{match[1]}" in data.template must be a text, not {kind}', "no text"
            )
        return str(found)

    return replace(record, fields={**record.fields, data.prompt_field: _FIELD.sub(value, data.template)})


def joined(before: str, after: str, separator: str) -> str:
    """The two texts, with the separator between them where neither has white space there."""
    at_seam = before[-1:].isspace() or after[:1].isspace()
    return before + ("" if at_seam else separator) + after


@dataclass(frozen=True)
class _Example:
    """A solved record: a prompt and its response as texts, or messages that end with the assistant's.

    keys: of the prompts that it answers.
    """

    content: tuple[str, str] | list[Message]
    keys: frozenset[str]


class Shots:
    """The examples of `data.examples`, and which of them stand before each prompt.

    Args:
        data: The section [data].
        seed: Draws the examples of each prompt.
        skipped: Receives records that are no examples.
        source: Where the examples are instead of in the file that the settings name.
        avoided: Prompts whose solutions may stand before no prompt at all.

    Raises:
        DataError: There are fewer examples than `data.shots`, or none can be read.
    """

    def __init__(
        self,
        data: DataSettings,
        seed: int,
        skipped: Skipped,
        source: Source | None = None,
        avoided: Collection[str | Conversation] = (),
    ) -> None:
        self.data, self.seed, self.source = data, seed, source or data.examples
        self._skipped, self._avoided = skipped, {_key(content) for content in avoided}
        # Whether a prompt is a conversation is seen by each one, so a file may be read both ways.
        self._pools: dict[bool, _Pool] = {}

    def before(self, content: str | Conversation, row: int, count: int) -> str | Conversation:
        """The prompt with examples before it, none of which answers the same prompt.

        Args:
            content: The prompt.
            row: Its row, which the examples are drawn by.
            count: How many examples, the first ones of those that there are with `data.shots`.
        """
        if isinstance(content, str):
            pairs = [example.content for example in self._chosen(False, _key(content), row)[:count]]
            solved = [joined(*pair, self.data.answer_separator) for pair in pairs if isinstance(pair, tuple)]
            return self.data.example_separator.join([*solved, content])
        chosen = self._chosen(True, _key(content), row)[:count]
        turns = [dict(turn) for example in chosen for turn in example.content if isinstance(turn, Mapping)]
        system = 1 if content.messages[0]["role"] == "system" else 0
        messages = [*content.messages[:system], *turns, *content.messages[system:]]
        return replace(content, messages=messages, weights=(1,) * len(messages))

    def _chosen(self, chat: bool, key: str, row: int) -> list[_Example]:
        """The `data.shots` examples of a prompt, in their order."""
        pool, wanted = self._pool(chat), self.data.shots
        size = len(pool.examples)
        order: Iterable[int] = range(size)
        if self.data.shots_from == "drawn":
            enough = min(size, wanted + pool.answers[key])
            order = random.Random(derive_seed(self.seed, Purpose.SHOTS, row)).sample(range(size), enough)
        others = (pool.examples[i] for i in order if key not in pool.examples[i].keys)
        found = list(islice(others, wanted))
        if len(found) < wanted:
            raise DataError(
                f"data.shots = {wanted}: {self.source} has {len(found)} examples that are not the prompt itself;"
                " lower data.shots, or give more examples"
            )
        return found

    def _pool(self, chat: bool) -> _Pool:
        """The file's examples that solve no avoided prompt. Raises DataError if there is none."""
        if chat not in self._pools:
            read: list[_Example] = []
            for record in iter_records(self.source, self._skipped):
                with self._skipped.judging(record):
                    read += _examples_of(record, self.data, chat)
            usable = [example for example in read if not example.keys & self._avoided]
            if not usable:
                why = "each one solves a held-out prompt" if read else "no record can be used"
                raise DataError(f"data.examples = {self.source}: {why}")
            self._pools[chat] = _Pool(usable, Counter(key for example in usable for key in example.keys))
        return self._pools[chat]


@dataclass(frozen=True)
class _Pool:
    """Examples, and how many of them answer the prompt of a key."""

    examples: list[_Example]
    answers: Counter[str]


def _examples_of(record: Record, data: DataSettings, chat: bool) -> list[_Example]:
    """A record as an example; none for one of weight 0."""
    text = TextSettings(prompt_field=data.prompt_field, response_field=data.response_field, chat=chat)
    content = training_content(templated(record, data), text)
    if content is None:
        return []
    if isinstance(content, tuple):
        return [_Example(content, frozenset([content[0]]))]
    if not chat:
        raise BadRecordError(
            f"{record.where}: the example is a conversation, and the prompts are texts: set data.chat = true",
            "malformed messages",
        )
    messages, roles = content.messages, [message["role"] for message in content.messages]
    if roles[-1] != "assistant" or "system" in roles or content.extras.tools:
        raise BadRecordError(
            f'{record.where}: field "{content.field}": an example must end with the assistant\'s message and have no'
            " system message or tools of its own",
            "malformed messages",
        )
    answered = [i for i, role in enumerate(roles) if role == "assistant"]
    return [_Example(messages, frozenset(_of_messages(messages[:i]) for i in answered))]


def _key(content: str | Conversation) -> str:
    """The same text for the same prompt."""
    if isinstance(content, str):
        return content
    return _of_messages([message for message in content.messages if message["role"] != "system"])


def _of_messages(messages: Sequence[Message]) -> str:
    return json.dumps(messages, sort_keys=True, default=str)
