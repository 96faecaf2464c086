"""`proxlm data`: raw text and records to data that can be trained on, with a card of what was done."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxlm.config import CorpusConfig, settings_or_default, to_toml, validate
from proxlm.config.paths import absolute
from proxlm.config.signature import checked
from proxlm.corpus.card import card_of, versions
from proxlm.corpus.passes import Passes
from proxlm.corpus.sources import sources_of
from proxlm.data.inputs import inputs_of
from proxlm.data.skipped import FILE_NAME as SKIPPED
from proxlm.errors import ConfigError, DataError, RunError, UserCodeError
from proxlm.evaluation import tables
from proxlm.files import read_regular
from proxlm.report.data_card import as_markdown, as_page, counts_table
from proxlm.runlog.folder import sync_folder, write_atomic, write_json_atomic
from proxlm.runlog.interrupt import StopSignals
from proxlm.runlog.lock import NAME as LOCK
from proxlm.runlog.lock import locked
from proxlm.runlog.output import terminal_of
from proxlm.runlog.text import duration
from proxlm.text import listed, system_reason

WORK, DONE, PLAN, CARD = ".work", ".done", "plan.json", "card.json"
_LARGEST_CARD = 2**28


@dataclass(frozen=True)
class PreparedData:
    """What `prepare_data` has written.

    Attributes:
        folder: The folder.
        files: Part ("data", or "train", "validation", …) → its JSONL file.
        card: What card.json holds: counts of each step, lengths, languages, examples, inputs, versions.
    """

    folder: Path
    files: dict[str, Path]
    card: dict[str, Any]


def main(config: CorpusConfig) -> None:
    """Prepare the data, and print what each step did."""
    done = _prepared(config)
    print(tables.as_text([counts_table(done.card)]))
    print(
        f"\nwritten to {config.output}: {', '.join(path.name for path in done.files.values())}, card.md, card.html"
    )


@checked("config")
def prepare_data(config: CorpusConfig) -> PreparedData:
    """Clean, filter, deduplicate, mask, convert and split data, as `proxlm data` does.

    Called again with the same settings and inputs it goes on where it was ended, or returns what is there.

    Args:
        config: Input, output, and the steps in order.

    Raises:
        UserError: A setting is wrong, the data cannot be read, or the folder holds something else.
    """
    return _prepared(validate(settings_or_default(CorpusConfig, config)))


def _prepared(config: CorpusConfig) -> PreparedData:
    sources = sources_of(config.input, config.extensions)
    folder = Path(config.output)
    work = folder / WORK
    plan = _plan_of(config)
    if (found := _finished(folder, plan)) is not None:
        if (folder / LOCK).exists():  # of a process that was killed at its very end, or is there
            with locked(folder):
                _clear_leftovers(folder)
        print(f"{folder}: finished before; nothing is left to do", flush=True)
        return found
    _check_folder(folder, plan)
    progress = _Progress()
    passes = (
        None if work.exists() else Passes(config, sources, work, progress)
    )  # whose errors come before the folder
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {system_reason(error)}; choose another output") from error
    with (
        _cleared_on_error(folder),
        locked(folder),
        StopSignals(lambda _: f"stopped; the same command goes on with {folder}"),
    ):
        write_json_atomic(work / PLAN, plan)
        passes = passes or Passes(config, sources, work, progress)
        if passes.state.read or passes.state.number:
            print(f"{folder}: goes on in pass {passes.state.number + 1}", flush=True)
        passes.run()
        progress.end()
        return _publish(config, folder, passes, plan)


@contextmanager
def _cleared_on_error(folder: Path) -> Iterator[None]:
    """Removes unfinished work when something about the data or the settings was wrong: it is worth nothing then."""
    try:
        yield
    except (DataError, ConfigError, UserCodeError):
        shutil.rmtree(folder / WORK, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()
        raise


def _plan_of(config: CorpusConfig) -> dict[str, Any]:
    """What the result is a function of."""
    settings = replace(absolute(config), output="", save_every=CorpusConfig().save_every)
    return {
        "settings": to_toml(settings),
        "inputs": inputs_of(config).digests(),
        "versions": versions(config),
    }


def _check_folder(folder: Path, plan: Mapping[str, Any]) -> None:
    """Raise RunError if the folder holds something else than this job's work."""
    if not folder.exists():
        return
    file = folder / WORK / PLAN
    if not file.exists():
        if not folder.is_dir() or {entry.name for entry in folder.iterdir()} - {WORK, LOCK}:
            raise RunError(
                f"{folder}: already there, and no unfinished work of proxlm data; choose another output"
            )
        return
    _compare(folder, _read_json(file), plan)


