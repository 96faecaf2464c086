"""The built-in reward for JSON that a schema accepts."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from proxlm.errors import ConfigError, RewardError
from proxlm.rewards.fields import field_of
from proxlm.rewards.python_tests import code_in
from proxlm.rewards.scorer import Scorer
from proxlm.sandbox.verifier import Verifier
from proxlm.text import headline, reason_of
from proxlm.types import Completion


def json_schema(
    schema: str = "",
    field: str = "schema",
    fenced: bool = True,
    seconds: float = 2.0,
    memory_mb: int = 512,
) -> Scorer:
    """1 if the response is JSON that the schema accepts, with nothing around it, else 0; as jsonschema judges it.

    No $ref leaves the schema. JSON that is too deep to be read is none.

    Args:
        schema: A file with the schema, for all records; empty: the record's.
        field: The record's field with its schema: an object, or its text.
        fenced: Judge the response's first fenced block if it has one, instead of the whole response.
        seconds: Limit of one response, in seconds of CPU time.
        memory_mb: What a response may need in MiB, beyond what its process has at its start.
    """
    if find_spec("jsonschema") is None:
        raise ConfigError('reward "json_schema" needs jsonschema: pip install "proxlm[schema]"')
    verifier = Verifier("proxlm.sandbox.json_schema", seconds, memory_mb)
    common = _read_schema(schema) if schema else ""

    def score(completion: Completion) -> float | RewardError:
        wanted = common
        if not common:
            found = field_of(completion, field)
            if isinstance(found, RewardError):
                return found
            if not isinstance(found, dict | str):
                return RewardError(f'field "{field}" holds a {type(found).__name__}, not a JSON schema')
            wanted = found if isinstance(found, str) else json.dumps(found)
        text = code_in(completion.text) if fenced else completion.text
        try:
            return float(verifier.check({"schema": wanted, "text": text}))
        except RewardError as error:
            return RewardError(f"jsonschema: {error}")

    return lambda completions: [score(c) for c in completions]


def _read_schema(path: str) -> str:
    """The text of the schema in a file, checked."""
    from jsonschema.exceptions import SchemaError

    from proxlm.sandbox.json_schema import validator_of

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        validator_of(json.loads(text))
    except (OSError, ValueError, RecursionError, SchemaError) as error:
        problem = headline(error) if isinstance(error, SchemaError) else reason_of(error)
        raise ValueError(f'schema = "{path}": no JSON schema: {problem}') from error
    return text
