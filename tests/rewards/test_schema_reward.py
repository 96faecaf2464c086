"""The reward json_schema: what it accepts, and what it does with schemas and responses that are hostile."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from reward_helpers import refused

from proxlm.config.schema import RewardSettings
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards.schema_reward import json_schema
from proxlm.types import Completion

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}
RIGHT = ['{"name": "Ann"}', ' {"name": "安娜", "age": 3}\n', 'Here:\n```json\n{"name": "Ann"}\n```\nDone.']
WRONG = [
    '{"name": "A"}', '{"age": 3}', '{"name": "Ann", "age": -1}', '{"name": "Ann", "x": 1}', '{"name": "Ann"} yes',
    "", "NaN", '{"name": "Ann", "age": NaN}', "[" * 10**5 + "]" * 10**5, "9" * 10**5,
]  # fmt: skip


def scores(texts: list[str], fields: dict[str, Any], **arguments: Any) -> Any:
    return json_schema(**arguments)([Completion("", text, fields=fields) for text in texts])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    message = refused(ConfigError, RewardSettings(use="json_schema"))
    assert message == 'reward "json_schema" needs jsonschema: pip install "proxlm[schema]"'


def test_what_the_schema_accepts(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    wanted = [1.0] * len(RIGHT) + [0.0] * len(WRONG)
    assert scores(RIGHT + WRONG, {"schema": SCHEMA}) == wanted
    assert scores(RIGHT + WRONG, {"form": json.dumps(SCHEMA)}, field="form") == wanted
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    assert scores(RIGHT + WRONG, {}, schema=str(file)) == wanted
    assert scores(RIGHT, {}, schema=str(file), fenced=False) == [1, 1, 0]


def test_a_recursive_schema_reads_64_levels() -> None:
    pytest.importorskip("jsonschema")
    schema = {"type": "array", "items": {"$ref": "#"}}
    texts = ["[" * depth + "]" * depth for depth in (1, 64, 65, 900)]
    assert scores(texts, {"schema": schema}) == [1, 1, 0, 0]


def test_hostile_schemas_and_patterns_fail_their_row() -> None:
    pytest.importorskip("jsonschema")
    reward = json_schema(seconds=1.0)
    schemas: list[Any] = [
        {"pattern": "^(a+)+b$"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"type": "strin"},
        "{",
        7,
        {"$ref": "#"},
    ]
    found = reward([Completion("", json.dumps("a" * 60), fields={"schema": one}) for one in schemas])
    assert all(isinstance(one, RewardError) for one in found), found
    assert str(found[0]) == "jsonschema: took longer than 1 s; its process was ended"
    assert reward([Completion("", "7", fields={"schema": {"type": "integer"}})]) == [1]


def test_wrong_arguments(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    for text in ('{"type": "strin"}', "{", "7", "[" * 10**5):
        file.write_text(text, encoding="utf-8")
        message = refused(ConfigError, RewardSettings(use="json_schema", args={"schema": str(file)}))
        assert message.startswith(f'reward.args.schema = "{file}": no JSON schema: ')
    with pytest.raises(ValueError, match=r"^seconds = 0"):
        json_schema(seconds=0.0)
