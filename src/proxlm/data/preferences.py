"""Comparisons: records in which one of two completions of a prompt is the better one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.config import PreferenceSettings
from proxlm.data.completions import group_of, number, read_completion, slice_of
from proxlm.data.fields import field_at
from proxlm.data.formats import missing_field
from proxlm.data.records import Source, iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.data.text import split_validation
from proxlm.errors import BadRecordError, DataError
from proxlm.text import listed, shown
from proxlm.types import Completion

_TIES = ("tie", "draw", "equal", "both", "bothbad", "tie (bothbad)", "tie(bothbad)")


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, as a reward would get them.

    Attributes:
        chosen: The better one.
        rejected: The worse one.
        margin: By how much the score of the better one is to lead.
        slice: The value of `text.slice_field`; empty: there is none.
        where: file:line of its record.
    """

    chosen: Completion
    rejected: Completion
    margin: float = 0.0
    slice: str = ""
    where: str = ""

    @property
    def sides(self) -> tuple[Completion, Completion]:
        return self.chosen, self.rejected

    @property
    def numbers(self) -> tuple[float]:
        """What a reward model's loss needs of it."""
        return (self.margin,)

    @property
    def group(self) -> str:
        """What pairs of one prompt have in common, so that none is on both sides of a split."""
        return group_of(self.chosen)


