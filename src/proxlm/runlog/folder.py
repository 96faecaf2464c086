"""A run is a folder. Whatever is written to it is there whole or not at all.

config.toml       every setting, as resolved
inputs.json       a hash of every file that the run reads
metrics.jsonl     one row a step
samples.jsonl     sampled texts of each step, with per-token numbers
answers.jsonl     what a teacher has answered, and answers.json its hash
skipped.jsonl     records of the data that were left out, where there are any
evaluation.json   before and after, on held-out prompts
checkpoints/      step-NNNNNNNN folders
best/             the model of the best step by run.keep_best, in a folder step-NNNNNNNN
card.md           of a distillation: teacher and student side by side
policy/           the final model, in Hugging Face format
tensorboard/      events
report.html       all of this in a browser
.lock             while a process runs in it
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from proxlm.errors import RunError
from proxlm.files import check_regular, open_regular
from proxlm.masking import masked_tree
from proxlm.runlog.lock import refuse_if_held
from proxlm.text import reason_of, system_reason

JsonRow = dict[str, Any]
ANSWERS = "answers.jsonl"


def open_run(name: str, job: str, resume: bool, config_toml: Callable[[Path], str]) -> Path:
    """Make the run's folder with its config.toml, or with `resume` find it; returns it. On error nothing is left.

    An empty `name` means runs/JOB-DATE-TIME. A folder that holds anything is only taken with `resume`, which
    needs a complete checkpoint in it; its config.toml is left alone. config_toml(folder) gives the text. Raises
    RunError.
    """
    if resume:
        return folder_to_resume(name)
    path = Path(name) if name else free_name(job)
    refuse_if_taken(path)
    made, written = _make_folders(path), False
    try:
        refuse_if_taken(path)
        write_atomic(path / "config.toml", config_toml(path))
        written = True
        for folder in (path, *(created.parent for created in made)):
            sync_folder(folder)
    except (OSError, RunError) as error:
        if written:
            (path / "config.toml").unlink(missing_ok=True)
        for created in reversed(made):
            created.rmdir()
        if isinstance(error, OSError):
            raise RunError(f"{path}: the run's folder cannot be read: {system_reason(error)}") from error
        raise
    return path


def begin_folder(folder: Path, name: str, plan: Mapping[str, Any]) -> None:
    """Make a job's folder with its plan in the file `name`, or see that it is of the same plan.

    A folder that holds another plan and nothing else takes the new one, for nothing was made by the old one.

    Raises:
        RunError: It is of another plan, or holds something else.
    """
    file, content = folder / name, json.loads(json.dumps(plain(plan)))
    try:
        there = (
            [one.name for one in folder.iterdir() if not one.name.startswith(".")] if folder.exists() else []
        )
        known = json.loads(file.read_text(encoding="utf-8")) if name in there else {}
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be used: {system_reason(error)}; give another folder") from error
    except ValueError as error:
        raise RunError(f"{file}: cannot be read; give another folder") from error
    if there and name not in there:
        raise RunError(f"{folder}: holds something else; give another folder")
    other = [key for key in content if not isinstance(known, dict) or known.get(key) != content[key]]
    if other and len(there) > 1:
        raise RunError(
            f"{folder}: was begun with other {', '.join(other)}; give another folder, or the same again"
        )
    if other:
        write_json_atomic(file, content)


def refuse_if_taken(path: Path) -> None:
    """Raise RunError where another run holds the folder, or where it holds anything. Nothing is written."""
    refuse_if_held(path)
    try:
        taken = os.path.isdir(path) and any(path.iterdir())
    except OSError as error:
        raise RunError(f"{path}: the run's folder cannot be read: {system_reason(error)}") from error
    if taken:
        raise RunError(f"{path}: already holds a run; set run.resume to go on, or choose another run.folder")


def folder_to_resume(folder: str) -> Path:
    """The run's folder, if it holds a complete checkpoint or answers of a teacher. Raises RunError."""
    if not folder:
        raise RunError("run.folder: needed with run.resume: the folder of the run to go on with")
    path = Path(folder)
    if not os.path.isdir(path):  # unlike Path.is_dir, never an error
        raise RunError(f"{path}: nothing to resume: no such folder; leave out run.resume to start a new run")
    if not (has_checkpoint(path) or (path / ANSWERS).is_file()):
        raise RunError(f"{path}: nothing to resume: no complete checkpoint; start again in a new folder")
    return path


