"""The loop of a run on a trainer that only counts: when it ends, what it saves, and what a resume gets."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import SilentLog

from proxlm.checkpoint import checkpoints, load_checkpoint, newest_checkpoint
from proxlm.config import RunSettings, SFTConfig
from proxlm.errors import RunError, StoppedBySignalError
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.runlog.run_log import RunLog
from proxlm.train.common.run_loop import LoopState, TrainingLoop


@dataclass
class CountingState(LoopState):
    total: float = 0.0
    best: float = math.inf
    seen: RunningStatistics = RunningStatistics()  # noqa: RUF009 (immutable)


class Counting(TrainingLoop[CountingState]):
    """Adds 1 to a weight in each step; an update in `bad` is not finite; it ends after `steps` or at `enough`."""

    def __init__(self, folder, steps=5, bad=(), enough=99.0, **run):
        super().__init__(
            SFTConfig(run=RunSettings(tensorboard=False, **run)),
            folder,
            CountingState(seen=RunningStatistics(1)),
        )
        self.steps, self.bad, self.enough, self.closed = steps, bad, enough, 0
        self.weight, self.buffer = torch.zeros(2), torch.zeros(1)

    def step(self, log):
        log.phase("count")
        self.weight += 1
        self.buffer += 2
        self.state.step += 1
        self.state.total += 0.5
        self.count_update(self.state.step not in self.bad, lambda: [{"row": self.state.step}], "row {row}")
        return {"reward": self.state.total}

    def finished(self):
        return self.state.step >= self.steps or self.state.total >= self.enough

    def weights(self):
        return {"weight": self.weight}

    def optimisers_by_name(self):
        return {}

    def save_model(self, folder):
        folder.mkdir()
        (folder / "model.json").write_text("{}")

    def extra_tensors(self):
        return {"buffer": self.buffer}

    def restore(self, checkpoint, state, extra):
        if state.total > self.enough:
            raise RunError(f"{checkpoint}: too much")
        self.buffer = extra["buffer"]

    def close(self):
        self.closed += 1


def saved_steps(folder):
    return [int(path.name[-8:]) for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"save_every": 0}, [5]),
        ({"save_every": 2}, [2, 4, 5]),
        ({"save_every": 5}, [5]),
        ({"save_every": 2, "enough": 1.5}, [2, 3]),  # it ends before its last step
    ],
)
def test_checkpoints_are_saved_when_due_and_at_the_end(tmp_path, more, wanted):
    made, log = Counting(tmp_path, keep=9, **more), SilentLog()
    made.train(log)
    assert saved_steps(tmp_path) == wanted
    assert [row["step"] for row in log.rows] == list(range(1, wanted[-1] + 1))
    assert made.closed == 1
    _, state = load_checkpoint(newest_checkpoint(tmp_path))
    assert state["metrics"] == {"reward": 0.5 * wanted[-1]}


def test_a_resume_has_all_that_the_checkpoint_held(tmp_path):
    first = Counting(tmp_path, steps=3)
    first.train(SilentLog())
    second = Counting(tmp_path)
    second.resume()
    assert second.state == first.state
    assert second.state.best == math.inf
    assert torch.equal(second.weight, torch.tensor([3.0, 3.0]))
    assert second.buffer.item() == 6
    log = SilentLog()
    second.train(log)
    assert [row["step"] for row in log.rows] == [4, 5]


def test_a_refused_resume_changes_nothing(tmp_path):
    Counting(tmp_path, steps=3).train(SilentLog())
    made = Counting(tmp_path, enough=1.0)
    with pytest.raises(RunError, match="too much"):
        made.resume()
    assert made.state == Counting(tmp_path).state
    assert not made.weight.any()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("total", "x", "no number at 'total'"),
        ("total", None, "no number at 'total'"),
        ("step", 1.5, "no number at 'step'"),
        ("non_finite", True, "no number at 'non_finite'"),
        ("seen", [1.0, 2.0], "no list of 3 numbers at 'seen'"),
        ("seen", [1.0, 2.0, "x"], r"no number at 'seen\[2\]'"),
        ("best", "x", "no number at 'best'"),
        ("best", ..., "no number at 'best'"),
        ("step", -1, "step = -1, where a count is needed"),
        ("non_finite", 2, "non_finite = 2, more than the 1 steps done"),
        ("seen", [-1.0, 0.0, 0.0], r"seen\.n = -1, where at least 0 is needed"),
        ("seen", [1.0, 0.0, -2.5], r"seen\.squares = -2.5, where at least 0 is needed"),
    ],
)
def test_a_state_that_cannot_be_read_names_what_is_wrong(tmp_path, key, value, named):
    from proxlm.checkpoint.manifest import write_manifest

    made = Counting(tmp_path, steps=1)
    made.train(SilentLog())
    folder = newest_checkpoint(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    state[key] = value
    if value is ...:
        del state[key]
    (folder / "state.json").write_text(json.dumps(state))
    write_manifest(folder)
    with pytest.raises(RunError, match=rf"state\.json: {named}"):
        Counting(tmp_path).resume()


def test_non_finite_updates_in_a_row_end_the_run_after_a_checkpoint(tmp_path):
    made = Counting(tmp_path, steps=9, bad=(2, 4, 5, 6), max_skipped_updates=2)
    with pytest.raises(
        RunError, match=r"no update in the last 2 steps.*see row 5 in non-finite-step-00000005"
    ):
        made.train(SilentLog())
    assert made.closed == 1
    assert saved_steps(tmp_path) == [5]
    assert (tmp_path / "non-finite-step-00000005.jsonl").read_text() == '{"row": 5}\n'
    # A resume is a new attempt: step 6 is the first one that is counted.
    again = Counting(tmp_path, steps=9, bad=(6,), max_skipped_updates=2)
    again.resume()
    again.train(SilentLog())
    assert (again.state.step, again.state.non_finite) == (9, 0)


def test_a_signal_saves_the_step_and_ends_the_run(tmp_path):
    made = Counting(tmp_path)
    step = made.step

    def with_a_signal(log):
        if made.state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(log)

    made.step = with_a_signal
    with pytest.raises(StoppedBySignalError), RunLog(tmp_path, "sft", 5, made.config.run) as log:
        made.train(log)
    assert saved_steps(tmp_path) == [2]
    assert made.closed == 1


def test_other_settings_are_refused(tmp_path):
    Counting(tmp_path, steps=1).train(SilentLog())
    made = Counting(tmp_path)
    made.config = replace(made.config, run=replace(made.config.run, seed=3))
    with pytest.raises(RunError, match=r"made with run\.seed = 0, not 3"):
        made.resume()
