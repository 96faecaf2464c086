"""The answers of a teacher: asked for once, written to a file of the run's folder, and never asked for again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from proxlm.errors import RunError
from proxlm.files import open_regular, read_regular
from proxlm.runlog.folder import (
    ANSWERS,
    JsonRow,
    append_jsonl,
    jsonl_lines,
    sync_file,
    truncate_jsonl,
    write_atomic,
    write_json_atomic,
)
from proxlm.text import reason_of, system_reason
from proxlm.types import Finish, Progress, Prompt

HEADER = "answers.json"
FORMAT = 1
# How many answers a model writes at a time; a killed run asks for no more than these again.
GROUP = 128
Part = Literal["train", "held_out"]
_LARGEST_HEADER, _LARGEST_ANSWERS = 2**16, 2**32


@dataclass(frozen=True)
class Asked:
    """A prompt that a teacher is to answer; repeat: how often it was asked before."""

    prompt: Prompt
    part: Part
    repeat: int = 0


@dataclass(frozen=True)
class Answer:
    """What a teacher has answered.

    Attributes:
        text: Without what ended it.
        finish: How it ended; "length": it was cut off.
        tokens: All its token ids, in the teacher's tokens; none: it came as a text.
    """

    text: str
    finish: Finish
    tokens: tuple[int, ...] = ()


Ask = Callable[[Sequence[Asked]], list[Answer]]


def answers_of(
    folder: Path,
    asked: Sequence[Asked],
    made_with: Mapping[str, Any],
    ask: Ask,
    size: int = GROUP,
    on_progress: Progress | None = None,
) -> list[Answer]:
    """The answers that a run's folder holds, and those that are still missing, which are written to it.

    Groups are asked for and brought to the disk one after another, so that a run which is killed goes on
    where it was, and writes the same bytes. A whole file has its SHA-256 in answers.json.

    Args:
        folder: The run's.
        asked: What to ask, in order.
        made_with: Everything that the answers depend on besides the prompts.
        ask: A group → its answers.
        size: Answers of a group.
        on_progress: Called with the answers that are there and all.

    Raises:
        RunError: The folder's answers were made otherwise, or have changed since.
    """
    path, key = folder / ANSWERS, _key(asked, made_with)
    header = _read_header(folder / HEADER)
    if header is not None and header.get("made_with") != key:
        raise RunError(
            f"{path}: the teacher was asked with other prompts or settings; set them as they were, or start in a new"
            " folder"
        )
    if header is not None and header.get("sha256") not in (None, _sha256(path)):
        raise RunError(f"{path}: not as the run wrote it; start in a new folder")
    if header is None:
        write_json_atomic(folder / HEADER, {"format": FORMAT, "made_with": key, "answers": len(asked)})
        path.touch()
    there = len(list(jsonl_lines(path)))
    there = len(asked) if there >= len(asked) else there // size * size
    truncate_jsonl(path, "id", there - 1)
    for start in range(there, len(asked), size):
        group = asked[start : start + size]
        answers = ask(group)
        append_jsonl(
            path, [_row(start + i, *pair) for i, pair in enumerate(zip(group, answers, strict=True))]
        )
        sync_file(path)
        if on_progress is not None:
            on_progress(start + len(group), len(asked))
    done = {"format": FORMAT, "made_with": key, "answers": len(asked), "sha256": _sha256(path)}
    if header != done:
        write_json_atomic(folder / HEADER, done)
    return list(_read(path, len(asked)))


def take_answers(path: Path, folder: Path) -> None:
    """Copy the answers of an earlier run to a run's folder; `answers_of` then says whether they are those asked for.

    Args:
        path: Its answers.jsonl, which must be whole.
        folder: The run's.

    Raises:
        RunError: They cannot be read, or are not all there.
    """
    header = _read_header(path.with_name(HEADER))
    if header is None or header.get("sha256") != _sha256(path):
        raise RunError(f"{path}: not all the answers of a run, as it wrote them; leave out distill.answers")
    try:
        text = read_regular(path, _LARGEST_ANSWERS).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else reason_of(error)
        raise RunError(f"{path}: cannot be read: {reason}") from error
    write_json_atomic(folder / HEADER, header)
    write_atomic(folder / ANSWERS, text)


def _key(asked: Sequence[Asked], made_with: Mapping[str, Any]) -> str:
    """A SHA-256 of all that the answers depend on."""
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode())
    for one in asked:
        line = json.dumps([one.part, one.repeat, one.prompt.id, one.prompt.text, list(one.prompt.input_ids)])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _row(number: int, asked: Asked, answer: Answer) -> JsonRow:
    prompt = asked.prompt
    return {
        "id": number,
        "part": asked.part,
        "prompt_id": prompt.id,
        "prompt": [dict(message) for message in prompt.messages] or prompt.text,
        "response": answer.text,
        "finish": answer.finish,
        "tokens": list(answer.tokens),
    }


def _read(path: Path, count: int) -> Iterator[Answer]:
    rows = [row for _, row in jsonl_lines(path)]
    if len(rows) != count:
        raise RunError(f"{path}: {len(rows)} answers, where {count} were asked for; start in a new folder")
    for number, row in enumerate(rows, start=1):
        text, finish, tokens = row.get("response"), row.get("finish"), row.get("tokens")
        fits = isinstance(text, str) and finish in get_args(Finish) and isinstance(tokens, list)
        if not fits or not all(type(token) is int and token >= 0 for token in cast("list[Any]", tokens)):
            raise RunError(f"{path}: line {number}: no answer with response, finish and tokens")
        yield Answer(cast("str", text), cast("Finish", finish), tuple(cast("list[int]", tokens)))


def _read_header(path: Path) -> dict[str, Any] | None:
    """What answers.json holds; None: there is none, for nothing was asked yet."""
    try:
        header = json.loads(read_regular(path, _LARGEST_HEADER))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {system_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid JSON: {reason_of(error)}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunError(f"{path}: not a record of a teacher's answers")
    return header


def _sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {system_reason(error)}") from error
