"""Only regular files are opened: nothing waits for a FIFO's writer, nothing reads a device without end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from proxlm.files import (
    FileTooLargeError,
    NotRegularFileError,
    check_folder,
    check_regular,
    open_regular,
    read_regular,
)
from proxlm.text import system_reason


def test_a_regular_file_is_opened_and_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\n")
    with open_regular(path) as file:
        assert file.readline() == b"one\n"
        assert os.get_blocking(file.fileno())
        assert not os.get_inheritable(file.fileno())
    assert read_regular(path, 8) == b"one\ntwo\n"
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 8) == b"one\ntwo\n"


def test_a_file_larger_than_the_limit_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileTooLargeError) as caught:
        read_regular(path, 2**20)
    assert system_reason(caught.value) == "larger than 1 MiB"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(FileTooLargeError):
        read_regular(path, 4)


def irregular(tmp_path, kind):
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        where = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket may have 107 bytes
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(kind)
        os.chdir(where)
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path / "target")
        path.symlink_to("target")
    else:
        path.symlink_to(f"/dev/{kind}")
    return path


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("fifo", "a pipe (FIFO)"),
        ("link to a fifo", "a pipe (FIFO)"),
        ("socket", "a socket"),
        ("zero", "a device"),
        ("null", "a device"),
        ("urandom", "a device"),
    ],
)
@pytest.mark.parametrize("pipe", [False, True])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path, kind, named, pipe):
    path = irregular(tmp_path, kind)
    for read in (lambda: open_regular(path, pipe), lambda: read_regular(path, 9, pipe)):
        with pytest.raises(NotRegularFileError) as caught:
            read()
        assert system_reason(caught.value) == f"not a regular file but {named}"
        assert caught.value.filename == str(path)
    with pytest.raises(NotRegularFileError):
        check_regular(path)
    with pytest.raises(NotRegularFileError):
        check_folder(tmp_path)


def test_folders_and_missing_files_are_the_usual_errors(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    check_regular(tmp_path / "missing")
    check_regular(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    check_folder(tmp_path)


def test_a_failed_look_leaves_no_descriptor_open(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(NotRegularFileError):
            open_regular(tmp_path / "fifo")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_pipe_of_the_shell_is_read_where_a_pipe_is_meant(name):
    code = f"from proxlm.files import read_regular; print(read_regular({name!r}, 9, pipe=True))"
    done = subprocess.run([sys.executable, "-c", code], input=b"hello", capture_output=True, timeout=60)
    assert done.stdout.strip() == b"b'hello'", done.stderr
    refused = subprocess.run(
        [sys.executable, "-c", code.replace("True", "False")], input=b"hello", capture_output=True, timeout=60
    )
    assert b"NotRegularFileError" in refused.stderr
