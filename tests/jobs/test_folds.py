"""`proxlm folds`: parts without a prompt in common, every fold trained once, an interrupted one continued."""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proxlm.__main__ import main
from proxlm.config import (
    DataSettings,
    DPOConfig,
    PPOConfig,
    PreferenceSettings,
    PretrainConfig,
    SFTConfig,
    TextSettings,
    load_config,
)
from proxlm.data.folds import parts_of
from proxlm.errors import DataError
from proxlm.jobs.folds import fold_table
from proxlm.models.save import save_language_model
from proxlm.train.supervised.loop import SupervisedLoop
from small_models import TEXTS, tiny_model


def jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return str(path)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_no_prompt_is_in_two_parts_and_nothing_is_lost(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{i % 7}", "response": f"r{i}"} for i in range(20)]
    chats = [chat(f"q{i % 5}", f"a{i}") for i in range(12)]
    both = [
        {"chosen": f"Question {i % 6}\nyes {i}", "rejected": f"Question {i % 6}\nno {i}"} for i in range(18)
    ]
    files = [jsonl(tmp_path / f"{name}.jsonl", r) for name, r in (("a", pairs), ("b", chats), ("c", both))]

    def asked(record: dict[str, Any]) -> str:
        return record.get("prompt") or record["messages"][0]["content"]

    cases: list[tuple[Any, list[dict[str, Any]], Any]] = [
        (SFTConfig(text=TextSettings(train=files[:2])), pairs + chats, asked),
        (PPOConfig(data=DataSettings(prompts=files[0])), pairs, asked),
        (DPOConfig(text=PreferenceSettings(train=[files[2]])), both, lambda r: r["chosen"].split("\n")[0]),
    ]
    for config, records, prompt in cases:
        parts = parts_of(config, 3, seed=1)
        assert sorted(map(str, (r for part in parts for r in part))) == sorted(map(str, records))
        sides = [{prompt(record) for record in part} for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides))
        assert max(map(len, sides)) - min(map(len, sides)) <= 1  # as many prompts in each
        assert parts_of(config, 3, seed=1) == parts
        assert parts_of(config, 3, seed=2) != parts
    with pytest.raises(DataError, match="only 7 different prompts; lower k"):
        parts_of(cases[1][0], 8, 0)


def test_texts_to_pretrain_on_are_split_by_document(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"text {i}\n", encoding="utf-8")
    parts = parts_of(PretrainConfig(text=TextSettings(train=[str(tmp_path)])), 2, 0)
    assert Counter(r["text"].strip() for part in parts for r in part) == {f"text {i}": 1 for i in range(4)}


def test_the_table_has_mean_deviation_and_students_interval() -> None:
    table = fold_table([{"loss": 1.0, "b": 1.0}, {"loss": 2.0, "b": 1.0}, {"loss": 6.0}])
    values = [1.0, 2.0, 6.0]
    half = 4.303 * statistics.stdev(values) / 3**0.5
    assert table.head == ["metric", "fold 1", "fold 2", "fold 3", "mean", "std", "95% interval"]
    (row,) = table.rows
    assert row[:6] == ["loss", "1.00", "2.00", "6.00", "3.00", "2.65"]
    assert row[6] == f"{3 - half:.2f} to {3 + half:.2f}"


def test_the_interval_of_a_share_stays_within_its_bounds() -> None:
    shares = [{"accuracy": value, "greedy/ended_share": value, "margin": value} for value in (1.0, 0.9, 1.0)]
    rows = {row[0]: row[-1] for row in fold_table(shares).rows}
    assert rows["accuracy"] == rows["greedy/ended_share"] == "0.823 to 1.00"
    assert rows["margin"] == "0.823 to 1.11"


@pytest.fixture
def place(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    jsonl(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"{t[:9]} {i}", "response": t[9:20]} for i in range(4) for t in TEXTS],
    )
    (tmp_path / "sft.toml").write_text(
        'job = "sft"\n[model]\npolicy = "model"\ndevice = "cpu"\n[text]\ntrain = ["pairs.jsonl"]\n'
        "[train]\nsteps = 4\nbatch_tokens = 200\nvalidate_every = 2\n"
        "[run]\nsave_every = 2\ntensorboard = false\nreport = false\nthreads = 1\n",
        encoding="utf-8",
    )
    return tmp_path


