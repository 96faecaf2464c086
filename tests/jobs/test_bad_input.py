"""Bad input: one clear line, exit code 2, and no run folder left behind."""

from __future__ import annotations

import json

import pytest
from test_jobs import place  # noqa: F401

from proxlm.__main__ import main

BASE = ["ppo", "recipe.toml"]


def fails(capsys, arguments, *wanted):
    """The command ends with code 2 and one line on standard error that holds every wanted text."""
    code = main(arguments)
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert len(error.splitlines()) == 1, error
    for text in wanted:
        assert text in error
    return error


CASES = {
    "missing file": (["--data.prompts", "nowhere.jsonl"], ["nowhere.jsonl"]),
    "missing model": (["--model.policy", "./nowhere"], ["model.policy", "./nowhere", "no such folder"]),
    "unknown key": (["--ppo.kl-koef", "1"], ["ppo.kl-koef", "ppo.kl_coef"]),
    "impossible value": (["--ppo.lam", "1.5"], ["ppo.lam", "1.5"]),
    "wrong type": (["--ppo.steps", "many"], ["ppo.steps", "many"]),
    "wrong field": (["--data.prompt-field", "promt"], ["prompts.jsonl", "promt", "prompt"]),
    "unknown reward": (["--reward.use", "sentimint"], ["sentimint", "sentiment"]),
    "no such reward file": (["--reward.use", "gone.py:score"], ["gone.py"]),
    "no such function": (["--reward.use", "reward.py:scorn"], ["scorn", "score"]),
    "context too short": (["--rollout.max-new-tokens", "200"], ["max_new_tokens", "128"]),
    "prompt too long": (["--data.max-prompt-tokens", "3"], ["prompts.jsonl", "3"]),
    "no run to resume": (["--resume"], ["nothing to resume"]),
    "device": (["--model.device", "abacus"], ["abacus"]),
}


@pytest.mark.parametrize("case", CASES)
def test_settings_and_files(place, capsys, case):  # noqa: F811
    arguments, wanted = CASES[case]
    fails(capsys, [*BASE, *arguments], *wanted)
    assert not (place / "run").exists()


DATA = {
    "empty": ("", ["prompts.jsonl", "holds no records"]),
    "malformed": ('{"prompt": "a"}\n{"prompt": "b"\n', ["prompts.jsonl", "2"]),
    "not an object": ('{"prompt": "a"}\n[1]\n', ["prompts.jsonl", "2"]),
    "empty prompt": ('{"prompt": "a"}\n{"prompt": ""}\n', ["prompts.jsonl", "2"]),
    "number": ('{"prompt": 7}\n', ["prompts.jsonl", "1", "prompt"]),
}


@pytest.mark.parametrize("case", DATA)
def test_prompts(place, capsys, case):  # noqa: F811
    text, wanted = DATA[case]
    (place / "prompts.jsonl").write_text(text, encoding="utf-8")
    fails(capsys, BASE, *wanted)
    assert not (place / "run").exists()


REWARDS = {
    "raises": ("raise KeyError('colour')", ["KeyError", "colour", "bad.py"]),
    "nan": ("return [float('nan') for _ in completions]", ["nan"]),
    "count": ("return [1.0]", ["1", "2"]),
    "text": ("return 'good'", ["str"]),
    "hangs": ("import time; time.sleep(60)", ["0.5"]),
}


@pytest.mark.parametrize("case", REWARDS)
def test_rewards(place, capsys, case):  # noqa: F811
    body, wanted = REWARDS[case]
    (place / "bad.py").write_text(f"def score(completions):\n    {body}\n", encoding="utf-8")
    fails(capsys, [*BASE, "--reward.use", "bad.py:score", "--reward.timeout", "0.5"], "score", *wanted)
    assert not (place / "run").exists()


def test_reward_errors_can_be_scored_and_are_counted(place):  # noqa: F811
    (place / "bad.py").write_text("def score(completions):\n    raise ValueError\n", encoding="utf-8")
    arguments = ["--reward.use", "bad.py:score", "--reward.on-error", "score", "--reward.error-score", "-1"]
    assert main([*BASE, *arguments, "--ppo.steps", "1"]) == 0
    row = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (row["reward"], row["reward_failed"]) == (-1.0, 8.0)


def test_tokenizer_without_eos(place, capsys):  # noqa: F811
    for file in (place / "model").glob("*token*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("eos_token", None):
            file.write_text(json.dumps(config), encoding="utf-8")
    fails(capsys, BASE, "EOS", "model")
    assert not (place / "run").exists()


def test_folder_that_holds_a_run_is_left_alone(place, capsys):  # noqa: F811
    (place / "run").mkdir()
    (place / "run" / "mine.txt").write_text("keep")
    fails(capsys, BASE, "run", "set run.resume to go on")
    assert [p.name for p in (place / "run").iterdir()] == ["mine.txt"]


def test_torn_checkpoints_are_named(place, capsys):  # noqa: F811
    assert main(BASE) == 0
    whole = (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    newest, before = (place / "run" / "checkpoints" / f"step-0000000{k}" for k in (4, 2))
    (newest / "state.safetensors").write_bytes(b"torn")
    capsys.readouterr()
    assert main([*BASE, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "passed over a damaged checkpoint" in printed
    assert "step-00000004: state.safetensors has 4 bytes" in printed
    assert f"resumed from run/checkpoints/{before.name}" in printed
    again = (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["reward"] for row in again] == [json.loads(row)["reward"] for row in whole]
    for folder in (newest, before):
        (folder / "state.json").write_bytes(b"torn")
    fails(capsys, [*BASE, "--resume"], "every checkpoint is damaged", "step-00000004", "step-00000002")


def test_a_reward_that_is_always_none(place, capsys):  # noqa: F811
    (place / "none.py").write_text("def score(completions):\n    return [None for _ in completions]\n")
    fails(
        capsys,
        [*BASE, "--reward.use", "none.py:score"],
        "returned None, which is no reward, for all",
        "of a trial",
    )
    assert not (place / "run").exists()


def test_a_reward_that_is_none_for_the_first_two_may_have_others(place, capsys):  # noqa: F811
    text = (
        "seen = []\n\n\ndef score(completions):\n    seen.append(len(completions))\n"
        "    return [None if len(seen) == 1 else float(len(c.text)) for c in completions]\n"
    )
    (place / "late.py").write_text(text)
    assert main([*BASE, "--reward.use", "late.py:score", "--ppo.steps", "1", "--data.eval-count", "0"]) == 0
    assert "ppo 1/1" in capsys.readouterr().out
