"""Programs of hostile_calls.py, run together: memory beyond the limits, and system calls that must be refused."""

from __future__ import annotations

import pytest
from hostile_calls import CALLS, HEAD, MEMORY

from proxlm.sandbox import (
    Isolation,
    Limits,
    Program,
    SandboxResult,
    check_isolation,
    isolation,
    run,
    run_programs,
    run_python,
)

pytestmark = pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")
LIMITS = Limits(seconds=30, memory=256 << 20)


def program_of(calls: list[str]) -> Program:
    return Program(HEAD + "".join(f"print({call})\n" for call in calls))


@pytest.fixture(scope="module")
def results() -> dict[str, SandboxResult]:
    names = [*MEMORY, *CALLS]
    programs = [Program(HEAD + source) for source, *_ in MEMORY.values()] + [
        program_of(c) for c in CALLS.values()
    ]
    return dict(zip(names, run_programs(programs, limits=LIMITS), strict=True))


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_no_address_keeps_is_within_the_limits(
    name: str, results: dict[str, SandboxResult]
) -> None:
    _, status, says = MEMORY[name]
    assert (results[name].status, results[name].stdout) == (status, says), results[name]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_could_reach_outside_is_refused(name: str, results: dict[str, SandboxResult]) -> None:
    assert results[name].status == "ok", results[name]
    assert results[name].stdout.split() == ["no"] * len(CALLS[name])


def test_without_own_mounts_a_program_that_keeps_deleted_files_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    landlock = isolation().landlock
    monkeypatch.setattr(run, "isolation", lambda: Isolation("", landlock))
    source, *_ = MEMORY["deleted files that stay mapped"]
    result = run_python(HEAD + source + "while True: pass\n", limits=LIMITS)
    assert result.status == "files"


def test_what_is_not_enforced_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "isolation", lambda: Isolation("", 3))
    run._note.cache_clear()
    for _ in range(2):
        check_isolation(require_landlock=True)
    (record,) = caplog.records
    assert "deleted files that a program still maps are counted every 20 ms" in record.message


def test_memory_can_be_mapped_privately_and_a_file_also_shared() -> None:
    source = """
import mmap
private = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private[5:8] = b"abc"
with open("f", "w+b") as file:
    file.truncate(4096)
    shared = mmap.mmap(file.fileno(), 4096)
    shared[:3] = private[5:8]
    print(file.read(3), mmap.mmap(file.fileno(), 3, access=mmap.ACCESS_READ)[:])
mmap.mmap(-1, 4096)
"""
    result = run_python(source)
    assert result.stdout == "b'abc' b'abc'\n"
    assert result.stderr.splitlines()[-1].startswith("PermissionError")


def test_the_tests_process_has_the_same_limit_of_memory_for_itself() -> None:
    tests = ("x = bytearray(300 << 20)", "x = bytearray(200 << 20)")
    (result,) = run_programs([Program("x = bytearray(200 << 20)", tests=tests)], limits=LIMITS)
    assert (result.status, result.tests) == ("ok", ("MemoryError", ""))


def test_a_burst_of_files_is_limited_by_the_kernel() -> None:
    source = "n = 0\ntry:\n    while True:\n        open(str(n), 'w').close()\n        n += 1\n"
    source += "except OSError: print(n)"
    result = run_python(source, limits=Limits(files=10))
    assert result.status == "files"
    assert not isolation().mounts or int(result.stdout or 0) <= 10 + 64
