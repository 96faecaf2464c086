import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from proxlm.errors import RunError
from proxlm.runlog.folder import (
    append_jsonl,
    open_run,
    read_jsonl,
    truncate_jsonl,
    write_atomic,
    write_json_atomic,
)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_open_run_makes_the_folder_with_its_settings(tmp_path: Path) -> None:
    path = open_run(str(tmp_path / "a" / "b"), "ppo", False, lambda folder: "seed = 1\n")
    assert path == tmp_path / "a" / "b"
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/config.toml"]
    assert (path / "config.toml").read_text() == "seed = 1\n"


def test_open_run_takes_a_folder_that_is_there_but_empty(tmp_path: Path) -> None:
    assert open_run(str(tmp_path), "ppo", False, lambda folder: "x = 1\n") == tmp_path


def test_open_run_without_a_name_names_job_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (open_run("", "sft", False, lambda folder: "") for _ in range(2))
    assert re.fullmatch(r"runs/sft-\d{8}-\d{6}", str(first))
    assert first != second
    assert second.is_dir()


def test_open_run_leaves_a_run_alone(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "run"), "ppo", False, lambda folder: "x = 1\n")
    with pytest.raises(
        RunError,
        match=r"run: already holds a run; set run.resume to go on, or choose another run.folder",
    ):
        open_run(str(run), "ppo", False, lambda folder: "x = 2\n")
    assert (run / "config.toml").read_text() == "x = 1\n"


def test_resume_leaves_the_settings_to_the_caller(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "run"), "ppo", False, lambda folder: "x = 1\n")
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert open_run(str(run), "ppo", True, lambda folder: "x = 2\n") == run
    assert (run / "config.toml").read_text() == "x = 1\n"


def test_resume_needs_a_folder_and_a_complete_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^run\.folder: needed with run\.resume"):
        open_run("", "ppo", True, lambda folder: "")
    with pytest.raises(RunError, match=r"none: nothing to resume: no such folder"):
        open_run(str(tmp_path / "none"), "ppo", True, lambda folder: "")
    (tmp_path / "checkpoints" / ".writing-00000003").mkdir(parents=True)
    with pytest.raises(RunError, match=r"nothing to resume: no complete checkpoint"):
        open_run(str(tmp_path), "ppo", True, lambda folder: "")
    assert not (tmp_path / "config.toml").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "a\0b", "x" * 300])
def test_a_place_where_no_folder_can_be_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"choose another run\.folder$") as caught:
        open_run(f"{tmp_path}/{name}", "ppo", False, lambda folder: "")
    assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        open_run(str(tmp_path / "run"), "ppo", False, lambda folder: "")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(RunError, match=r"config\.toml: cannot be written: No space left on device"):
        open_run(str(tmp_path / "a" / "b"), "ppo", False, lambda folder: "x = 1\n")
    assert everything_in(tmp_path) == []


def test_a_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "evaluation.json"
    write_json_atomic(file, {"reward": 1.0})
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(RunError, match="No space left"):
        write_json_atomic(file, {"reward": 2.0})
    assert json.loads(file.read_text()) == {"reward": 1.0}
    assert everything_in(tmp_path) == ["evaluation.json"]


def test_json_is_strict_and_keeps_every_text(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    value = {"a": [math.nan, {"b": (math.inf, 0.5)}], "text": "猫\ud800\n"}
    write_json_atomic(file, value)
    assert "NaN" not in file.read_text()
    assert json.loads(file.read_text()) == {"a": [None, {"b": [None, 0.5]}], "text": "猫\ud800\n"}


def test_write_atomic_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none/x\.txt: cannot be written: No such file or directory$"):
        write_atomic(tmp_path / "none" / "x.txt", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_append_to_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written: No space left on device$"):
        append_jsonl(tmp_path / "metrics.jsonl", [{"step": 1}])


@pytest.mark.parametrize("torn", ["", '{"step": 3, "t', "\0\0\0", '{"text": "\xe7'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "metrics.jsonl"
    append_jsonl(file, [{"step": 1}, {"step": 2}])
    with open(file, "ab") as out:
        out.write(torn.encode("latin-1"))
    assert read_jsonl(file) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ['{"step": 3, "t', "", "[1]", '{"x": NaN}', "\xff", '{"x": 1} {}'])
def test_any_other_malformed_line_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2: not a row of JSON: ") as caught:
        read_jsonl(file)
    assert "\n" not in str(caught.value)


def test_truncate_drops_later_rows_and_the_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_bytes(b'{"step":1, "n": 1}\n{"step": 2}\n{"step": 2, "a": "b"}\n{"step": 3}\n{"st')
    truncate_jsonl(file, "step", 2)
    # The rows that stay are not rewritten, and a row can be appended.
    assert file.read_bytes() == b'{"step":1, "n": 1}\n{"step": 2}\n{"step": 2, "a": "b"}\n'
    truncate_jsonl(file, "step", 0)
    assert file.read_bytes() == b""
    truncate_jsonl(tmp_path / "none.jsonl", "step", 2)
    assert everything_in(tmp_path) == ["samples.jsonl"]


def test_truncate_ends_a_complete_last_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}')
    truncate_jsonl(file, "step", 1)
    append_jsonl(file, [{"step": 2}])
    assert read_jsonl(file) == [{"step": 1}, {"step": 2}]


def test_truncate_names_the_line_without_a_step(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append_jsonl(file, [{"step": 1}, {"stop": 2}])
    with pytest.raises(RunError, match=r'line 2: no number at "step"'):
        truncate_jsonl(file, "step", 1)
    assert len(read_jsonl(file)) == 2
