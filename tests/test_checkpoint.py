"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from proxlm.checkpoint import (
    check_fit,
    checkpoints,
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    publish_folder,
    save_checkpoint,
)
from proxlm.errors import RunError


def write(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def save(run, step, keep=2, write_policy=write):
    return save_checkpoint(
        run, step, {"w": torch.full((2,), float(step))}, {"kl_coef": 0.5}, keep, write_policy
    )


def test_round_trip_and_keep(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    tensors, state = load_checkpoint(newest_checkpoint(tmp_path))
    assert tensors["w"].tolist() == [3, 3]
    assert state == {"step": 3, "kl_coef": 0.5}


def full_disk(folder):
    folder.mkdir()
    (folder / "half").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(RunError, match="of step 2 cannot be written: No space left on device; free"):
        save(tmp_path, 2, write_policy=full_disk)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert load_checkpoint(newest_checkpoint(tmp_path))[1]["step"] == 1


def test_what_a_crash_left_is_no_checkpoint_and_is_cleared(tmp_path):
    save(tmp_path, 1)
    left = tmp_path / "checkpoints" / ".writing-00000002"
    left.mkdir()
    # Of a checkpoint that was being deleted, too.
    deleting = tmp_path / "checkpoints" / ".removing-step-00000000"
    deleting.mkdir()
    assert newest_checkpoint(tmp_path).name == "step-00000001"
    save(tmp_path, 3)
    assert not left.exists()
    assert not deleting.exists()


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    (checkpoints(tmp_path)[0] / "policy" / "old").write_text("old")
    save(tmp_path, 1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (checkpoints(tmp_path)[0] / "policy" / "old").exists()


def test_published_folder_is_the_old_or_the_new_one(tmp_path):
    publish_folder(tmp_path / "policy", write)
    with pytest.raises(RunError, match="policy: cannot be written: No space left on device; free some space"):
        publish_folder(tmp_path / "policy", full_disk)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
    assert [p.name for p in (tmp_path / "policy").iterdir()] == ["config.json"]


def test_what_was_replaced_and_cannot_be_deleted_is_said(tmp_path, monkeypatch, caplog):
    target = tmp_path / "policy"
    publish_folder(target, lambda folder: (folder.mkdir(), (folder / "w").write_text("1")))
    assert caplog.text == ""

    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.unlink", refuse)
    publish_folder(target, lambda folder: (folder.mkdir(), (folder / "w").write_text("2")))
    assert (target / "w").read_text() == "2"
    (record,) = caplog.records
    assert ".replaced-policy: cannot be removed: Input/output error" in record.getMessage()


def test_what_a_crash_left_in_the_middle_of_replacing_a_folder_is_put_back(tmp_path, monkeypatch):
    publish_folder(tmp_path / "policy", write)
    (tmp_path / "policy" / "config.json").write_text("old")
    real, calls = os.replace, []

    def dies_at_the_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        publish_folder(tmp_path / "policy", write)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".replaced-policy", ".writing-policy"]
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
    assert (tmp_path / "policy" / "config.json").read_text() == "old"
    (tmp_path / ".writing-config.toml-123").write_text("half")
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunError, match="no complete checkpoint"):
        newest_checkpoint(tmp_path)


def test_fit(tmp_path):
    """Weights and the optimisers' state: each tensor that is missing, unknown, or of another kind is named."""
    saved = {"a": torch.zeros(2), "optimiser.x": torch.zeros(9), "extra.y": torch.zeros(1)}
    moments = {"optimiser.x": torch.ones(9)}
    check_fit(tmp_path, saved, {"a": torch.ones(2), **moments})
    for wanted, message in (
        ({"a": torch.ones(3), **moments}, r"a is \(2,\) there and \(3,\) here"),
        ({"a": torch.ones(2), "b": torch.ones(1), **moments}, r"b is nothing there and \(1,\) here"),
        (moments, r"a is \(2,\) there and nothing here"),
        ({"a": torch.ones(2)}, r"optimiser\.x is \(9,\) there and nothing here"),
        ({"a": torch.ones(2), "optimiser.x": torch.ones(8)}, r"optimiser\.x is \(9,\) there and \(8,\) here"),
        (
            {"a": torch.ones(2, dtype=torch.bfloat16), **moments},
            r"a is \(2,\) there and \(2,\) bfloat16 here",
        ),
        ({f"c{i}": torch.ones(1) for i in range(9)}, r"here, c0 is nothing .*here and 9 more"),
    ):
        with pytest.raises(RunError, match=message):
            check_fit(tmp_path, saved, wanted)
