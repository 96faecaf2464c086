"""Whether a text is JSON that a schema accepts, as the package jsonschema judges it.

Judged in a process that can be killed (verifier.py): a schema's patterns may backtrack for ever. No $ref leaves the
schema.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from jsonschema_specifications import REGISTRY

DEEPEST = 64


def check(schema: str, text: str) -> float:
    """1 if the text is JSON that the schema accepts, else 0; more than DEEPEST levels are too deep.

    Raises:
        Exception: The schema is none, or a $ref in it leads nowhere.
    """
    validator = _validator(schema)
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # too deep is no answer either
        return 0.0
    return float(not _is_deep(value) and validator.is_valid(value))


@lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    return validator_of(json.loads(schema))


def validator_of(schema: Any) -> Validator:
    """The validator of a schema's own draft, 2020-12 where it names none; it fetches nothing."""
    if not isinstance(schema, dict | bool):
        raise ValueError(f"a schema is an object, not a {type(schema).__name__}")  # noqa: TRY004
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=REGISTRY)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are no JSON
