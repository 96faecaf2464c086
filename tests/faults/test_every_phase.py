"""A signal, or an output that is closed, in each phase of a run: the promised line, and a resume that ends as if
nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_until
from small_runs import PPO, SFT, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.checkpoint import checkpoints, damage, newest_checkpoint
from proxlm.train.ppo.loop import PPOLoop

GO_ON = "go on with: proxlm ppo run/config.toml --resume"
# Where the phase begins, which call of it, and how the last line begins after a SIGTERM there.
PHASES = {
    "loading": ("proxlm.models.source:ModelSource.load", 1, "stopped by SIGTERM before it was done; start it again"),
    "evaluation before": ("proxlm.jobs.held_out:evaluate_model", 1,
                          "stopped by SIGTERM before a step was saved; start again with another run.folder than run"),
    "generating": ("proxlm.train.ppo.loop:PPOLoop.step", 2, f"stopped by SIGTERM after step 2 of 4, saved; {GO_ON}"),
    "saving": ("proxlm.train.common.run_loop:save_checkpoint", 2,
               f"stopped by SIGTERM after step 2 of 4, saved; {GO_ON}"),
    "publishing": ("proxlm.jobs.ppo:publish_folder", 1, f"stopped by SIGTERM after step 4, saved; {GO_ON}"),
    "evaluation after": ("proxlm.jobs.held_out:evaluate_model", 2,
                         f"stopped by SIGTERM after step 4, saved; {GO_ON}"),
    "report": ("proxlm.jobs.ppo:write_report", 1, f"stopped by SIGTERM after step 4, saved; {GO_ON}"),
}  # fmt: skip


def send(number):
    return lambda child: os.kill(child, number)


def model_of(folder):
    return (folder / "policy" / "model.safetensors").read_bytes()


@pytest.fixture
def whole(tiny_place):  # noqa: F811
    """The model of a run that nothing happened to."""
    assert main([*PPO, "--run.folder", "whole", "--run.report", "true"]) == 0
    return model_of(tiny_place / "whole")


def test_sigterm_in_each_phase(tiny_place, whole):  # noqa: F811
    for phase, (place, call, line) in PHASES.items():
        if phase == "evaluation after":
            continue  # see the next test
        ended = run_until([*PPO, "--run.report", "true"], place, send(signal.SIGTERM), call=call)
        assert ended.status == 143, (phase, ended)
        assert ended.errors.splitlines()[-1] == f"proxlm: {line}", phase
        assert "Traceback" not in ended.errors, phase
        run = tiny_place / "run"
        assert not (run / ".lock").exists(), phase
        if GO_ON in line:
            assert main(["ppo", "run/config.toml", "--resume"]) == 0
            assert model_of(run) == whole, phase
            assert (run / "report.html").exists(), phase
            assert not [p.name for p in run.rglob(".*")], phase
        else:
            assert not checkpoints(run), phase
        shutil.rmtree(run, ignore_errors=True)


def test_a_hangup_takes_the_same_way(tiny_place):  # noqa: F811
    for phase in ("generating", "evaluation after"):
        place, call, line = PHASES[phase]
        ended = run_until(PPO, place, send(signal.SIGHUP), call=call)
        assert ended.status == 129
        assert ended.errors.splitlines()[-1] == f"proxlm: {line.replace('SIGTERM', 'SIGHUP')}"
        shutil.rmtree("run")
    assert tiny_place.is_dir()


def test_ctrl_c_after_the_loop_says_how_to_go_on(tiny_place):  # noqa: F811
    place, call, line = PHASES["publishing"]
    ended = run_until(PPO, place, send(signal.SIGINT), call=call)
    assert ended.status == 130
    assert ended.errors.splitlines()[-1] == f"proxlm: {line.replace('SIGTERM', 'Ctrl-C')}"


def test_under_nohup_a_hangup_is_ignored(tiny_place, whole):  # noqa: F811
    place, call, _ = PHASES["generating"]
    ended = run_until(
        PPO,
        place,
        send(signal.SIGHUP),
        call=call,
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (ended.status, ended.errors) == (0, "")
    assert model_of(tiny_place / "run") == whole


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("proxlm.train.supervised.loop:publish_folder", "2 of 6"),
        ("proxlm.train.supervised.objective:LanguageModelObjective.validate", "2 of 6"),
        ("proxlm.jobs.supervised:load_run", "6"),
    ],
)
def test_sft_too(tiny_place, place, step):  # noqa: F811
    ended = run_until(SFT, place, send(signal.SIGTERM))
    assert ended.status == 143
    told = f"stopped by SIGTERM after step {step}, saved; go on with: proxlm sft sft-run/config.toml --resume"
    assert ended.errors.splitlines()[-1] == f"proxlm: {told}"
    assert damage(newest_checkpoint(tiny_place / "sft-run")) is None


def breaks_output(in_step, full):
    """In that step standard output becomes a full disk or a pipe that nobody reads, and the step prints a line."""
    step = PPOLoop.step

    def breaking(self, log):
        if self.state.step + 1 == in_step:
            read, write = os.pipe()
            os.dup2(os.open("/dev/full", os.O_WRONLY) if full else write, 1)
            os.close(read)
            os.close(write)
            print("a line that nobody reads", flush=True)
        return step(self, log)

    PPOLoop.step = breaking


@pytest.mark.parametrize("full", [False, True])
def test_a_reader_that_goes_away_stops_a_run_after_its_step(tiny_place, whole, full):  # noqa: F811
    """As `proxlm ppo … | head -1` does, and `proxlm ppo … > FILE` on a full disk."""
    if full and not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    place = PHASES["loading"][0]
    ended = run_until(PPO, place, lambda _child: None, before=lambda: breaks_output(2, full))
    assert ended.status == 141
    assert ended.errors.splitlines() == [
        "a closed output: finishing this step and saving it; press Ctrl-C again to stop at once",
        f"proxlm: stopped by a closed output after step 2 of 4, saved; {GO_ON}",
    ]
    assert main(["ppo", "run/config.toml", "--resume"]) == 0
    assert model_of(tiny_place / "run") == whole


def close_all():
    """As `proxlm … <&- >&- 2>&-` starts."""
    for descriptor in range(3):
        os.close(descriptor)
    sys.stdin = sys.stdout = sys.stderr = None


def test_a_run_that_was_started_without_output_needs_none(tiny_place, whole):  # noqa: F811
    place = PHASES["loading"][0]
    assert run_until(PPO, place, lambda _child: None, before=close_all) == (0, "", "")
    assert model_of(tiny_place / "run") == whole
    # No file of the run was taken for an output.
    rows = (tiny_place / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]


def test_an_error_that_nobody_can_read_keeps_its_status(tiny_place):  # noqa: F811
    for broken in ("2>&-", "2>/dev/full"):
        command = f"{sys.executable} -m proxlm ppo no-such-recipe.toml {broken}"
        assert subprocess.run(command, shell=True, timeout=60).returncode == 2, broken
