"""Multiple choice: the choices of a record and the right one, and the tokens of prompt and choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from proxlm.config import ChoiceSettings, DataSettings
from proxlm.data.chat import encode_rendered
from proxlm.data.fields import field_at
from proxlm.data.formats import missing_field
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.records import Source, iter_records
from proxlm.data.shots import joined
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tokenizer import encode_prompt, encode_target
from proxlm.errors import BadRecordError
from proxlm.text import shown
from proxlm.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_MALFORMED, _UNCLEAR = "malformed choices", "unclear answer"


@dataclass(frozen=True)
class Choices:
    """A record's choices.

    Attributes:
        texts: At least two, all different, whatever white space is around them.
        right: Which one is right, from 0.
    """

    texts: tuple[str, ...]
    right: int


def read_choices(record: Record, settings: ChoiceSettings) -> Choices:
    """The choices of a record.

    Raises:
        BadRecordError: There are none, or it is not clear which one is right.
    """
    value = field_at(record.fields, settings.field)
    if value is None:
        raise missing_field(record, settings.field, "choices.field")
    where = f'{record.where}: field "{settings.field}"'
    texts, labels = (value.get("text"), value.get("label")) if isinstance(value, Mapping) else (value, None)
    if texts is None or not _is_texts(texts) or len(texts) < 2:
        raise BadRecordError(f"{where} must be a list of at least two texts", _MALFORMED)
    if not all(text.strip() for text in texts):
        raise BadRecordError(f"{where}: a choice is empty", "empty")
    if len({text.strip() for text in texts}) < len(texts):
        raise BadRecordError(f"{where}: two choices are the same", _MALFORMED)
    if labels is not None and (not _is_texts(labels) or len(set(labels)) != len(texts)):
        raise BadRecordError(f"{where}: label must be a list of as many different texts", _MALFORMED)
    return Choices(tuple(texts), _right(record, settings, texts, labels))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _right(
    record: Record, settings: ChoiceSettings, texts: Sequence[str], labels: Sequence[str] | None
) -> int:
    """The index of the right choice."""
    given = field_at(record.fields, settings.answer_field)
    if given is None:
        raise missing_field(record, settings.answer_field, "choices.answer_field")
    read = {
        "index": _index(given, len(texts)),
        "letter": _letter(given, labels or ascii_uppercase[: len(texts)]),
        "text": _place(given, texts),
    }
    # Labels are often numbers that are no index: an index is what fits neither a label nor a text.
    ways = [["index", "letter", "text"]] if labels is None else [["letter", "text"], ["index"]]
    found: set[int] = set()
    for names in ways if settings.answer == "auto" else [[settings.answer]]:
        found = found or {place for name in names if (place := read[name]) is not None}
    where = f'{record.where}: field "{settings.answer_field}" = {shown(repr(given), 40)}'
    if len(found) > 1:
        raise BadRecordError(
            f"{where} reads as different choices; set choices.answer to index, letter or text", _UNCLEAR
        )
    if not found:
        kind = "index, letter or text" if settings.answer == "auto" else settings.answer
        raise BadRecordError(f"{where} is no {kind} of the {len(texts)} choices", _UNCLEAR)
    return found.pop()


def _index(given: Any, count: int) -> int | None:
    if isinstance(given, str) and given.isdecimal() and len(given) < 9:
        given = int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < count else None


def _letter(given: Any, labels: Sequence[str]) -> int | None:
    return _place(str(given), labels) if isinstance(given, str | int) else None


def _place(given: Any, texts: Sequence[str]) -> int | None:
    """Where a text is among others, white space around them aside."""
    wanted = given.strip() if isinstance(given, str) else None
    return next((i for i, text in enumerate(texts) if text.strip() == wanted), None)


def solved_records(
    source: Source, data: DataSettings, settings: ChoiceSettings, skipped: Skipped
) -> InMemoryRecords:
    """The file's records as solved examples: the right choice is the response.

    Raises:
        DataError: With file and line: a record's choices cannot be read, and `skipped` does not take it.
    """
    made = []
    for record in iter_records(source, skipped):
        with skipped.judging(record):
            choices = read_choices(record, settings)
            response: Any = choices.texts[choices.right]
            if isinstance(field_at(record.fields, data.prompt_field), list):
                response = [{"role": "assistant", "content": response}]
            made.append({**record.fields, data.response_field: response})
    return InMemoryRecords(made, str(source), data.prompt_field)


@dataclass(frozen=True)
class Question:
    """A prompt with choices, as tokens.

    Attributes:
        prompt: The prompt.
        choices: Its choices.
        given: The tokens that stand before every choice.
        answers: The tokens of each choice that are predicted.
        asked: The prompt as its record has it: without examples and chat template, the same for every model.
    """

    prompt: Prompt
    choices: Choices
    given: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    asked: str = ""


def question_of(
    tokenizer: Tokenizer, prompt: Prompt, choices: Choices, separator: str, encoder_decoder: bool
) -> Question:
    """The tokens of a prompt with each of its choices.

    Prompt and choice are encoded as one text, which is how a model reads it. Where the tokenizer then makes other
    tokens of the prompt's end, for one choice at least, those tokens belong to the choices, of all of them: given is
    what every one of the texts begins with. An encoder–decoder has the prompt alone in its encoder, and a choice as
    a target without its EOS in the decoder.

    Raises:
        BadRecordError: Nothing is left before the choices, or a choice has no tokens.
    """
    if encoder_decoder:
        rows = [encode_target(tokenizer, text)[:-1] for text in choices.texts]
        given, answers = prompt.input_ids, [tuple(row) for row in rows]
    else:
        in_chat = bool(prompt.messages)
        encode = encode_rendered if in_chat else encode_prompt
        rows = [
            encode(tokenizer, prompt.text + text if in_chat else joined(prompt.text, text, separator))
            for text in choices.texts
        ]
        shared = len(commonprefix([list(prompt.input_ids), *(row[:-1] for row in rows)]))  # noqa: RUF071 (not paths)
        given, answers = tuple(rows[0][:shared]), [tuple(row[shared:]) for row in rows]
    if not given or not all(answers):
        what = "a choice has no tokens" if given else "the prompt's first token reaches into a choice"
        raise BadRecordError(f"prompt {shown(prompt.text, 40)!r}: {what}", _UNCLEAR)
    return Question(prompt, choices, given, tuple(answers))
