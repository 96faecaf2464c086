"""What came from env:NAME is in no file, on no stream and in no traceback, whatever a reward does with it."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from small_runs import PPO, tiny_place  # noqa: F401

import proxlm
from proxlm.__main__ import main

KEY = 'tr0ub4dor&3 "<é>\\x'
LINES = "first-line-of-it\nsecond-line-of-it"
SPELLED = [
    part
    for value in (KEY, *LINES.split("\n"))
    for part in (value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value))
] + ["tr0ub4dor"]

REWARD = """
import logging, sys, warnings
def score(completions, key, headers, keys, mode="good"):
    assert key == headers["Authorization"] == keys[0]["inner"] and "\\n" in keys[1]
    if mode == "good":
        print("the key is", key, repr(key), keys)
        print(f"the lines are {keys[1]}", file=sys.stderr)
        logging.getLogger("judge").warning("called with %s", key)
        values = [sum(c in "aeiou" for c in x.text) / 20 for x in completions]
        return {"plain": values, f"with {key}": values, f"long {'x' * 60} {key}": values}
    if mode == "raises":
        raise ValueError(f"401 for {key}, {keys!r}" + "x" * 1000)
    if mode == "long":
        raise ValueError("x" * 280 + key)
    if mode == "caused":
        try:
            {}[key]
        except KeyError as error:
            raise ExceptionGroup("several", [RuntimeError(f"no {keys[1]}")]) from error
    if mode == "exits":
        sys.exit(f"no {key}")
    if mode == "wrong":
        return [key] * len(completions)
    if mode == "named":
        return {key: [key] * len(completions)}
    if mode == "own":
        class Refused(Exception):
            def __str__(self):
                return f"refused {key}"
        raise Refused()
"""
SERVER = """
class Server:
    def __init__(self, token, mode="good"):
        self.token, self.mode = token, mode
    def reset(self, task):
        print("reset with", self.token)
        return f"hello {self.token}"
    def step(self, reply):
        if self.mode == "raises":
            raise ValueError(f"no such token: {self.token}")
        return "", 1.0, True
"""
ARGS = """
[reward.args]
key = "env:JUDGE_KEY"
headers = {Authorization = "env:JUDGE_KEY"}
keys = [{inner = "env:JUDGE_KEY"}, "env:JUDGE_LINES"]
"""


@pytest.fixture
def place(tiny_place, monkeypatch):  # noqa: F811
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("JUDGE_LINES", LINES)
    (tiny_place / "reward.py").write_text(REWARD, encoding="utf-8")
    (tiny_place / "server.py").write_text(SERVER, encoding="utf-8")
    recipe = tiny_place / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + ARGS, encoding="utf-8")
    return tiny_place


def found(data: bytes | str) -> list[str]:
    """The spellings of the secrets that are in the data."""
    data = data if isinstance(data, bytes) else data.encode()
    return [part for part in SPELLED if part.encode() in data]


def check_folder(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not found(str(path))
        if path.is_file():
            assert not found(path.read_bytes()), path


def test_a_run_whose_reward_tells_everything_holds_nothing_and_resumes(place, capfd):
    assert main([*PPO, "--ppo.steps", "2", "--run.report", "true", "--run.tensorboard", "true"]) == 0
    assert (
        main([*PPO, "--ppo.steps", "3", "--run.report", "true", "--run.resume", "--run.tensorboard", "true"])
        == 0
    )
    assert main(["evaluate", "run", "--output", "run/evaluated.json"]) == 0
    assert main(["report", "run", "--output", "run/again.html"]) == 0
    assert main(["doctor", "run", "--output", "run/doctor.json"]) == 0
    out, err = capfd.readouterr()
    assert "the key is env:JUDGE_KEY 'env:JUDGE_KEY' [{'inner': 'env:JUDGE_KEY'}, 'env:JUDGE_LINES" in out
    assert "the lines are env:JUDGE_LINES\n" in err
    assert not found(out)
    assert not found(err)
    check_folder(place / "run")
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert any("with env:JUDGE_KEY" in name for name in rows[-1])
    assert 'key = "env:JUDGE_KEY"' in (place / "run" / "config.toml").read_text()


@pytest.mark.parametrize("isolate", ["false", "true"])
@pytest.mark.parametrize("mode", ["raises", "long", "caused", "exits", "wrong", "named", "own"])
def test_a_reward_that_fails_with_it(place, capfd, mode, isolate):
    assert main([*PPO, "--reward.args.mode", mode, "--reward.isolate", isolate]) == 2
    out, err = capfd.readouterr()
    assert not found(out)
    assert not found(err)
    assert "Traceback" not in err
    if mode in ("raises", "own"):
        assert "env:JUDGE_KEY" in err
    assert all(len(line) <= 300 for line in err.splitlines())


def test_an_isolated_reward_that_prints_it(place, capfd):
    assert main([*PPO, "--ppo.steps", "1", "--reward.isolate"]) == 0
    out, err = capfd.readouterr()
    assert "the key is env:JUDGE_KEY" in out + err
    assert not found(out)
    assert not found(err)
    check_folder(place / "run")


@pytest.mark.parametrize(("mode", "status"), [("good", 0), ("raises", 2)])
def test_an_environment_that_tells_it(place, capfd, mode, status):
    recipe = (place / "recipe.toml").read_text(encoding="utf-8")
    recipe = recipe.split("[reward]")[0] + "[ppo]" + recipe.split("[ppo]")[1].split("[reward.args]")[0]
    recipe += (
        f'[environment]\nuse = "server.py:Server"\nargs = {{token = "env:JUDGE_KEY", mode = "{mode}"}}\n'
    )
    (place / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert main([*PPO, "--ppo.steps", "1"]) == status
    out, err = capfd.readouterr()
    assert "reset with env:JUDGE_KEY" in out
    assert not found(out)
    assert not found(err)
    if status == 0:
        check_folder(place / "run")


@pytest.mark.parametrize("mode", ["raises", "long", "caused", "wrong"])
def test_the_traceback_of_a_call_from_python(place, mode):
    config = proxlm.load_config("ppo", "recipe.toml", {"reward.args.mode": mode})
    with pytest.raises(proxlm.UserError) as caught:
        proxlm.PPOTrainer(config=config).train()
    assert not found("".join(traceback.format_exception(caught.value)))


def test_the_traceback_of_a_bug(place, capfd, monkeypatch):
    def bug(*_):
        raise AssertionError(f"a bug with {KEY}\x1b[31m")

    main([*PPO, "--ppo.steps", "1", "--ppo.minibatches", "0"])  # the values are known from here on
    capfd.readouterr()
    try:
        bug()
    except AssertionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    err = capfd.readouterr().err
    assert r"AssertionError: a bug with env:JUDGE_KEY\x1b[31m" in err
    assert "Traceback (most recent call last):\n" in err
    assert not found(err)
