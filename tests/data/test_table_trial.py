"""What is not good for a process that reads it: small files that stand for gigabytes, damage that aborts or hangs."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxlm.data import table_trial
from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped
from proxlm.data.table_trial import try_table
from proxlm.errors import DataError

MIB = 2**20


def repeated(value: str, count: int) -> Any:
    """The value so many times, stored once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def in_lists(values: Any, lengths: list[int]) -> Any:
    return pa.ListArray.from_arrays(np.cumsum([0, *lengths]), values)


def saved(folder: Path, table: Any) -> None:
    """A data set as save_to_disk leaves it, compressed."""
    folder.mkdir()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(folder / "d.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as stream,
    ):
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "d.arrow"}]}))


PLAIN = {"use_dictionary": False}
DELTA = {**PLAIN, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}}
LONG = "x" * 4 * MIB
AS_TEXT = {"store_schema": False}
TOO_MUCH, MEMORY = "it holds more than 1000 times its", "GiB of memory"
# column, how it is stored, and what is said of it when reading may take 64 MiB, and what it holds as much
BOMBS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "a text that repeats": (lambda: repeated("x" * 4 * MIB, 2000), {}, TOO_MUCH),
    "a text that repeats in a row": (lambda: in_lists(repeated("x" * MIB, 5000), [5000]), {}, TOO_MUCH),
    "the same, not as a dictionary": (lambda: in_lists(repeated("x" * MIB, 5000), [5000]), AS_TEXT, MEMORY),
    "long texts that repeat": (lambda: repeated(LONG, 40), AS_TEXT, MEMORY),
    "a page of one letter": (lambda: pa.array([LONG * 20]), PLAIN, MEMORY),
    "texts that begin as those before them": (lambda: pa.array([LONG] * 30), DELTA, MEMORY),
    "a list of nothing": (lambda: in_lists(pa.nulls(30_000_000, pa.int8()), [30_000_000]), PLAIN, MEMORY),
    "numbers that repeat": (lambda: pa.array(np.zeros(1_000_000, np.int8)), {}, TOO_MUCH),
}


def in_a_fork(function: Callable[[], object]) -> None:
    """Call it in a fork, so that what it needs of memory does not lie around here."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.fixture(scope="module")
def fresh() -> Iterator[ProcessPoolExecutor]:
    """A process of little memory: what other tests have left free in this one would be more than reading may take."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


def refusal(path: Path, memory: int, odd_size: int) -> tuple[str, int]:
    """What is said of a table within these bounds, and the KiB by which the memory of the process has grown."""
    table_trial.MOST_MEMORY, table_trial._ODD_SIZE = memory, odd_size
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        next(iter_records(path, Skipped(skip=True)))
    except DataError as error:
        return str(error), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
    return "read", 0


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_stands_for_much_is_refused_in_little_memory(
    tmp_path: Path, fresh: ProcessPoolExecutor, kind: str
) -> None:
    column, options, wanted = BOMBS[kind]
    path = tmp_path / "a.parquet"
    in_a_fork(lambda: pq.write_table(pa.table({"a": column()}), path, compression="zstd", **options))
    assert path.stat().st_size < MIB
    said, grown = fresh.submit(refusal, path, 64 * MIB, 64 * MIB).result()
    assert re.search(rf"a\.parquet: .*{wanted}", said)
    assert len(said) <= 300
    assert grown < 64 * 1024


def test_a_saved_data_set_that_stands_for_much_is_refused(tmp_path: Path, fresh: ProcessPoolExecutor) -> None:
    folder = tmp_path / "a"
    in_a_fork(lambda: saved(folder, pa.table({"text": [LONG * 20]})))
    said, _ = fresh.submit(refusal, folder, 32 * MIB, 2**30).result()
    assert re.search(r"d\.arrow: reading it takes more than .* GiB of memory", said)


def test_in_a_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may be read beside an update."""
    monkeypatch.setattr(table_trial, "_ODD_SIZE", 2)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(try_table, "a.parquet", 1, lambda: []).result() is None
        tried = pool.submit(try_table, "a.parquet", 1, lambda: [pa.record_batch({"a": ["long"] * 300})])
        with pytest.raises(DataError, match="it holds more than"):
            tried.result()


def test_a_trial_without_limits_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(DataError, match=r"^a\.parquet: it cannot be tried in a process of its own"):
        try_table("a.parquet", 1, lambda: [])


def test_what_aborts_a_process_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"^a\.parquet: damaged: reading it aborts the process \(SIGABRT\)$"):
        try_table("a.parquet", 1, os.abort)
    assert capfd.readouterr().err == ""


def test_what_does_not_come_to_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_trial, "_MOST_SECONDS", 1)

    def endless() -> Any:
        while True:
            yield pa.record_batch({"a": pa.array([], pa.int8())})

    with pytest.raises(DataError, match=r"^a\.parquet: damaged: reading it takes more than 1 s$"):
        try_table("a.parquet", 1, endless)


def test_what_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork may wait for a lock that another thread held, which takes no computing time."""
    monkeypatch.setattr(table_trial, "_MOST_SECONDS", 1)
    monkeypatch.setattr(table_trial, "_STANDSTILL", 1)
    with pytest.raises(DataError, match=r"^a\.parquet: reading it stood still for 1 s"):
        try_table("a.parquet", 1, lambda: time.sleep(3600))  # type: ignore[arg-type, return-value]


def test_where_ends_of_processes_are_hidden_it_is_said() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(DataError, match=r"^a\.parquet: cannot be tried .* ignores SIGCHLD"):
            try_table("a.parquet", 1, lambda: [])
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_signals_are_for_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    """A scheduler sends SIGTERM to all processes: the run ends as it promises, and no file is called damaged."""

    def signalled() -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        yield pa.record_batch({"a": [1]})
        os.write(1, b"read to its end")

    try_table("a.parquet", 1, signalled)
    assert capfd.readouterr().out == "read to its end"


def test_where_no_process_can_be_started_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"process of its own: Resource temporarily .*raise the limit of process"
    ):
        next(iter_records(tmp_path / "a.parquet"))


def test_damaged_metadata_of_a_column_does_not_abort(tmp_path: Path) -> None:
    """Asked for such a column's metadata, pyarrow aborts the process."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"m": [{"a": "b"}]}]), path, compression="none")
    whole = path.read_bytes()
    told = []
    for at in range(100, len(whole) - 8, 23):  # its footer
        path.write_bytes(whole[:at] + b"1" + whole[at + 1 :])
        try:
            told.append(len(list(iter_records(path, Skipped(skip=True)))))
        except DataError as error:
            told.append(str(error).startswith(f"{path}: "))
    assert 0 not in told
