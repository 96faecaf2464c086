"""`proxlm search` and `proxlm sweep` on real runs: killed, stopped, continued from their own checkpoints."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proxlm.__main__ import main
from proxlm.config import load_config
from proxlm.models.save import save_language_model
from proxlm.train.supervised.loop import SupervisedLoop
from small_models import TEXTS, tiny_model

SEARCH = ["search", "sft", "sft.toml", "--space", "space.toml", "--trials", "3", "--sampler", "random"]


@pytest.fixture
def place(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    rows = [{"prompt": f"{t[:9]} {i}", "response": t[9:20]} for i in range(4) for t in TEXTS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "sft.toml").write_text(
        'job = "sft"\n[model]\npolicy = "model"\ndevice = "cpu"\n[text]\ntrain = ["pairs.jsonl"]\n'
        "[train]\nsteps = 4\nbatch_tokens = 200\nvalidate_every = 2\n[optim]\nlr = 1e-3\nwarmup = 0\n"
        "[run]\nsave_every = 2\ntensorboard = false\nreport = false\nthreads = 1\n",
        encoding="utf-8",
    )
    (tmp_path / "space.toml").write_text("[optim]\nlr = {low = 1e-4, high = 1e-2, log = true}\n")
    return tmp_path


def killed_at(step: int, command: list[str]) -> int:
    """Run a command in a fork that kills itself before one of its training steps; its exit status."""
    pid = os.fork()
    if pid == 0:
        counted, train = [0], SupervisedLoop.step

        def dying(self: Any, *arguments: Any) -> Any:
            counted[0] += 1
            if counted[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return train(self, *arguments)

        SupervisedLoop.step = dying  # type: ignore[method-assign]
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        main(command)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def results(folder: str) -> Any:
    text = Path(folder, "results.json").read_text(encoding="utf-8").replace(f"{folder}/trials", "trials")
    found = json.loads(text)
    for trial in found["trials"]:
        del trial["seconds"]
        for name in [name for name in trial["numbers"] if name.startswith(("time", "tokens_per", "memory"))]:
            del trial["numbers"][name]
    return found


def counting(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the training steps by the folder of their run."""
    steps, train = Counter[str](), SupervisedLoop.step

    def counted(self: Any, *arguments: Any) -> Any:
        steps[str(self.folder)] += 1
        return train(self, *arguments)

    monkeypatch.setattr(SupervisedLoop, "step", counted)
    return steps


def test_a_search_killed_in_a_run_ends_as_one_that_was_not(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SEARCH, "--folder", "whole"]) == 0
    out = capsys.readouterr().out
    assert "3 trials: 3 finished" in out
    assert "proxlm sft whole/best.toml" in out
    # Killed before the last step of the second trial, whose second step is saved.
    assert killed_at(8, [*SEARCH, "--folder", "cut"]) == -signal.SIGKILL
    steps = counting(monkeypatch)
    assert main([*SEARCH, "--folder", "cut"]) == 0
    assert steps == {"cut/trials/0002/seed-0": 2, "cut/trials/0003/seed-0": 4}
    assert results("cut") == results("whole")
    assert main([*SEARCH, "--folder", "cut"]) == 0
    assert sum(steps.values()) == 6  # nothing is left to train
    best = load_config("sft", "cut/best.toml")
    assert 1e-4 <= best.optim.lr <= 1e-2


def test_a_stopped_search_says_how_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = SupervisedLoop.step

    def stopping(self: Any, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *arguments)

    monkeypatch.setattr(SupervisedLoop, "step", stopping)
    assert main([*SEARCH, "--folder", "s", "--set", "optim.warmup=1"]) == 143
    said = capsys.readouterr().err
    assert (
        "stopped by SIGTERM; go on with: proxlm search sft sft.toml --folder s --set optim.warmup=1"
        " --space space.toml --trials 3 --sampler random"
    ) in said


def test_a_sweep_compares_every_combination_with_the_recipe(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "sweep", "sft", "sft.toml", "--over", "optim.lr=1e-3,1e-2", "--over", "optim.name=adamw,sgd", "--seeds", "2",
        "--set", "train.steps=2", "--folder", "sw",
    ]  # fmt: skip
    assert killed_at(5, command) == -signal.SIGKILL
    steps = counting(monkeypatch)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert sum(steps.values()) == 12
    found = json.loads((place / "sw" / "results.json").read_text(encoding="utf-8"))["combinations"]
    assert [tuple(one["values"].values()) for one in found] == [
        (0.001, "adamw"), (0.001, "sgd"), (0.01, "adamw"), (0.01, "sgd"),
    ]  # fmt: skip
    assert all(set(one["runs"]) == {"0", "1"} for one in found)
    means = {tuple(one["values"].values()): mean_loss(one) for one in found}
    lead = means[0.01, "adamw"] - means[0.001, "adamw"]
    row = next(line for line in out.splitlines() if line.startswith('0.01      "adamw"'))
    assert f"{lead:+.3g}" in row
    assert 'difference: seed by seed, from optim.lr = 0.001, optim.name = "adamw"' in out
    assert main(command) == 0
    assert sum(steps.values()) == 12
    assert main([*command, "--over", "train.patience=1,2"]) == 2
    assert "was begun with other over" in capsys.readouterr().err


def mean_loss(one: Any) -> float:
    return sum(run["validation_loss"] for run in one["runs"].values()) / len(one["runs"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "sft"], "recipe: required"),
        (["search", "sft", "sft.toml"], "space: required"),
        (
            ["search", "sft", "sft.toml", "--space", "none.toml"],
            "none.toml: no such file, and no ready space",
        ),
        (["search", "sft", "sft.toml", "--space", "ppo"], "ppo: no such file, and no ready space"),
        (["search", "sft", "sft.toml", "--space", "sft.toml"], "job"),
        (["search", "evaluate", "sft.toml"], "expected one of"),
        (["search", "dpo", "sft.toml", "--space", "space.toml"], "these are the settings of proxlm sft"),
        (["sweep", "sft", "sft.toml"], "over: required"),
        (["sweep", "sft", "sft.toml", "--over", "optim.lr"], "write section.key=VALUE,VALUE"),
        (["sweep", "sft", "sft.toml", "--over", "optim.rl=1"], "optim.rl: unknown key"),
        (["sweep", "sft", "sft.toml", "--over", "optim.lr=0.1,x"], "optim.lr: expected a number"),
        (["sweep", "sft", "sft.toml", "--over", "optim.lr=0.1,-1"], "optim.lr = -1.0: must be more than 0"),
        (
            ["sweep", "sft", "sft.toml", "--over", "optim.schedule=constant,staged"],
            'over: optim.schedule = "staged" is refused',
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not (place / "runs").exists()