def split_by_prompt(groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which rows are for training and which for validation: those of one group, of a prompt, stay together.

    Args:
        groups: The group of each row.
        share: Of the groups, for validation.
        seed: Draws them.

    Raises:
        DataError: There are fewer than two groups.
    """
    every = list(dict.fromkeys(groups))
    held_out = {every[number] for number in split_validation(range(len(every)), share, seed)[1]}
    rows = range(len(groups))
    return [i for i in rows if groups[i] not in held_out], [i for i in rows if groups[i] in held_out]


def comparisons(
    text: PreferenceSettings, paths: Sequence[Source], skipped: Skipped
) -> Iterator[tuple[Record, Comparison]]:
    """The records that hold a comparison, and that.

    Left out: a tie, and two completions that are the same.

    Raises:
        DataError: With file and line: a record holds none, and `skipped` does not take it.
    """
    if not paths:
        raise DataError("text.train: no file was given")
    for path in paths:
        for record in iter_records(path, skipped):
            found: Comparison | None = None
            with skipped.judging(record):
                found = read_comparison(record, text)
                if found is None:
                    skipped.leave_out(record, "no preference", "a tie, or two completions that are the same")
            if found is not None:
                yield record, found


def read_comparison(record: Record, text: PreferenceSettings) -> Comparison | None:
    """The comparison that a record holds.

    The prompt is a text or messages; so is a completion, where messages are those after the prompt or, if they begin
    with it or there is no prompt, the whole conversation. Without a prompt it is what both completions begin with.

    Returns:
        None for a tie, or two completions that are the same.

    Raises:
        BadRecordError: It is in none of the formats, or malformed; the message names the field.
    """
    pair = _pair(record, text)
    if pair is None or pair[0][1] == pair[1][1]:
        return None
    prompt = field_at(record.fields, text.prompt_field)
    if isinstance(pair[0][1], str) != isinstance(pair[1][1], str):
        raise BadRecordError(
            f'{record.where}: fields "{pair[0][0]}" and "{pair[1][0]}" must both be texts or both lists of messages',
            "no text",
        )
    answers = [value for _, value in pair]
    if prompt is None and isinstance(answers[0], str):
        prompt = shared_beginning(*answers)
        answers = [answer[len(prompt) :] for answer in answers]
    chosen, rejected = (
        read_completion(record, text, prompt, name, answer)
        for (name, _), answer in zip(pair, answers, strict=True)
    )
    if chosen == rejected:
        return None
    return Comparison(chosen, rejected, _margin(record, text), slice_of(record, text), record.where)


# Of each completion: its field, and what that holds.
_Pair = tuple[tuple[str, Any], tuple[str, Any]]


def _pair(record: Record, text: PreferenceSettings) -> _Pair | None:
    """The better and the worse completion; None for a tie."""
    fields = record.fields
    chosen = field_at(fields, text.chosen_field)
    if chosen is not None:
        rejected = field_at(fields, text.rejected_field)
        if rejected is None:
            raise missing_field(record, text.rejected_field, "text.rejected_field")
        return (text.chosen_field, chosen), (text.rejected_field, rejected)
    winner = field_at(fields, text.winner_field)
    if winner is None:
        raise missing_field(record, text.chosen_field, "text.chosen_field or text.winner_field")
    first, second = text.completion_fields
    found = field_at(fields, first), field_at(fields, second)
    for name, value in zip((first, second), found, strict=True):
        if value is None:
            raise missing_field(record, name, "text.completion_fields")
    better = _winner(record, text, winner)
    if better is None:
        return None
    pair = (first, found[0]), (second, found[1])
    return pair if better == 0 else (pair[1], pair[0])


def _winner(record: Record, text: PreferenceSettings, value: Any) -> int | None:
    """0 or 1, the number of the better completion; None for a tie."""
    known: list[tuple[str, ...]] = [
        (name, letter, f"model_{letter}", f"response_{letter}", str(i))
        for i, (name, letter) in enumerate(zip(text.completion_fields, "ab", strict=True))
    ]
    if text.winner_values:
        known = [(value,) for value in text.winner_values]
    word = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    for folded in (False, True):
        for i, names in enumerate(known):
            if word and any(
                (name.lower() if folded else name) == (word.lower() if folded else word) for name in names
            ):
                return i
    if word.lower() in _TIES:
        return None
    raise BadRecordError(
        f'{record.where}: field "{shown(text.winner_field)}" is {shown(repr(value), 30)}, where'
        f" {listed([names[0] for names in known])} is expected (set text.winner_values)",
        "unknown winner",
    )


def shared_beginning(first: str, second: str) -> str:
    """What two texts begin with, without a space at its end and not within a word, so that neither answer is torn."""
    pairs = zip(first, second, strict=False)
    end = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    if end in (len(first), len(second)):
        return first[:end]
    while end and first[end - 1].isalnum():
        end -= 1
    return first[:end].rstrip(" ")


def _margin(record: Record, text: PreferenceSettings) -> float:
    if not text.margin_field:
        return 0.0
    value = field_at(record.fields, text.margin_field)
    if value is None:
        raise missing_field(record, text.margin_field, "text.margin_field")
    return number(record, text.margin_field, value)


@dataclass(frozen=True)
class Choice:
    """Several completions of a prompt, of which some are right.

    Attributes:
        completions: The right ones first.
        right: How many are right.
        slice: The value of `text.slice_field`; empty: there is none.
    """

    completions: tuple[Completion, ...]
    right: int
    slice: str = ""


def choices(text: PreferenceSettings, path: Source, skipped: Skipped) -> Iterator[Choice]:
    """The choices in a file, as RewardBench 2 has them: a prompt, and right and wrong completions as two lists.

    Raises:
        DataError: With file and line: a record holds none, and `skipped` does not take it.
    """
    for record in iter_records(path, skipped):
        found: Choice | None = None
        with skipped.judging(record):
            found = _choice(record, text)
        if found is not None:
            yield found


def _choice(record: Record, text: PreferenceSettings) -> Choice:
    lists = [_completions(record, name) for name in (text.chosen_field, text.rejected_field)]
    prompt = field_at(record.fields, text.prompt_field)
    if prompt is None:
        raise missing_field(record, text.prompt_field, "text.prompt_field")
    fields = (text.chosen_field, text.rejected_field)
    made = [
        read_completion(record, text, prompt, name, value)
        for name, values in zip(fields, lists, strict=True)
        for value in values
    ]
    return Choice(tuple(made), len(lists[0]), slice_of(record, text))


def _completions(record: Record, name: str) -> list[Any]:
    """A field's completions: a list of texts or of conversations, or a single one."""
    value = field_at(record.fields, name)
    if value is None:
        raise missing_field(record, name, "text.chosen_field or text.rejected_field")
    if isinstance(value, list) and value and not isinstance(value[0], Mapping):
        return value
    if isinstance(value, str | list | Mapping) and value:
        return [value]
    raise BadRecordError(f'{record.where}: field "{shown(name)}" holds no completion', "no text")
