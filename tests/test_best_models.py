"""The folders in best/: whole or not at all, and there for as long as a checkpoint names them."""

from __future__ import annotations

import errno
import math

import pytest
import torch

from proxlm.checkpoint import (
    best_folder,
    damage,
    damage_of,
    keep_model,
    read_state,
    remove_other_models,
    save_checkpoint,
)
from proxlm.config.from_run import kept_models
from proxlm.errors import RunError
from proxlm.train.common.run_loop import LoopState


def write(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def save(run, step, best_step, keep=2):
    """A checkpoint of a step, when another one was the best, as the loop writes it."""
    folder = save_checkpoint(run, step, {"w": torch.ones(1)}, {"best_step": best_step}, keep, write)
    remove_other_models(run, best_step)
    return folder


def kept(run):
    return [int(folder.name[-8:]) for folder in kept_models(run)]


def test_a_best_model_stays_as_long_as_a_checkpoint_names_it(tmp_path):
    keep_model(tmp_path, 2, write)
    save(tmp_path, 3, 2)
    keep_model(tmp_path, 4, write)
    assert kept(tmp_path) == [2, 4]  # whoever goes on from step 3 finds 2 again
    keep_model(tmp_path, 5, write)
    assert kept(tmp_path) == [2, 5]  # nothing goes on from step 4
    save(tmp_path, 6, 5)
    assert kept(tmp_path) == [2, 5]
    save(tmp_path, 9, 5)
    assert kept(tmp_path) == [5]


def test_going_on_from_an_older_step_removes_what_came_later(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2)):
        if best == step:
            keep_model(tmp_path, step, write)
        save(tmp_path, step, best, keep=3)
    keep_model(tmp_path, 4, write)
    remove_other_models(tmp_path, 2)
    assert kept(tmp_path) == [1, 2]
    remove_other_models(tmp_path, 0)
    assert kept(tmp_path) == [1, 2]  # the checkpoints name them


def test_a_damaged_checkpoint_names_nothing(tmp_path):
    keep_model(tmp_path, 1, write)
    (save(tmp_path, 1, 1) / "state.json").write_text('{"best_step": "1"')
    keep_model(tmp_path, 2, write)
    assert kept(tmp_path) == [2]


def test_a_kept_model_has_a_manifest_and_its_harm_is_named(tmp_path):
    folder = keep_model(tmp_path, 7, write)
    assert folder == best_folder(tmp_path, 7) == tmp_path / "best" / "step-00000007"
    assert damage(folder) is None
    assert damage_of(folder) is None
    (folder / "config.json").write_text("[]")
    assert f"{folder}: config.json is not what was written" in damage_of(folder)
    (folder / "manifest.json").unlink()
    assert "manifest.json: cannot be read" in damage_of(folder)
    assert damage_of(tmp_path / "best" / "step-00000008").endswith("step-00000008: missing")


def test_a_full_disk_leaves_what_was_kept_before(tmp_path):
    keep_model(tmp_path, 1, write)

    def full_disk(folder):
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"step-00000002.* cannot be written: No space left on device"):
        keep_model(tmp_path, 2, full_disk)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-00000001"]


def test_what_a_crash_has_left_is_removed_by_the_next_one(tmp_path):
    left = tmp_path / "best" / ".writing-step-00000001"
    left.mkdir(parents=True)
    keep_model(tmp_path, 2, write)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(
    ("lowest", "values", "best"),
    [
        (False, [1.0, 3.0, 0.5, 3.0], 2),  # of equal ones the first
        (True, [1.0, 3.0, 0.5, 0.5], 3),
        (False, [math.nan, -2.0, math.inf, -1.0], 4),
        (True, [-math.inf, 2.0, math.nan, 2.5], 2),
        (False, [math.nan], 0),
        (True, [0.0, -0.5], 2),
    ],
)
def test_which_step_is_the_best(lowest, values, best):
    state, taken = LoopState(), []
    for state.step, value in enumerate(values, start=1):
        if state.take_if_best(value, lowest):
            taken.append(state.step)
    assert state.best_step == best == (taken[-1] if taken else 0)
    assert math.isnan(state.best_value) if not best else state.best_value == values[best - 1]


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"best_step": 4, "best_value": 0.5}, "best_step = 4, after the 3 steps done"),
        ({"best_step": 2, "best_value": None}, "best_step = 2 without a best_value"),
        ({"best_step": -1, "best_value": 0.5}, "best_step = -1, where a count is needed"),
    ],
)
def test_a_state_that_no_run_can_have_been_in(tmp_path, saved, said):
    with pytest.raises(RunError, match=said):
        read_state(LoopState, tmp_path, {"step": 3, "non_finite": 0, **saved})
