"""The settings that a run's folder holds."""

from __future__ import annotations

import errno
import os

import pytest

from proxlm.config import load_config, to_toml
from proxlm.errors import RunError
from proxlm.runlog.saved_settings import read_saved_settings


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.EMFILE])
def test_a_file_that_the_disk_refuses_is_no_file_of_another_version(tmp_path, monkeypatch, at, number):
    """It is opened twice: for its text, and for its settings."""
    (tmp_path / "config.toml").write_text(to_toml(load_config("control", {"environment.id": "CartPole-v1"})))
    assert read_saved_settings(tmp_path).problem == ""
    real, opened = os.open, 0

    def refuse(path, *arguments, **more):
        nonlocal opened
        opened += str(path).endswith("config.toml")
        if opened == at:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match=f"config.toml: (cannot be read: {os.strerror(number)}|no such file)"):
        read_saved_settings(tmp_path)
