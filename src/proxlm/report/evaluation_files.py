"""The files of a run's evaluations: evaluation.json, and all responses of each in evaluation-NAME.jsonl beside it.

The responses are written first. evaluation.json holds their SHA-256 and one of its own values, so that what somebody
changed afterwards is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxlm.checkpoint.manifest import file_record
from proxlm.errors import RunError
from proxlm.evaluation.results import Chosen, Evaluation, as_json
from proxlm.masking import masked_tree
from proxlm.report.run_data import Row, read_evaluation
from proxlm.runlog.folder import plain, read_jsonl, write_json_atomic, write_jsonl_atomic
from proxlm.system_errors import refused

NAME = "evaluation.json"
# Entries of evaluation.json: the hashes of the files of responses, by evaluation; and that of all other entries.
RESPONSES, SEAL = "responses_sha256", "sha256"


def write_responses(folder: Path, evaluation: Evaluation) -> None:
    """Write all responses of an evaluation. Raises RunError."""
    write_jsonl_atomic(_responses_file(folder, evaluation.name), evaluation.responses)


def read_responses(folder: Path, name: str) -> list[Row]:
    """All responses of an evaluation; none where there is no file of them. Raises RunError."""
    file = _responses_file(folder, name)
    return read_jsonl(file) if file.exists() else []


def write_evaluations(
    folder: Path, found: Sequence[Evaluation], seed: int, chosen: Chosen | None = None
) -> None:
    """Write evaluation.json, for evaluations whose responses are written. Raises RunError."""
    content = {
        **as_json(found, seed, chosen),
        RESPONSES: {e.name: _responses_hash(folder, e.name) for e in found},
    }
    written = plain(masked_tree(content))
    write_json_atomic(folder / NAME, {**written, SEAL: _hash(written)})


def changed_evaluations(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """What of a run's evaluations is not what the run wrote, a line for each file; content: its evaluation.json."""
    unsealed = {name: value for name, value in content.items() if name != SEAL}
    if content.get(SEAL) != _hash(unsealed):
        return [f"{folder / NAME}: a value is not what the run wrote (another SHA-256)"]
    found = []
    for name, sha256 in content[RESPONSES].items():
        if (now := _responses_hash(folder, name)) != sha256:
            problem = "not what the run wrote (another SHA-256)" if now else "missing"
            found.append(f"{_responses_file(folder, name)}: {problem}")
    return found


def read_unchanged(folder: Path) -> Row | None:
    """A run's evaluation.json; None if there is none.

    Raises:
        RunError: It, or the responses beside it, are not what the run wrote.
    """
    if not (folder / NAME).exists():
        return None
    content = read_evaluation(folder / NAME)
    if changed := changed_evaluations(folder, content):
        raise RunError(changed[0])
    return content


def _responses_file(folder: Path, name: str) -> Path:
    return folder / f"evaluation-{name}.jsonl"


def _responses_hash(folder: Path, name: str) -> str:
    """ "" where there is no such file."""
    try:
        return file_record(_responses_file(folder, name)).sha256
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RunError(refused(error)) from error


def _hash(content: Mapping[str, Any]) -> str:
    """Of the values, whatever the white space and the order of the keys."""
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    except RecursionError:  # nested deeper than a run's
        return ""
