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