def test_folds_are_trained_once_and_an_interrupted_one_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["folds", "sft", "sft.toml", "--k", "3", "--folder", "cv", "--set", "optim.lr=1e-3"]
    trained = Counter[str]()
    step = SupervisedLoop.step

    def counted(self: SupervisedLoop, *arguments: Any, **named: Any) -> Any:
        trained[self.folder.name] += 1
        if stop and self.folder.name == "fold-2" and trained["fold-2"] == 4:
            raise KeyboardInterrupt  # after the checkpoint of step 2
        return step(self, *arguments, **named)

    monkeypatch.setattr(SupervisedLoop, "step", counted)
    stop = True
    assert main(command) == 130
    capsys.readouterr()
    assert (place / "cv" / "fold-1.json").exists()
    assert not (place / "cv" / "fold-2.json").exists()
    stop = False
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "fold 1 of 3: finished before" in out
    assert "resumed from" in out
    assert trained == {
        "fold-1": 4,
        "fold-2": 3 + 1 + 2,
        "fold-3": 4,
    }  # three, the one that was cut off, two again
    found = json.loads((place / "cv" / "results.json").read_text(encoding="utf-8"))
    assert len(found["folds"]) == 3
    assert all(fold["validation_loss"] > 0 for fold in found["folds"])
    losses = [fold["validation_loss"] for fold in found["folds"]]
    over = found["metrics"]["validation_loss"]
    assert over["mean"] == pytest.approx(statistics.mean(losses))
    assert over["std"] == pytest.approx(statistics.stdev(losses))
    half = 4.302653 * statistics.stdev(losses) / 3**0.5
    assert (over["low"], over["high"]) == pytest.approx((over["mean"] - half, over["mean"] + half), rel=1e-4)
    assert "| validation_loss |" in (place / "cv" / "folds.md").read_text(encoding="utf-8").replace("\\", "")
    settings = load_config("sft", place / "cv" / "fold-2" / "config.toml")
    assert settings.optim.lr == 1e-3
    assert settings.text.validation == [str(place / "cv" / "records" / "held-out-2.jsonl")]
    # The same again trains nothing; another k, records or settings are another cross-validation.
    before = dict(trained)
    assert main(command) == 0
    assert trained == before
    for changed in (["--k", "4"], ["--seed", "1"], ["--set", "train.steps=5"]):
        assert main([*command, *changed]) == 2
        assert "was begun with other" in capsys.readouterr().err
    jsonl(place / "pairs.jsonl", [{"prompt": f"p{i}", "response": "r"} for i in range(5)])
    assert main(command) == 2
    assert "was begun with other records" in capsys.readouterr().err


def test_one_that_was_ended_before_its_first_checkpoint_begins_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["folds", "sft", "sft.toml", "--k", "2", "--folder", "cv", "--set", "train.steps=2"]
    assert main(command) == 0
    (place / "cv" / "fold-2.json").unlink()
    for checkpoint in (place / "cv" / "fold-2" / "checkpoints").iterdir():
        checkpoint.rename(place / checkpoint.name)
    first = json.loads((place / "cv" / "results.json").read_text(encoding="utf-8"))
    assert main(command) == 0
    assert json.loads((place / "cv" / "results.json").read_text(encoding="utf-8")) == first


def test_ppo_is_evaluated_on_each_part(place: Path) -> None:
    (place / "ppo.toml").write_text(
        '[model]\npolicy = "model"\ncritic = "shared"\ndevice = "cpu"\n'
        '[data]\nprompts = "pairs.jsonl"\neval_count = 2\n[rollout]\nmax_new_tokens = 4\n'
        '[reward]\nuse = "length"\nargs = {target = 3}\n[ppo]\nsteps = 1\nbatch_size = 4\nepochs = 1\n'
        "[run]\nsave_every = 0\ntensorboard = false\nreport = false\nthreads = 1\n",
        encoding="utf-8",
    )
    assert main(["folds", "ppo", "ppo.toml", "--k", "2", "--folder", "cv"]) == 0
    found = json.loads((place / "cv" / "results.json").read_text(encoding="utf-8"))["folds"]
    assert all({"reward", "kl", "greedy/reward"} <= set(fold) for fold in found)
    evaluation = json.loads((place / "cv" / "fold-1" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["prompts"] == 8  # every held-out record, not data.eval_count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft"], "recipe: required"),
        (["control", "sft.toml"], "expected one of"),
        (["reward", "sft.toml"], "these are the settings of proxlm sft"),
        (["sft", "sft.toml", "--set", "steps"], "write section.key=VALUE"),
        (["sft", "sft.toml", "--set", "train.stepz=3"], "train.stepz"),
        (["sft", "sft.toml", "--k", "99"], "only 16 different prompts"),
        (["sft", "sft.toml", "--folder", "model"], "holds something else"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["folds", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_one_that_is_stopped_says_how_the_folds_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = SupervisedLoop.step

    def stopped(self: SupervisedLoop, *arguments: Any, **named: Any) -> Any:
        if self.folder.name == "fold-2":
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **named)

    monkeypatch.setattr(SupervisedLoop, "step", stopped)
    assert main(["folds", "sft", "sft.toml", "--k", "2", "--folder", "cv", "--set", "optim.lr=1e-3"]) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stopped by Ctrl-C in fold 2 of 2" in line
    command = line.partition("go on with: ")[2].split()
    assert command[:2] == ["proxlm", "folds"]
    monkeypatch.setattr(SupervisedLoop, "step", step)
    assert main(command[1:]) == 0
    assert (place / "cv" / "results.json").exists()
