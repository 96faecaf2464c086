"""Whatever load_config and validate are called with, the error is one line that says what was expected."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from proxlm.config import JOBS, PPOConfig, load_config, validate
from proxlm.errors import LONGEST_MESSAGE, ConfigError

NEEDED = {"model.policy": "m", "data.prompts": "p", "reward.use": "length"}


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)
TABLE_IN_ITSELF: dict[str, Any] = {}
TABLE_IN_ITSELF["x"] = TABLE_IN_ITSELF
DEEP: Any = 1
for _ in range(3000):
    DEEP = [DEEP]


@pytest.mark.parametrize("job", [None, 3, {}, dict, int, object, PPOConfig(), ["ppo"], "pp", "", "a" * 10**6])
def test_a_job_that_is_none(job: Any) -> None:
    with pytest.raises(ConfigError, match=r"job|unknown") as caught:
        load_config(job)
    assert len(str(caught.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize("file", [{...}, [1], 3, b"recipe.toml", True, object(), 1.5, PPOConfig()])
def test_a_file_that_is_none(file: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"file: expected a TOML file's path or a table of settings, got .* of type|file"
    ):
        load_config("ppo", file)


@pytest.mark.parametrize("overrides", [3, [1], "x", {...}, [("ppo.steps", 1)], b"x"])
def test_overrides_that_are_no_table(overrides: Any) -> None:
    with pytest.raises(ConfigError, match="overrides: expected a mapping, got"):
        load_config("ppo", None, overrides)


@pytest.mark.parametrize("arguments", [3, "--ppo.steps 3", [1], [None], ["--ppo.steps", 3], {...}, b"x"])
def test_arguments_that_are_no_texts(arguments: Any) -> None:
    with pytest.raises(ConfigError, match="arguments: expected a list of texts such as"):
        load_config("ppo", None, None, arguments)


@pytest.mark.parametrize(
    "value",
    [HOLDS_ITSELF, TABLE_IN_ITSELF, DEEP, 10**5000, -(10**400), "\ud800", b"x", {1}, object(), Unshowable(), ...,
     {1: 2}, {"a": {2: 3}}, {"a": Unshowable()}, "x" * 10**6, [("x" * 10**6)] * 3, float("nan"), None],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize(
    "key", ["reward.args", "reward.args.a", "ppo.steps", "model.policy", "ppo", "rollout.stop", "run.seed"]
)
def test_no_value_ends_in_another_error(key: str, value: Any) -> None:
    message = f"{key} is taken"
    try:
        load_config("ppo", None, {**NEEDED, key: value})
    except ConfigError as error:
        message = str(error)
    assert len(message) <= LONGEST_MESSAGE
    assert key in message


@pytest.mark.parametrize("config", [3, None, "x", {}, PPOConfig, object()])
def test_validate_takes_settings_alone(config: Any) -> None:
    with pytest.raises(ConfigError, match="expected a job's settings such as"):
        validate(config)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PPOConfig)])
@pytest.mark.parametrize("value", [3, None, [], "x", {"nothing": 1}, {1: 2}, ..., Unshowable()])
def test_validate_names_a_section_that_is_none(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^PPOConfig: {field}") as caught:
        validate(dataclasses.replace(PPOConfig(), **{field: value}))
    assert len(str(caught.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize("job", JOBS)
def test_very_many_settings_are_for_a_recipe(job: str) -> None:
    many = {f"reward.args.a{i}": i for i in range(10_001)}
    with pytest.raises(ConfigError, match="more than 10,000 entries"):
        load_config(job, None, many)
    with pytest.raises(ConfigError, match="more than 10,000 entries"):
        load_config(job, None, None, ["--x", "1"] * 5001)
