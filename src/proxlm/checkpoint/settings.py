"""Which settings a resume may change: those that do not change the numbers of a step.

A checkpoint holds the settings of its run. A setting that is not marked `on_resume="free"` where it is declared must
be the same, or the resumed run would be another run under the old one's name.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxlm.config.paths import absolute
from proxlm.config.tree import is_section, kinds
from proxlm.config.values import dotted, shown_value
from proxlm.errors import RunError

MISSING = object()


def settings_of(job: Any) -> dict[str, Any]:
    """All settings of a job as JSON holds them, with absolute paths."""
    return dict(json.loads(json.dumps(dataclasses.asdict(absolute(job)))))


def check_settings(checkpoint: Path, saved: Any, job: Any) -> None:
    """Raise RunError for the first setting that has changed and must not; the message has both values.

    saved: what `settings_of` gave when the checkpoint was written.
    """
    if not isinstance(saved, Mapping):
        raise RunError(f"{checkpoint / 'state.json'}: holds no settings of the run")
    kind = type(job)
    found = _changed(kind, settings_of(job), saved, settings_of(kind()), ())
    if found is None:
        return
    key, old, new = found
    raise RunError(
        f"{checkpoint}: made with {dotted(key)} = {_shown(old)}, not {_shown(new)}; resume with the same, or start a"
        " new run"
    )


def _changed(
    kind: Any,
    now: Mapping[str, Any],
    saved: Mapping[str, Any],
    defaults: Mapping[str, Any],
    at: tuple[str, ...],
) -> tuple[tuple[str, ...], Any, Any] | None:
    """The first setting below `at` that differs though it must not, with its old and its new value."""
    for field in dataclasses.fields(kind):
        if field.metadata.get("on_resume") == "free":
            continue
        key, new = (*at, field.name), now[field.name]
        # A setting that the version which wrote the checkpoint did not know was what its default says.
        old = saved.get(field.name, defaults[field.name])
        section = kinds(kind)[field.name]
        if is_section(section) and isinstance(old, Mapping):
            below = _changed(section, new, old, defaults[field.name], key)
            if below is not None:
                return below
        elif field.metadata.get("path") and _moved(old, new):
            continue
        elif old != new or isinstance(old, bool) is not isinstance(new, bool):
            return key, old, new
    unknown = [name for name in saved if name not in now]
    return ((*at, str(unknown[0])), saved[unknown[0]], MISSING) if unknown else None


def _moved(old: Any, new: Any) -> bool:
    """Whether a path, or each of several, names the same file in another folder, because its own was moved."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(a == b or _moved(a, b) for a, b in zip(old, new, strict=True))
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    if not os.path.isabs(old):
        # A label of what only Python can pass; read from a run's config.toml, it looks like a path from there.
        return os.path.isabs(new) and new.endswith(os.sep + old) and not os.path.lexists(new)
    gone = not os.path.exists(old) and not os.path.exists(old.rpartition(":")[0])
    return gone and os.path.basename(old) == os.path.basename(new)


def _shown(value: Any) -> str:
    return "a setting of this version" if value is MISSING else shown_value(value)
