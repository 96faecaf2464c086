"""A run that broke off after a checkpoint and was resumed leaves the files of one that did not, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_runs import RECIPE, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.train.common.run_loop import TrainingLoop

QUIET = [
    "--model.device", "cpu", "--run.threads", "1", "--run.report", "false", "--run.tensorboard", "false",
    "--run.save-every", "1",
]  # fmt: skip
NEW = ["vocabulary", "300", "hidden", "32", "layers", "1", "heads", "2", "context", "64"]


def new(section):
    return [part if i % 2 else f"--{section}.{part}" for i, part in enumerate(NEW)]


SUPERVISED = ["--train.batch-tokens", "120", "--train.validate-every", "3", "--train.steps", "4"]
CONVERSATIONS = [
    "ppo", "recipe.toml", "--reward.use", "", "--environment.use", "number-game", "--environment.max-turns", "3",
    "--data.prompts", "", "--ppo.max-staleness", "1", "--ppo.staleness-correction.mode", "token_truncate",
    "--model.critic", "shared",
]  # fmt: skip
JOBS = {
    "pretrain": ["pretrain", *QUIET, *new("new"), "--text.train", "text.txt", "--train.block", "16", *SUPERVISED],
    "sft of a new model": ["sft", *QUIET, *new("scratch"), "--scratch.type", "llama", "--text.train", "pairs.jsonl",
                           *SUPERVISED],
    "a mixture with its tokens kept and averaged weights": [
        "pretrain", *QUIET, *new("new"), "--text.train", "text.txt", "--text.train", "other.txt",
        "--text.weights", "{text = 1, other = 2}", "--text.tokens", "tokens", "--train.block", "16", *SUPERVISED,
        "--train.average", "ema", "--loss.kind", "focal", "--optim.name", "nadam", "--optim.schedule", "one-cycle",
    ],
    "a mixture of records, short ones first": [
        "sft", *QUIET, "--model.policy", "model", "--text.train", "pairs.jsonl", "--text.train", "more.jsonl",
        "--text.temperature", "2", "--train.curriculum-steps", "3", "--train.average", "uniform", *SUPERVISED,
        "--train.validate-every", "1", "--loss.kind", "label-smoothing", "--train.early-stopping-metric", "loss",
    ],
    "conversations ahead": CONVERSATIONS,
    "control": ["control", "CartPole-v1", *QUIET[2:], "--environment.count", "2", "--ppo.horizon", "32",
                "--environment.steps", "256"],
}  # fmt: skip


# These hold times, or hashes of files that do.
TIMED = ("metrics.jsonl", "inputs.json", "manifest.json", "state.json", "config.toml", "evaluation.json")


class BrokenOffError(Exception):
    pass


@pytest.mark.checklist(38)
@pytest.mark.parametrize("job", JOBS)
def test_a_resumed_run_leaves_the_same_files(tiny_place, monkeypatch, job):  # noqa: F811
    (tiny_place / "text.txt").write_text(
        "The old dog slept near the door while rain fell on the wall.\n" * 60
    )
    (tiny_place / "other.txt").write_text("A cat sat. Then it ran to the moon, and the moon was red.\n" * 9)
    (tiny_place / "more.jsonl").write_text((tiny_place / "pairs.jsonl").read_text("utf-8") * 2, "utf-8")
    assert main([*JOBS[job], "--run.folder", "whole"]) == 0
    save = TrainingLoop.save

    def breaks_off(self, *arguments):
        saved = save(self, *arguments)
        if self.state.step == 2:
            raise BrokenOffError
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "save", breaks_off)
        with pytest.raises(BrokenOffError):
            main([*JOBS[job], "--run.folder", "cut"])
    assert main([*JOBS[job], "--run.folder", "cut", "--resume"]) == 0
    names = [sorted(p.relative_to(f).as_posix() for p in Path(f).rglob("*")) for f in ("whole", "cut")]
    assert names[0] == names[1]
    compared = 0
    for name in names[0]:
        one, two = Path("whole", name), Path("cut", name)
        if one.is_file() and one.name not in TIMED:
            assert one.read_bytes() == two.read_bytes(), name
            compared += 1
    assert compared >= 5
    assert timeless("whole") == timeless("cut")


def timeless(run):
    """The rows of metrics without what a clock or a gauge says."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    return [
        {k: v for k, v in row.items() if "time" not in k and "second" not in k and "memory" not in k}
        for row in rows
    ]


def test_new_names_are_brought_to_the_disk(tiny_place, monkeypatch):  # noqa: F811
    """After a power cut a folder, or a file, is there if the folder that names it was synced after it was made."""
    synced, sync = [], os.fsync

    def noted(handle):
        path = Path(os.path.realpath(f"/proc/self/fd/{handle}"))
        inside = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        synced.append(
            (path.relative_to(tiny_place).as_posix() if path.is_relative_to(tiny_place) else "", inside)
        )
        sync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", noted)
    (tiny_place / "recipe.toml").write_text(RECIPE)
    assert (
        main(["ppo", "recipe.toml", "--run.folder", "deep/run", "--ppo.steps", "1", "--data.eval-count", "0"])
        == 0
    )

    def first(folder, name):
        return next(i for i, (path, inside) in enumerate(synced) if path == folder and name in inside)

    begun = max(first(".", "deep"), first("deep", "run"), first("deep/run", "config.toml"))
    rows, made = first("deep/run", "metrics.jsonl"), first("deep/run", "checkpoints")
    assert rows == first("deep/run", "samples.jsonl")
    assert begun < rows <= made < first("deep/run/checkpoints", "step-00000001")
