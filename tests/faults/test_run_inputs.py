"""A run knows what it reads and what it has written: changes since a checkpoint are refused by name, or accepted."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from small_runs import ACCEPT, PPO, REWARD, tiny_place  # noqa: F401

from proxlm.__main__ import main

HELPED = "from helper import COUNT\nfrom words.vowels import VOWELS\n" + REWARD.replace(
    "'aeiou'", "VOWELS"
).replace("20", "COUNT")
SHORT = ["--ppo.steps", "2", "--data.eval-count", "0", "--reward.use", "helped.py:score"]
RESUME = ["ppo", "run/config.toml", "--resume", "--ppo.steps", "3"]


@pytest.fixture
def place(tiny_place):  # noqa: F811
    """The folder with a run of two steps, whose reward imports modules beside it."""
    (tiny_place / "helped.py").write_text(HELPED)
    (tiny_place / "helper.py").write_text("COUNT = 20\n")
    (tiny_place / "words").mkdir()
    (tiny_place / "words" / "vowels.py").write_text("VOWELS = 'aeiou'\n")
    assert main([*PPO, *SHORT]) == 0
    return tiny_place


def steps(place):
    return len((place / "run" / "metrics.jsonl").read_text().splitlines())


CHANGES = {
    "data.prompts: prompts.jsonl changed": ("prompts.jsonl", lambda p: p.write_text(p.read_text() + "\n")),
    "model.policy: model.safetensors changed": ("model/model.safetensors", lambda p: flip(p, -1)),
    "model.policy: generation_config.json gone": ("model/generation_config.json", lambda p: p.unlink()),
    "reward.use: helped.py changed": ("helped.py", lambda p: p.write_text(HELPED + "#\n")),
    "reward.use: helper.py changed": ("helper.py", lambda p: p.write_text("COUNT = 10\n")),
    "reward.use: words/vowels.py changed": ("words/vowels.py", lambda p: p.write_text("VOWELS = 'ai'\n")),
}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_has_changed_is_refused_by_name_and_goes_on_when_it_is_accepted(place, capfd):
    for said, (name, change) in CHANGES.items():
        path, times = place / name, os.stat(place / name)
        before = path.read_bytes()
        change(path)
        if path.exists():
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the time alone is not trusted
        assert main(RESUME) == 2
        told = capfd.readouterr().err.splitlines()[-1]
        assert f"step-00000002: {said}; put it back, start a new run, or go on" in told
        assert len(told) < 300
        assert steps(place) == 2
        path.write_bytes(before)
    (place / "helper.py").write_text("COUNT = 10\n")
    assert main([*RESUME, *ACCEPT]) == 0
    assert "note: accepted: reward.use: helper.py changed" in capfd.readouterr().out
    assert steps(place) == 3
    assert "accept_changes = false" in (place / "run" / "config.toml").read_text()
    assert main([*RESUME[:-1], "4"]) == 0  # the change is the run's own now


def test_files_that_were_written_again_or_that_nothing_reads_are_no_change(place):
    for path in (place / "prompts.jsonl", place / "model" / "model.safetensors"):
        path.write_bytes(path.read_bytes())
    (place / "model" / "README.md").write_text("a model")
    (place / "model" / "old").mkdir()
    (place / "unused.py").write_text("x = 1\n")
    shutil.move(place / "prompts.jsonl", place / "words" / "prompts.jsonl")
    assert main([*RESUME, "--data.prompts", "words/prompts.jsonl"]) == 0


def lose_a_row(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))


def double_a_row(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("metrics.jsonl", lose_a_row, "metrics.jsonl has 1 rows up to there, not 2: some were lost"),
        ("metrics.jsonl", double_a_row, "metrics.jsonl: line 3: step 2 after step 2"),
        ("samples.jsonl", lose_a_row, "samples.jsonl has 7 rows up to there, not 8: some were lost"),
        ("samples.jsonl", double_a_row, "samples.jsonl has 9 rows up to there, not 8: some were added"),
        ("samples.jsonl", lambda p: p.unlink(), "samples.jsonl has 0 rows up to there, not 8"),
    ],
)
def test_rows_that_were_lost_or_doubled_are_told(place, capfd, file, harm, said):
    path = place / "run" / file
    harm(path)
    harmed = path.read_bytes() if path.exists() else None
    assert main(RESUME) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]
    assert (path.read_bytes() if path.exists() else None) == harmed


def test_exchanged_checkpoints_are_named(place, capfd):
    folder = place / "run" / "checkpoints"
    one, two = folder / "step-00000001", folder / "step-00000002"
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    assert main(RESUME) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert "step-00000002: holds step 1: it was renamed or exchanged" in told
    assert "step-00000001: holds step 2" in told


def test_a_resume_clears_what_a_kill_left(place):
    folder = place / "run" / "checkpoints"
    for name in (".writing-00000003", ".removing-step-00000000"):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("{")
    (folder / "step-00000009").symlink_to(place / "nowhere")
    (folder / "step-00000002").rename(folder / ".replaced-step-00000002")
    assert main([*RESUME[:-2], "--ppo.steps", "2"]) == 0  # nothing left to do but that
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_resume_does_not_evaluate_the_beginning_again(place, capfd):
    arguments = [*PPO, "--run.folder", "held"]
    assert main([*arguments, "--ppo.steps", "1"]) == 0
    before = json.loads((place / "held" / "evaluation.json").read_text())["models"][0]
    capfd.readouterr()
    assert main([*arguments, "--ppo.steps", "2", "--resume"]) == 0
    printed = capfd.readouterr().out
    assert "held-out prompts (before)" not in printed
    assert "held-out prompts (after)" in printed
    after = json.loads((place / "held" / "evaluation.json").read_text())["models"]
    assert after[0] == before
    assert [model["name"] for model in after] == ["before", "after"]


def test_a_copied_run_goes_on_in_its_own_folder(place):
    shutil.copytree(place / "run", place / "branch")
    kept = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    assert main(["ppo", "branch/config.toml", "--resume", "--ppo.steps", "3"]) == 0
    assert len((place / "branch" / "metrics.jsonl").read_text().splitlines()) == 3
    assert {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()} == kept
    # Moved, while another run has its name.
    (place / "branch").rename(place / "moved")
    shutil.copytree(place / "run", place / "branch")
    assert main(["ppo", "moved/config.toml", "--resume", "--ppo.steps", "4"]) == 0
    assert len((place / "moved" / "metrics.jsonl").read_text().splitlines()) == 4
    assert len((place / "branch" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_folder_that_is_taken_is_said_before_a_model_is_loaded(place, capfd, monkeypatch):
    from proxlm.models.source import ModelSource

    monkeypatch.setattr(ModelSource, "load", lambda _self: pytest.fail("loaded"))
    monkeypatch.setattr(ModelSource, "tokenizer", property(lambda _self: pytest.fail("read")))
    assert main([*PPO, *SHORT]) == 2
    assert "run: already holds a run; set run.resume" in capfd.readouterr().err
    assert main([*PPO, *SHORT, "--run.folder", "none", "--resume"]) == 2
    assert "none: nothing to resume: no such folder" in capfd.readouterr().err


def test_other_records_of_a_python_caller_are_a_change_too(place):
    from dataclasses import replace

    import proxlm

    def train(prompts, **run):
        config = proxlm.load_config(
            "ppo", "recipe.toml", {"run.folder": "python", "data.eval_count": 0, "ppo.steps": 2}
        )
        config = replace(config, run=replace(config.run, **run))
        return proxlm.PPOTrainer(prompts=prompts, config=config).train()

    first = ["one day", {"prompt": "a dog", "answer": 3}]
    assert train(first).verify() == []
    assert train(list(first), resume=True).verify() == []
    with pytest.raises(proxlm.RunError, match=r"data\.prompts: passed from Python changed"):
        train(["one day", {"prompt": "a dog", "answer": 4}], resume=True)
