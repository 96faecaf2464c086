"""SIGTERM and Ctrl-C finish the step and save it; a second Ctrl-C stops at once."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import pytest
import torch
from rich.console import Console
from small_runs import ACCEPT, FIRST_STEP, PPO, SFT, reward_that_sends, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.checkpoint import load_checkpoint, newest_checkpoint
from proxlm.config import RunSettings
from proxlm.errors import StoppedBySignalError
from proxlm.jobs.held_out import HeldOutEvaluations
from proxlm.runlog import run_log
from proxlm.runlog.live import LiveView
from proxlm.runlog.run_log import RunLog

SAVING = "finishing this step and saving it"


@pytest.mark.parametrize(
    ("name", "status", "first", "last"),
    [
        ("SIGTERM", 143, f"SIGTERM: {SAVING}", "SIGTERM after step 2 of 4"),
        ("SIGINT", 130, f"Ctrl-C: {SAVING}, then the end of the run", "Ctrl-C after step 2"),
    ],
)
def test_a_signal_finishes_the_step_and_saves_it(tiny_place, capfd, name, status, first, last):  # noqa: F811
    sends = reward_that_sends(tiny_place, name, call=FIRST_STEP + 1)
    quiet = ["--run.save-every", "0", "--run.tensorboard", "true"]
    assert main([*PPO, *sends, *quiet, "--run.folder", "my run"]) == status
    told = capfd.readouterr().err.splitlines()
    assert told[0] == f"{first}; press Ctrl-C again to stop at once"
    assert (
        told[-1] == f"proxlm: stopped by {last}, saved; go on with: proxlm ppo 'my run/config.toml' --resume"
    )
    # Ctrl-C leaves what a run has at its end; the others, which may be followed by a kill, do not wait for it.
    assert (tiny_place / "my run" / "policy" / "config.json").exists() == (name == "SIGINT")
    evaluations = json.loads((tiny_place / "my run" / "evaluation.json").read_text())["models"]
    assert [found["name"] for found in evaluations] == ["before", "after"][: 2 if name == "SIGINT" else 1]
    assert newest_checkpoint(tiny_place / "my run").name == "step-00000002"
    assert not (tiny_place / "my run" / ".lock").exists()
    # Handlers are back to what they were.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    reward_that_sends(tiny_place)
    assert main(["ppo", "my run/config.toml", "--resume", *ACCEPT]) == 0
    assert main([*PPO, *sends, *quiet, "--run.folder", "whole"]) == 0
    one, two = (load_checkpoint(newest_checkpoint(tiny_place / f))[0] for f in ("my run", "whole"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_proxlm_stop_ends_a_run_as_at_its_end(tiny_place, capfd):  # noqa: F811
    """Asked in step 2, as another process would; the resume ends where a run that nobody stopped does."""
    from proxlm.train.ppo.loop import PPOLoop

    step = PPOLoop.step

    def step_with_a_request(self, log):
        if self.state.step == 1 and not self.config.run.resume:
            assert main(["stop", "run"]) == 0
        return step(self, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOLoop, "step", step_with_a_request)
        assert main([*PPO, "--run.report", "true"]) == 0
    said = capfd.readouterr().out
    assert "run: ends after its step, with model, evaluation and report" in said
    assert "stopped by proxlm stop" in said
    run = tiny_place / "run"
    assert newest_checkpoint(run).name == "step-00000002"
    assert not (run / "stop").exists()
    assert (run / "report.html").exists()
    assert main(["evaluate", "run"]) == 0
    assert main(["ppo", "run/config.toml", "--resume"]) == 0
    assert main([*PPO, "--run.folder", "whole"]) == 0
    models = [(tiny_place / f / "policy" / "model.safetensors").read_bytes() for f in ("run", "whole")]
    assert models[0] == models[1]


def test_a_stop_before_the_first_step_is_heard(tiny_place, capfd, monkeypatch):  # noqa: F811
    """It comes while the policy is evaluated at the beginning, which may take minutes."""
    before = HeldOutEvaluations.before

    def before_with_a_request(self):
        assert main(["stop", "run"]) == 0
        before(self)

    monkeypatch.setattr(HeldOutEvaluations, "before", before_with_a_request)
    assert main(PPO) == 0
    assert "stopped by proxlm stop" in capfd.readouterr().out
    run = tiny_place / "run"
    assert newest_checkpoint(run).name == "step-00000001"
    assert (run / "policy" / "config.json").exists()
    assert not (run / "stop").exists()


def test_a_stop_after_the_last_step_leaves_nothing(tiny_place, monkeypatch):  # noqa: F811
    after = HeldOutEvaluations.after

    def after_with_a_request(self):
        assert main(["stop", "run"]) == 0
        after(self)

    monkeypatch.setattr(HeldOutEvaluations, "after", after_with_a_request)
    assert main(PPO) == 0
    assert not (tiny_place / "run" / "stop").exists()
    assert newest_checkpoint(tiny_place / "run").name == "step-00000004"


def test_what_cannot_be_stopped(tiny_place, capfd):  # noqa: F811
    assert main([*PPO, "--ppo.steps", "1"]) == 0
    for folder, why in (
        ("run", "run: no run is in progress there"),
        ("model", "model: not a run's folder: it holds no config.toml\n"),
        ("run/config.toml", "run/config.toml: a file, where a run's folder is needed; did you mean run?"),
        ("run/policy", "run/policy: not a run's folder: it holds no config.toml; did you mean run?"),
        ("run/checkpoints/step-00000001", "it holds no config.toml; did you mean run?"),
        ("run/none", "run/none: no such folder; did you mean run?"),
        ("none", "none: no such folder\n"),
    ):
        for job in ("stop", "verify", "report", "doctor") if folder != "run" else ("stop",):
            assert main([job, folder]) == 2
            assert why in capfd.readouterr().err
    (tiny_place / "run" / "stop").touch()  # to a process that is no more
    assert main(["ppo", "run/config.toml", "--resume", "--ppo.steps", "3"]) in (0, 2)


def test_a_second_ctrl_c_stops_at_once(tiny_place, capfd):  # noqa: F811
    sends = reward_that_sends(tiny_place, "SIGINT", call=FIRST_STEP, waits=(0.7, 250.0))
    began = time.monotonic()
    assert main([*PPO, *sends]) == 130
    assert time.monotonic() - began < 120
    assert capfd.readouterr().err.splitlines()[-1] == "proxlm: interrupted"
    assert not (tiny_place / "run" / "checkpoints").exists()


def test_sft_stops_and_goes_on(tiny_place, capfd, monkeypatch):  # noqa: F811
    from proxlm.train.supervised.loop import SupervisedLoop

    step = SupervisedLoop.step

    def step_with_a_signal(self, log):
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, log)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedLoop, "step", step_with_a_signal)
        assert main([*SFT, "--run.save-every", "0"]) == 143
    assert "proxlm sft sft-run/config.toml --resume" in capfd.readouterr().err
    assert main(["sft", "sft-run/config.toml", "--resume"]) == 0
    rows = [json.loads(line) for line in (tiny_place / "sft-run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def stopped(folder, number, **more):
    """A run that gets a signal in its second step; returns what it raised and the steps it saved."""
    saved = []
    try:
        with RunLog(folder, "ppo", 9, RunSettings(tensorboard=False), **more) as log:
            for step in (1, 2, 3):
                if step == 2:
                    os.kill(os.getpid(), number)
                log.metrics(step, {"reward": 0.5})
                ended = bool(log.stopped_by())
                log.checkpoint(lambda step=step: saved.append(step), due=ended)
                if ended:
                    return log, saved
    except StoppedBySignalError as error:
        return error, saved
    return None, saved


def test_the_live_view_shows_that_it_is_stopping(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(run_log, "view_for", lambda state: LiveView(state, console))
    log, saved = stopped(tmp_path, signal.SIGINT)
    assert saved == [2]
    assert log.stopped_by() == "Ctrl-C"
    assert "Ctrl-C: finishing this step and saving it, then the end" in console.file.getvalue()


def test_a_run_with_a_python_reward_is_told_how_python_goes_on(tmp_path):
    error, saved = stopped(tmp_path, signal.SIGTERM, in_python=True)
    assert saved == [2]
    assert "go on with: the same call and run.resume = true" in str(error)
