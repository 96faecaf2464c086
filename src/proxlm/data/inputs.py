"""What a run reads: a SHA-256 of every file of its models, data, rewards and environments, for `inputs.json`.

A file is read once: size and times stand for its contents as long as they stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from proxlm.config.from_run import INPUTS, PASSED_FROM_PYTHON
from proxlm.config.paths import path_settings
from proxlm.data.input_files import files_of
from proxlm.errors import RunError
from proxlm.files import open_regular
from proxlm.runlog.folder import write_json_atomic
from proxlm.text import listed, shown, system_reason

FILE_NAME = INPUTS
FORMAT = 1
_THREADS = 4


class InMemory(Protocol):
    """What a Python caller passes instead of files: records, or a loaded model."""

    def sha256(self) -> str:
        """A hash of its contents, in hexadecimal."""


@dataclass(frozen=True)
class InputFile:
    """One file that a run reads.

    Attributes:
        sha256: of its bytes, in hexadecimal; empty where it could not be read.
        stamp: size in bytes, and times of the last change of contents and of properties, in nanoseconds; None: not
            known, so that the file must be read again, or there is no file: what was passed from Python.
    """

    sha256: str
    stamp: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Inputs:
    """The files that a run reads, by the setting that names them and their name below it.

    Attributes:
        files: setting ("data.prompts") → name ("prompts.jsonl") → the file.
        paths: setting → where its files were.
    """

    files: dict[str, dict[str, InputFile]]
    paths: dict[str, str] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """One SHA-256 for each setting, of the names and contents of its files."""
        return {
            key: hashlib.sha256(
                "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files)).encode(
                    "utf-8", "surrogatepass"
                )
            ).hexdigest()
            for key, files in self.files.items()
        }

    def without(self, keys: Collection[str]) -> Inputs:
        """The same without some settings."""
        return Inputs({key: files for key, files in self.files.items() if key not in keys}, self.paths)

    def on_disk(self) -> Inputs:
        """Those that are files, which any process can look at."""
        return self.without([key for key, files in self.files.items() if PASSED_FROM_PYTHON in files])

    def changes(self, run: Path, then: Any) -> list[str]:
        """A line for each setting whose files are no longer what they were when a checkpoint was written.

        Args:
            run: The run's folder; its inputs.json knows the single files.
            then: The checkpoint's digests; None: an older version recorded none, and nothing can be compared.

        Raises:
            RunError: These are no digests.
        """
        if then is None:
            return []
        if not isinstance(then, Mapping) or not all(isinstance(value, str) for value in then.values()):
            raise RunError(f"{run}: the newest checkpoint's state.json: no SHA-256 of each input at 'inputs'")
        now, recorded = self.digests(), read_inputs(run)
        lines = []
        for key in [*then, *(key for key in now if key not in then)]:
            if then.get(key) != now.get(key):
                before = recorded.files.get(key, {}) if recorded is not None else {}
                what = _difference(before, self.files.get(key, {})) if key in then else "no hash was recorded"
                lines.append(f"{key}: {what}")
        return lines


def inputs_of(
    config: Any, known: Inputs | None = None, in_memory: Mapping[str, InMemory] | None = None
) -> Inputs:
    """The files that a job's settings name, hashed.

    A reward's or an environment's file brings the modules beside it that it imports. What is on the hub counts as far
    as its files are in the local cache.

    Args:
        config: The settings.
        known: Inputs hashed before: files whose size and times are the same are not read again.
        in_memory: What a Python caller passed instead of a setting's files, by the setting's key.
    """
    in_memory = in_memory or {}
    places = {
        setting.key: (setting.value, {} if setting.key in in_memory else files_of(setting))
        for setting in path_settings(config)
    }
    wanted = [
        (key, name, path, known.files.get(key, {}).get(name) if known is not None else None)
        for key, (_, files) in places.items()
        for name, path in files.items()
    ]
    with ThreadPoolExecutor(_THREADS) as threads:
        hashed = list(threads.map(lambda w: _hashed(w[2], w[3]), wanted))
    found: dict[str, dict[str, InputFile]] = {key: {} for key, (_, files) in places.items() if files}
    for (key, name, _, _), file in zip(wanted, hashed, strict=True):
        found[key][name] = file
    found |= {key: {PASSED_FROM_PYTHON: InputFile(records.sha256())} for key, records in in_memory.items()}
    return Inputs(found, {key: os.path.abspath(value) for key, (value, files) in places.items() if files})


def _hashed(path: Path, known: InputFile | None) -> InputFile:
    try:
        with open_regular(path) as file:
            facts = os.fstat(file.fileno())
            stamp = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            if known is not None and known.stamp == stamp:
                return known
            return InputFile(hashlib.file_digest(file, "sha256").hexdigest(), stamp)
    except OSError:  # nor can the run have read it
        return InputFile("")


def write_inputs(run: Path, inputs: Inputs) -> None:
    """Write inputs.json. Raises RunError."""
    tables = {
        key: {
            "path": inputs.paths.get(key, ""),
            "files": {name: {"sha256": f.sha256, "stamp": f.stamp} for name, f in files.items()},
        }
        for key, files in inputs.files.items()
    }
    write_json_atomic(run / FILE_NAME, {"format": FORMAT, "inputs": tables})


def read_inputs(run: Path) -> Inputs | None:
    """What inputs.json holds; None if there is none, as in runs of older versions. Raises RunError that names it."""
    path = run / FILE_NAME
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {system_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid JSON: {error}") from error
    try:
        if content["format"] != FORMAT:
            raise RunError(
                f"{path}: format {shown(repr(content['format']))}, where this version knows {FORMAT}"
            )
        return Inputs(
            {str(k): dict(_files(table["files"])) for k, table in content["inputs"].items()},
            {str(k): str(table["path"]) for k, table in content["inputs"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{path}: not a record of a run's inputs") from error


def _files(table: Mapping[str, Any]) -> Iterator[tuple[str, InputFile]]:
    for name, row in table.items():
        sha256, stamp = row["sha256"], row["stamp"]
        if not isinstance(sha256, str) or len(sha256) not in (0, 64):
            raise TypeError(name)
        if stamp is None:
            yield name, InputFile(sha256)
            continue
        size, modified, changed = stamp
        yield name, InputFile(sha256, (int(size), int(modified), int(changed)))


def _difference(before: Mapping[str, InputFile], now: Mapping[str, InputFile]) -> str:
    """What has become of one setting's files."""
    changed = [name for name in before if name in now and before[name].sha256 != now[name].sha256]
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before] if before else []
    parts = [
        f"{listed(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} {what}"
        for names, what in ((changed, "changed"), (gone, "gone"), (new, "new"))
        if names
    ]
    return ", ".join(parts) or "changed since the checkpoint"
