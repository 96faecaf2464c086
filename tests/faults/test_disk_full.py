"""A full disk in the middle of a run: one line that names the file, and nothing that was whole is torn."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
from small_runs import PPO, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.checkpoint import checkpoints, damage
from proxlm.runlog import folder

NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")


@NEEDS_FULL
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_rows_that_cannot_be_written_end_the_run_and_resuming_loses_nothing(
    tiny_place, capsys, monkeypatch, name  # noqa: F811
):  # fmt: skip
    """The disk is full from the second step on, and has room again later."""
    real, calls = folder.append_jsonl, []

    def append(path, rows):
        calls.append(path.name)
        full = path.name == name and calls.count(name) > 1
        return real(Path("/dev/full") if full else path, rows)

    with monkeypatch.context() as patch:
        patch.setattr("proxlm.runlog.rows.append_jsonl", append)
        assert main(PPO) == 2
    assert "/dev/full: cannot be written: No space left on device" in capsys.readouterr().err
    assert [p.name for p in checkpoints(tiny_place / "run")] == ["step-00000001"]
    assert main([*PPO, "--resume"]) == 0
    assert main([*PPO, "--run.folder", "whole"]) == 0
    one, two = (folder.read_jsonl(tiny_place / f / "metrics.jsonl") for f in ("run", "whole"))
    assert [row["reward"] for row in one] == [row["reward"] for row in two]
    texts = [(tiny_place / f / "samples.jsonl").read_text() for f in ("run", "whole")]
    assert texts[0] == texts[1]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tiny_place, capsys, monkeypatch):  # noqa: F811
    real, calls = safetensors.torch.save_file, []

    def save_file(tensors, path, *rest, **more):
        calls.append(path)
        if len(calls) > 1:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, *rest, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    assert main(PPO) == 2
    assert (
        "the checkpoint of step 2 cannot be written: No space left on device; free" in capsys.readouterr().err
    )
    assert [p.name for p in (tiny_place / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert damage(tiny_place / "run" / "checkpoints" / "step-00000001") is None