def has_checkpoint(run: Path) -> bool:
    """Whether a run's folder holds a complete checkpoint."""
    # A crash may have left the only one aside while the same step was saved again.
    found = (entry for name in ("step-*", ".replaced-step-*") for entry in (run / "checkpoints").glob(name))
    return any(entry.is_dir() for entry in found)


def free_name(job: str) -> Path:
    """runs/JOB-DATE-TIME, with a number behind it where that is taken."""
    first = Path("runs") / f"{job}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = first, 1
    while path.exists():
        count += 1
        path = first.with_name(f"{first.name}-{count}")
    return path


def _make_folders(path: Path) -> list[Path]:
    """Make `path` and the folders above it; returns those that were not there, outermost first."""
    made: list[Path] = []
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        if not path.is_dir():
            raise RunError(f"{path}: a file, where the run's folder should be; choose another run.folder")
    except (OSError, ValueError) as error:
        for created in reversed(made):
            created.rmdir()
        reason = system_reason(error) if isinstance(error, OSError) else reason_of(error)
        raise RunError(
            f"{path}: the run's folder cannot be made: {reason}; choose another run.folder"
        ) from error
    return made


def write_atomic(path: Path, text: str) -> None:
    """Write a text file beside its place, bring it to the disk, and rename it into place. Raises RunError."""
    beside = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        check_regular(path)  # /dev/null must not be replaced by a file
        with open(beside, "wb") as file:
            file.write(_encoded(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        _cannot_write(path, error)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as strict JSON, numbers that are not finite as null, secrets masked. Raises RunError."""
    text = json.dumps(plain(masked_tree(value)), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def append_jsonl(path: Path, rows: list[JsonRow]) -> bytes:
    """Add rows to a JSONL file, numbers that are not finite as null; returns what was added. Raises RunError."""
    added = _encoded(_jsonl(rows))
    try:
        with open(path, "ab") as file:
            file.write(added)
    except OSError as error:
        _cannot_write(path, error)
    return added


def write_jsonl_atomic(path: Path, rows: Sequence[JsonRow]) -> None:
    """Write a whole JSONL file, numbers that are not finite as null. Raises RunError."""
    write_atomic(path, _jsonl(rows))


def _jsonl(rows: Sequence[JsonRow]) -> str:
    return "".join(
        json.dumps(plain(masked_tree(row)), ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    )


def sync_file(path: Path) -> None:
    """Bring a file to the disk, if there is one. Raises RunError."""
    try:
        with open_regular(path) as file:
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    except OSError as error:
        _cannot_write(path, error)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk. Raises RunError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        _cannot_write(path, error)


def read_jsonl(path: Path) -> list[JsonRow]:
    """All rows of a JSONL file. A last line that was torn off in the middle is left out.

    Raises RunError that names the file, and the line where one is malformed.
    """
    return [row for _, row in jsonl_lines(path)]


def truncate_jsonl(path: Path, key: str, last: int) -> int:
    """Leave out the rows whose `row[key]` is more than `last`, and a torn last line. No file: nothing to do.

    Returns how many rows are left. Raises RunError that names the file and the line that is malformed or has no
    number at `key`.
    """
    if not path.exists():
        return 0
    kept: list[str] = []
    for number, (text, row) in enumerate(jsonl_lines(path), start=1):
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RunError(f"{path}: line {number}: no number at {json.dumps(key)}")
        if value <= last:
            kept.append(text)
    write_atomic(path, "".join(f"{text}\n" for text in kept))
    return len(kept)


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def jsonl_lines(path: Path) -> Iterator[tuple[str, JsonRow]]:
    """Each line of a JSONL file, as text and as a row; a torn last line is left out. Raises RunError."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {system_reason(error)}") from error
    lines = data.split(b"\n")
    torn = lines.pop()  # empty where the file ends as it should
    for number, line in enumerate([*lines, torn] if torn else lines, start=1):
        try:
            text = line.decode("utf-8")
            row = _row(text)
        except (ValueError, RecursionError) as error:
            if number > len(lines):
                return
            raise RunError(f"{path}: line {number}: not a row of JSON: {error}") from error
        yield text, row


def _row(text: str) -> JsonRow:
    row = json.loads(text, parse_constant=_not_json)
    if isinstance(row, dict):
        return row
    raise ValueError("expected an object, {...}")


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _encoded(text: str) -> bytes:
    # A lone surrogate, which JSON input can hold, becomes \udXXX: in JSON that is the same text again.
    return text.encode("utf-8", "backslashreplace")


def _cannot_write(path: Path, error: OSError) -> NoReturn:
    raise RunError(f"{path}: cannot be written: {system_reason(error)}") from error
