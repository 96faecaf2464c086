"""Secrets are named in the settings and kept in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxlm.config import EnvironmentSettings, RewardSettings, load_config, to_toml
from proxlm.config.secrets import from_environment
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
        *((f"reward.args.{name}", "hunter2") for name in (
            "secret_key", "secretKey", "apiToken", "pwd", "dbPwd", "passphrase", "api-key", "x-api-key", "access_key",
            "pw", "ssh_key", "password2", "API_KEY_1", "encryptionKey", "aws_secret_access_key", 
            "credentials", "private_key", "PRIVATE_KEY", "clientSecret", "apikey",
        )),
        ("reward.args.pwd", 12345678),
        ("reward.args.key", "9f86d081884c7d659a2feaa0c55ad015"),
        ("reward.args.judgeKey", "AbCd1234EfGh5678"),
        ("reward.args.session", "abcdefgh12"),
        ("reward.args.dsn", "host=db user=bob password=hunter2"),
        ("reward.args.header", "X-Api-Key: hunter2hunter2"),
        ("data.system", "api_key = 'abcd1234'"),
        ("reward.args.Authorization", "Custom abcdef and more"),
        *((f"{key}", value) for key in (
            "reward.args.anything", "data.system", "data.prompts", "model.policy", "run.wandb", "run.folder",
            "rollout.stop",
        ) for value in (
            "hf_AbCdEfGhIjKlMnOpQrStUv", "sk-ant-api03-AbCd0123EfGh4567", "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "AKIAIOSFODNN7EXAMPLE", "eyJhbGciOi.eyJzdWIiOi.SflKxwRJ", "https://bob:hunter2hunter2@judge.local/v1",
            "https://judge.local/v1?model=x&token=abcd1234", "Authorization: Bearer abcd1234EFGH",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE", "xoxb-1234-abcdABCD1234", "https://hf_AbCdEfGhIjKlMn@host/x",
        )),
    ],
)  # fmt: skip
def test_a_secret_among_the_settings_is_refused_and_not_repeated(key: str, value: str | int) -> None:
    given = [value] if key == "rollout.stop" else value
    # What is no path may be env:NAME instead.
    advice = "choose another name" if key in ("data.prompts", "model.policy", "run.folder") else "env:NAME"
    with pytest.raises(ConfigError, match=rf"{key}: looks like a secret.*{advice}") as caught:
        load_config("ppo", overrides={**NEEDED, key: given})
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"headers": {"Authorization": "Bearer hf_AbCdEfGhIjKlMnOpQrStUv"}}, "headers.Authorization"),
        ({"keys": ["a", "hf_AbCdEfGhIjKlMnOpQrStUv"]}, "keys"),
        ({"auth": {"user": "bob", "by": ["hunter2hunter2"]}}, "auth.by"),
        ({"servers": [{"url": "x"}, {"url": "x", "password": "hunter2"}]}, "servers.password"),
        ({"a": {"b": {"c": [[{"d": "sk-proj-0123456789abcdef"}]]}}}, "a.b.c.d"),
        ({"by_key": {"hf_AbCdEfGhIjKlMnOpQrStUv": 1}}, "by_key"),
        ({"given": "env:hf_AbCdEfGhIjKlMnOpQrStUv"}, "given"),
        ({"password": "env:not a name"}, "password"),
    ],
)
def test_tables_and_lists_are_looked_through(args: dict[str, Any], key: str) -> None:
    for section in ("reward", "environment"):
        with pytest.raises(ConfigError, match=rf"{section}\.args\.{key}: looks like a secret") as caught:
            load_config("ppo", overrides={**NEEDED, f"{section}.args": args})
        assert not any(part in str(caught.value) for part in ("AbCd", "hunter", "0123456789", "not a name"))


@pytest.mark.parametrize(
    "text", ["ppo.steps", "model.device", "job", "reward.weights.api_key", "ppo.unknown"]
)
def test_a_wrong_setting_does_not_repeat_a_secret(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(f'{text} = "hf_AbCdEfGhIjKlMnOpQrStUv"')
    with pytest.raises(ConfigError) as caught:
        load_config("ppo", tmp_path / "r.toml", NEEDED)
    assert "AbCd" not in str(caught.value)
    (tmp_path / "r.toml").write_text('reward.weights = {api_key = "hunter2hunter2"}')
    with pytest.raises(ConfigError, match="not shown") as caught:
        load_config("ppo", tmp_path / "r.toml", NEEDED)
    assert "hunter" not in str(caught.value)


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
        ("stop_token", "</answer>"),
        ("eosToken", "<|im_end|>"),
        ("max_tokens", 512),
        ("use_auth", True),
        ("tokenizer", "gpt2-tokenizer"),
        ("author", "somebody known"),
        ("model", "task-specific-reward-model-2024"),
        ("about", "the bearer understands basic responsibilities"),
        ("url", "https://judge.local:8000/v1?model=x"),
        ("remote", "ssh://git@host/x"),
        ("passwords_file", "data/passwords.txt"),
        ("answer_key", "question_1_answer_field"),
        ("key", "final_answer"),
        ("about", "password: must be long; the api key: at least one"),
        ("digest", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"),
        ("nested", {"headers": {"Authorization": "env:KEY", "Accept": "text/plain"}, "list": ["env:KEY"]}),
    ],
)
def test_what_is_no_secret_passes(name: str, value: Any) -> None:
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


def test_tables_and_lists_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "the value of it")
    args = {"headers": {"Authorization": "env:MY_KEY"}, "keys": ["x", ["env:MY_KEY"]], "n": 1}
    assert from_environment("reward.args", args) == {
        "headers": {"Authorization": "the value of it"},
        "keys": ["x", ["the value of it"]],
        "n": 1,
    }
    with pytest.raises(ConfigError, match=r'reward\.args\.a\.b = "env:NONE_OF_THIS_NAME"'):
        from_environment("reward.args", {"a": {"b": "env:NONE_OF_THIS_NAME"}})


def test_an_environment_gets_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e.py").write_text(ENVIRONMENT, encoding="utf-8")
    monkeypatch.setenv("MY_TOKEN", "abc")
    make = resolve(EnvironmentSettings(use=f"{tmp_path}/e.py:Server", args={"token": "env:MY_TOKEN"}))
    assert make().token == "abc"  # type: ignore[attr-defined]
