"""Secrets are named in the settings and kept in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxlm.config import EnvironmentSettings, RewardSettings, load_config, to_toml
from proxlm.environments.resolve import resolve
from proxlm.errors import ConfigError
from proxlm.rewards import build_reward
from proxlm.types import Completion

NEEDED = {"model.policy": "m", "data.prompts": "p.txt", "reward.use": "r.py:score"}
REWARD = """
def score(completions, api_key, url="here"):
    return [float(len(api_key)) for _ in completions]
"""
ENVIRONMENT = """
class Server:
    def __init__(self, token): self.token = token
    def reset(self, task): return "hello"
    def step(self, reply): return "", 1.0, True
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward.args.api_key", "abcdefgh12"),
        ("reward.args.OPENAI_API_KEY", "abcdefgh12"),
        ("reward.args.auth_token", "abcdefgh12"),
        ("reward.args.password", "correct-horse"),
        ("reward.args.anything", "sk-proj-0123456789abcdef"),
        ("reward.args.anything", "hf_0123456789abcdef"),
        ("reward.args.header", "Bearer eyJhbGciOi.eyJzdWIiOi.SflKxwRJ"),
        ("environment.args.secret", "abcdefgh12"),
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: looks like a secret.*env:NAME") as caught:
        load_config("ppo", overrides={**NEEDED, key: value})
    assert value not in str(caught.value)


def test_a_secret_of_a_term_or_of_an_evaluation_is_refused() -> None:
    terms = {"a": {"use": "r.py:score", "args": {"api_key": "abcdefgh12"}}}
    with pytest.raises(ConfigError, match=r"reward\.terms\.a\.args\.api_key: looks like a secret"):
        load_config("ppo", overrides={"model.policy": "m", "data.prompts": "p.txt", "reward.terms": terms})
    given = {**NEEDED, "reward.args.api_key": "abcdefgh12"}
    with pytest.raises(ConfigError, match=r"reward\.args\.api_key: looks like a secret"):
        load_config("evaluate", overrides=given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", "env:KEY"),
        ("token", "the"),
        ("token", "a word of the text"),
        ("tokens", "abcdefgh12"),
        ("key", "abcdefgh12"),
        ("pattern", "sk-[a-z]+"),
    ],
)
def test_what_is_no_secret_passes(name: str, value: str) -> None:
    config = load_config("ppo", overrides={**NEEDED, f"reward.args.{name}": value})
    assert config.reward.args == {name: value}


def test_the_function_gets_the_value_and_the_files_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.py").write_text(REWARD, encoding="utf-8")
    settings = {**NEEDED, "reward.use": f"{tmp_path}/r.py:score", "reward.args.api_key": "env:MY_KEY"}
    config = load_config("ppo", overrides=settings)
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match=r'reward\.args\.api_key = "env:MY_KEY": .* no variable \'MY_KEY\''):
        build_reward(config.reward)
    monkeypatch.setenv("MY_KEY", "seventeen letters")
    one = [Completion("p", "r", (1,), "eos", {})]
    assert build_reward(config.reward).score(one).total.tolist() == [17.0]
    assert "seventeen" not in to_toml(config)
    assert 'api_key = "env:MY_KEY"' in to_toml(config)
    isolated = RewardSettings(use=config.reward.use, args=config.reward.args, isolate=True)
    assert build_reward(isolated).score(one).total.tolist() == [17.0]


def test_an_environment_gets_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e.py").write_text(ENVIRONMENT, encoding="utf-8")
    monkeypatch.setenv("MY_TOKEN", "abc")
    make = resolve(EnvironmentSettings(use=f"{tmp_path}/e.py:Server", args={"token": "env:MY_TOKEN"}))
    assert make().token == "abc"  # type: ignore[attr-defined]
