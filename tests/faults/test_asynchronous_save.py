"""run.asynchronous_save: the files of a run are those of one without it, whatever happens while one is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
from processes import run_until
from small_runs import PPO, SFT, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.checkpoint import BackgroundSave, checkpoints, damage

ASYNCHRONOUS = ["--run.asynchronous-save", "true"]
# Moments in which the thread writes the second checkpoint; whether it is there already under its name.
MOMENTS = {
    "safetensors.torch:save_file": False,
    "proxlm.checkpoint.write:write_manifest": False,
    "proxlm.checkpoint.write:remove_old": True,
}

TIMED = ("state.json", "manifest.json", "evaluation.json", "inputs.json")


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the run's files by their paths, but of those that tell times."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file() and path.suffix not in (".jsonl", ".toml") and path.name not in TIMED
    }


def rows(run: Path) -> list[dict[str, float]]:
    """The metrics but times, speeds and memory."""
    measured = ("time", "tokens_per_second", "memory")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{n: v for n, v in json.loads(line).items() if not n.startswith(measured)} for line in lines]


def steps(run: Path) -> list[int]:
    return [int(path.name[-8:]) for path in checkpoints(run)]


def sleeps(seconds: float) -> Path:
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        time.sleep(0.01)
    return Path()


def has_step(run: Path, step: int) -> None:
    """Wait until the metrics of a step are there."""
    began = time.monotonic()
    while len((run / "metrics.jsonl").read_text().splitlines()) < step:
        assert time.monotonic() - began < 100
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("job", "folder", "metric"), [(PPO, "run", ""), (PPO, "run", "entropy"), (SFT, "sft-run", "")]
)
def test_the_files_are_the_same(tiny_place, job, folder, metric):  # noqa: F811
    best = ["--run.keep-best", metric] if metric else []
    assert main([*job, *best]) == 0
    assert main([*job, *best, *ASYNCHRONOUS, "--run.folder", "asynchronous"]) == 0
    whole, found = tiny_place / folder, tiny_place / "asynchronous"
    assert hashes(found) == hashes(whole)
    assert len(hashes(found)) > 15
    assert bool(metric) == (found / "best").exists()
    assert rows(found) == rows(whole)
    assert steps(found) == steps(whole)
    assert [damage(checkpoint) for checkpoint in checkpoints(found)] == [None, None]
    assert not [path for path in found.rglob(".*") if path.is_dir()]


@pytest.mark.parametrize("place", MOMENTS)
def test_a_run_killed_while_the_thread_writes_goes_on(tiny_place, place):  # noqa: F811
    """The next step's row is there by then: it is taken again."""
    run = tiny_place / "run"

    def kill(process):
        has_step(run, 3)
        os.kill(process, signal.SIGKILL)

    assert run_until([*PPO, *ASYNCHRONOUS], place, kill, call=2).status == -signal.SIGKILL
    assert steps(run) == ([1, 2] if MOMENTS[place] else [1])
    assert main([*PPO, *ASYNCHRONOUS, "--resume"]) == 0
    assert main([*PPO, "--run.folder", "whole"]) == 0
    assert hashes(run) == hashes(tiny_place / "whole")
    assert rows(run) == rows(tiny_place / "whole")


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "SIGTERM after step 3 of 4"), (signal.SIGINT, "Ctrl-C after step 3")],
)
def test_a_signal_while_the_thread_writes(tiny_place, number, said):  # noqa: F811
    """The step under way is finished and saved, after the one before it."""
    run = tiny_place / "run"

    def send(process):
        os.kill(process, number)
        has_step(run, 3)

    ended = run_until([*PPO, *ASYNCHRONOUS], "safetensors.torch:save_file", send, call=2)
    assert ended.status == 128 + number
    assert (
        f"proxlm: stopped by {said}, saved; go on with: proxlm ppo run/config.toml --resume" in ended.errors
    )
    assert steps(run) == [2, 3]
    assert (run / "policy").exists() == (number == signal.SIGINT)


def test_a_second_ctrl_c_waits_for_no_thread(tiny_place):  # noqa: F811
    run = tiny_place / "run"

    def twice(process):
        os.kill(process, signal.SIGINT)
        has_step(run, 3)
        os.kill(process, signal.SIGINT)
        began = time.monotonic()
        while Path(f"/proc/{process}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() - began < 60
            time.sleep(0.05)

    ended = run_until([*PPO, *ASYNCHRONOUS], "safetensors.torch:save_file", twice, call=2)
    assert ended.status == 130
    assert ended.errors.splitlines()[-1] == "proxlm: interrupted"
    assert steps(run) == [1]
    assert main([*PPO, "--resume"]) == 0


@pytest.mark.parametrize("full_at", [2, 4])
def test_a_full_disk_ends_the_run_with_the_same_line(tiny_place, capsys, monkeypatch, full_at):  # noqa: F811
    """In the middle of the run and in its last checkpoint."""
    real, calls = safetensors.torch.save_file, []

    def save_file(tensors, path, *rest, **more):
        calls.append(path)
        if len(calls) == full_at:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, *rest, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    assert main([*PPO, *ASYNCHRONOUS]) == 2
    line = (
        f"proxlm: error: run/checkpoints: the checkpoint of step {full_at} cannot be written: No space left"
    )
    assert line in capsys.readouterr().err
    found = [path.name for path in (tiny_place / "run" / "checkpoints").iterdir()]
    assert sorted(found) == [f"step-0000000{step}" for step in range(max(1, full_at - 2), full_at)]
    assert len(rows(tiny_place / "run")) < full_at + 2


def test_a_save_that_has_not_begun_is_given_up_at_once():
    """Nobody waits for what the thread will never do; one that has begun ends at its next bytecode."""
    began = time.monotonic()
    for _ in range(8):
        save = BackgroundSave()
        save.begin(1, partial(sleeps, 100))
        save.give_up()
        assert not save.in_progress
    assert time.monotonic() - began < 8  # 2 s each when it waited for what would never end
