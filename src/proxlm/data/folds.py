"""The records of a recipe in k parts, so that each part can be held out in turn; no prompt is in two parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from proxlm.config import PPOConfig, PreferenceSettings, PretrainConfig, TextSettings
from proxlm.data.documents import drawn_parts
from proxlm.data.fields import field_at
from proxlm.data.formats import training_content
from proxlm.data.preferences import read_comparison
from proxlm.data.records import iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.data.text import read_texts
from proxlm.errors import BadRecordError, DataError
from proxlm.runlog.folder import write_atomic
from proxlm.text import reason_of

Fields = dict[str, Any]


def parts_of(config: Any, k: int, seed: int) -> list[list[Fields]]:
    """The records that a job trains on, in k parts of nearly as many prompts, in the order of the files.

    Args:
        config: The job's settings.
        k: How many parts.
        seed: Draws them.

    Raises:
        DataError: There are fewer than k prompts, or the data cannot be read.
    """
    records = _records(config)
    prompts = list(dict.fromkeys(prompt for prompt, _ in records))
    if len(prompts) < k:
        what = "texts" if isinstance(config, PretrainConfig) else "different prompts"
        raise DataError(f"k = {k}: there are only {len(prompts)} {what}; lower k, or give more records")
    part_of = dict(zip(prompts, drawn_parts(len(prompts), k, seed), strict=True))
    parts: list[list[Fields]] = [[] for _ in range(k)]
    for prompt, fields in records:
        parts[part_of[prompt]].append(fields)
    return parts


def write_records(path: Path, records: Sequence[Fields]) -> None:
    """Write records as JSONL, as they are.

    Raises:
        DataError: One holds what JSON cannot hold.
        RunError: The file cannot be written.
    """
    try:
        lines = [json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n" for fields in records]
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"a record cannot be written as JSON: {reason_of(error)}; convert the data first"
        ) from error
    write_atomic(path, "".join(lines))


def _records(config: Any) -> list[tuple[str, Fields]]:
    """Each record with what stands for its prompt."""
    if isinstance(config, PretrainConfig):
        texts = read_texts(
            config.text.train, config.text.extensions, Skipped(config.text.on_bad_record == "skip")
        )
        return [(str(number), {"text": text}) for number, text in enumerate(texts)]
    if isinstance(config, PPOConfig):
        field, skip = config.data.prompt_field, config.data.on_bad_record == "skip"
        return _read([config.data.prompts], lambda record: _as_key(field_at(record.fields, field)), skip)
    prompt_of = _of_comparison if isinstance(config.text, PreferenceSettings) else _of_example
    return _read(
        config.text.train, lambda record: prompt_of(record, config.text), config.text.on_bad_record == "skip"
    )


def _read(paths: Sequence[str], prompt_of: Callable[[Record], str], skip: bool) -> list[tuple[str, Fields]]:
    found = []
    for path in paths:
        for record in iter_records(path, Skipped(skip)):
            try:
                prompt = prompt_of(record)
            except BadRecordError:  # for the job to judge
                prompt = ""
            found.append((prompt or _as_key(record.fields), record.fields))
    return found


def _of_example(record: Record, text: TextSettings) -> str:
    """Of a conversation: what stands before the assistant's first turn."""
    content = training_content(record, text)
    if content is None:
        return ""
    if isinstance(content, tuple):
        return content[0]
    first = next(
        (i for i, m in enumerate(content.messages) if m["role"] == "assistant"), len(content.messages)
    )
    return _as_key(content.messages[:first])


def _of_comparison(record: Record, text: PreferenceSettings) -> str:
    prompt = field_at(record.fields, text.prompt_field)
    if prompt is not None:
        return _as_key(prompt)
    found = read_comparison(record, text)
    return "" if found is None else found.group


def _as_key(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, default=str)
