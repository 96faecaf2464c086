"""A supervised job in two processes, from the command line: the run of one process, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from launched import alone, begun, launched, same_run, wait_for, worker

from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

RECIPE = """
[model]
policy = "model"
device = "cpu"
[text]
train = ["sft.jsonl"]
[train]
steps = 6
batch_tokens = 200
micro_batch_tokens = 80
validate_every = 2
average = "ema"
[optim]
lr = 1e-3
eps = 1e-3
warmup = 0
[run]
save_every = 1
keep = 9
report = false
threads = 1
"""


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    """A folder with a tiny model, and the fine-tuning of it in one process, "one", and in two, "two"."""
    folder = tmp_path_factory.mktemp("supervised")
    save_language_model(tiny_model(tokenizer), folder / "model")
    records = [
        {"prompt": text[: 5 + i % 7], "response": text[5 + i % 7 :] * (1 + i % 3)}
        for i in range(8)
        for text in TEXTS
    ]
    (folder / "sft.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "sft.toml").write_text(RECIPE, encoding="utf-8")
    done = alone(folder, "sft", "sft.toml", "--run.folder", "one")
    assert done.returncode == 0, done.stderr
    done = launched(folder, "sft", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation loss") == 1  # rank 0 alone speaks
    return folder


def cut(place: Path, name: str, folder: str) -> Path:
    """A copy of a run as it was after two steps."""
    shutil.copytree(place / name, place / folder)
    for step in range(3, 7):
        shutil.rmtree(place / folder / "checkpoints" / f"step-{step:08d}")
    return place / folder


def test_two_processes_take_the_run_of_one(place: Path) -> None:
    same_run(place / "one", place / "two", 1e-6)


def test_a_run_goes_on_with_another_number_of_processes(place: Path) -> None:
    done = launched(place, "sft", cut(place, "one", "on-two").name, "--set", "run.resume=true")
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    done = alone(place, "sft", "sft.toml", "--run.folder", cut(place, "two", "on-one").name, "--resume")
    assert done.returncode == 0, done.stderr
    for folder in ("on-two", "on-one"):
        same_run(place / "one", place / folder, 1e-6)


def test_a_killed_process_is_started_again_and_the_run_ends_as_it_would_have(place: Path) -> None:
    run = begun(place, "sft", "killed", "--max-restarts", "1", "--set", "run.asynchronous_save=true")
    wait_for(place / "killed" / "checkpoints" / "step-00000001", run)
    os.kill(worker(run.pid, 1), signal.SIGKILL)
    assert run.wait(timeout=200) == 0, (place / "killed.txt").read_text()
    files = sorted(str(path.relative_to(place / "two")) for path in (place / "two").rglob("*.safetensors"))
    assert len(files) == 13  # of six checkpoints and the best model
    for name in (*files, "samples.jsonl"):
        assert (place / "killed" / name).read_bytes() == (place / "two" / name).read_bytes(), name


def test_sigterm_ends_all_processes_after_the_step_and_the_run_goes_on(place: Path) -> None:
    run = begun(place, "sft", "stopped", "--set", "train.steps=500")
    wait_for(place / "stopped" / "checkpoints" / "step-00000002", run)
    ranks = [worker(run.pid, rank) for rank in (0, 1)]
    run.terminate()
    assert run.wait(timeout=200) == 128 + signal.SIGTERM
    shown = (place / "stopped.txt").read_text()
    assert shown.count("stopped by SIGTERM after step") == 1, shown
    assert "Traceback" not in shown
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    steps = sorted(path.name for path in (place / "stopped" / "checkpoints").iterdir())
    done = launched(
        place, "sft", "stopped", "--set", f"train.steps={int(steps[-1][5:]) + 1}", "--set", "run.resume=true"
    )
    assert done.returncode == 0, done.stderr
    assert f"resumed from stopped/checkpoints/{steps[-1]}" in done.stdout


def test_proxlm_stop_ends_all_processes_as_a_last_step_does(place: Path) -> None:
    run = begun(place, "sft", "asked", "--set", "train.steps=500", "--set", "train.validate_every=100")
    wait_for(place / "asked" / "checkpoints" / "step-00000002", run)
    assert alone(place, "stop", "asked").returncode == 0
    assert run.wait(timeout=200) == 0, (place / "asked.txt").read_text()
    shown = (place / "asked.txt").read_text()
    assert "stopped by proxlm stop" in shown
    assert (place / "asked" / "policy" / "model.safetensors").exists()  # the last step's validation kept it


def test_a_rank_that_hangs_is_found_and_named(place: Path) -> None:
    more = ["train.steps=500", "distributed.timeout=0.1"]
    run = begun(place, "sft", "hangs", "--grace", "1", *(x for s in more for x in ("--set", s)))
    wait_for(place / "hangs" / "checkpoints" / "step-00000002", run)
    os.kill(worker(run.pid, 1), signal.SIGSTOP)
    assert run.wait(timeout=200) == 2
    shown = (place / "hangs.txt").read_text()
    assert (
        "rank 0 of 2: waited 0.1 minutes (distributed.timeout) for the others; rank 1 gives no sign" in shown
    )
    assert any(
        f"last phase: {phase}," in shown
        for phase in ("train", "validate", "checkpoint", "waiting for rank 0")
    )