def _finished(folder: Path, plan: Mapping[str, Any]) -> PreparedData | None:
    """What is in a folder that was finished before. Raises RunError if it is of other settings or inputs."""
    file = folder / CARD
    if not file.exists() or (folder / WORK).exists():
        return None
    card = _read_json(file)
    _compare(folder, card.get("plan"), plan)
    return PreparedData(folder, {part: folder / f"{part}.jsonl" for part in card["files"]}, card)


def _compare(folder: Path, known: Any, plan: Mapping[str, Any]) -> None:
    other = [name for name in plan if not isinstance(known, Mapping) or known.get(name) != plan[name]]
    if other:
        raise RunError(
            f"{folder}: holds data prepared with other {listed(other)}; choose another output, or remove the folder"
        )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_regular(file, _LARGEST_CARD))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot be read; choose another output") from error


def _clear_leftovers(folder: Path) -> None:
    """Remove what a crash has left beside the files."""
    for file in folder.glob(".writing-*"):
        file.unlink()
    shutil.rmtree(folder / DONE, ignore_errors=True)


def _publish(config: CorpusConfig, folder: Path, passes: Passes, plan: Mapping[str, Any]) -> PreparedData:
    """Move the files to their places, and write the cards; it can be ended and done again."""
    work, done = folder / WORK, folder / DONE
    _clear_leftovers(folder)
    card = card_of(config, plan, passes.state, passes.parts)
    try:
        for part in passes.parts:
            with suppress(FileNotFoundError):  # moved before
                os.replace(work / f"{part}.jsonl", folder / f"{part}.jsonl")
        with suppress(FileNotFoundError):
            os.replace(work / SKIPPED, folder / SKIPPED)
        write_atomic(folder / "card.md", as_markdown(card))
        write_atomic(folder / "card.html", as_page(card))
        write_atomic(folder / "config.toml", to_toml(absolute(config)))
        write_json_atomic(folder / CARD, card)
        os.replace(work, done)  # half deleted, it would look unfinished
        sync_folder(folder)  # before what the files were made from is gone
        shutil.rmtree(done)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {system_reason(error)}") from error
    return PreparedData(
        folder, {part: folder / f"{part}.jsonl" for part in passes.parts}, _read_json(folder / CARD)
    )


class _Progress:
    """How far the passes are, and the time left in the one under way, on standard error where that is a terminal."""

    def __init__(self) -> None:
        self._begun: tuple[int, float, float] | None = None
        self._shown = 0.0

    def __call__(self, number: int, count: int, share: float, records: int) -> None:
        now = time.monotonic()
        if self._begun is None or self._begun[0] != number:
            self._begun = (number, now, share)
        if now - self._shown < 0.5 or not sys.stderr.isatty():
            return
        self._shown = now
        _, begun, first = self._begun
        left = (now - begun) * (1 - share) / (share - first) if share > first else float("inf")
        line = f"pass {number + 1} of {count}: {share:4.0%}, {records:,} records, about {duration(left)} left"
        print(f"\r{line}\033[K", end="", file=terminal_of(sys.stderr), flush=True)

    def end(self) -> None:
        """Leave an empty line."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=terminal_of(sys.stderr), flush=True)
