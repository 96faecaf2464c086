"""What honest programs may do, how results read, what is refused, and how the sandbox itself may fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proxlm.config import RewardSettings
from proxlm.errors import UserError
from proxlm.rewards import build_reward
from proxlm.sandbox import (
    Isolation,
    Limits,
    Program,
    SandboxError,
    check_isolation,
    isolation,
    run,
    run_programs,
    run_python,
)
from proxlm.sandbox.syscalls import ALWAYS, CONDITIONAL, MACHINES, WITH_FOLDER, conditions

needs_linux = pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")

HONEST = """
    import asyncio, bisect, collections, csv, dataclasses, datetime, decimal, functools, heapq, itertools, json, math
    import os, random, re, sqlite3, statistics, string, sys, tempfile, threading, typing, unicodedata, zoneinfo

    @dataclasses.dataclass
    class Point:
        x: "int"

    async def later():
        await asyncio.sleep(0.001)
        return sys.stdin.readline()

    print(asyncio.run(later()), end="")
    threading.stack_size(1 << 26)
    thread = threading.Thread(target=lambda: print(Point(1), __name__, input()))
    thread.start()
    thread.join()
    with open("table.csv", "w") as file:
        csv.writer(file).writerow([1, "a"])
    with tempfile.TemporaryFile() as file, open(os.devnull, "w") as nothing:
        file.write(b"x")
        print("y", file=nothing)
    print(open("table.csv").read(), sqlite3.connect("base.db").execute("select 2").fetchall())
    print(datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")).isoformat(), file=sys.stderr)
    exit()
"""


@needs_linux
def test_where_the_parent_ignores_the_end_of_children_a_program_is_judged_as_ever():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert [run_python(source).exit_code for source in ("print(1)", "exit(3)")] == [0, 3]
    finally:
        signal.signal(signal.SIGCHLD, before)


@needs_linux
def test_an_honest_program_finds_the_standard_library_files_threads_and_its_input() -> None:
    result = run_python(textwrap.dedent(HONEST), stdin="一\ntwo\nthree", limits=Limits(seconds=20))
    assert (result.status, result.exit_code) == ("ok", 0), result.stderr
    assert result.stdout == "一\nPoint(x=1) __main__ two\n1,a\n [(2,)]\n"
    assert result.stderr == "2020-01-01T00:00:00+00:00\n"


@needs_linux
def test_how_a_program_ended_is_told() -> None:
    programs = [
        "import sys\nsys.exit(3)",
        "raise SystemExit('bye')",
        "def f():\n    1 / 0\nf()",
        "",
        "print('é')",
    ]
    three, bye, division, nothing, accent = run_programs([Program(one) for one in programs])
    assert (three.status, three.exit_code) == ("error", 3)
    assert (bye.status, bye.exit_code, bye.stderr) == ("error", 1, "bye\n")
    assert division.stderr.splitlines()[1:] == [
        '  File "program.py", line 3, in <module>',
        '  File "program.py", line 2, in f',
        "ZeroDivisionError: division by zero",
    ]
    assert (nothing.status, nothing.exit_code, nothing.stdout) == ("ok", 0, "")
    assert accent.stdout == "é\n"
    crashed = run_python("import os, signal\nprint('x', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert (crashed.status, crashed.exit_code, crashed.stdout) == ("crashed", -signal.SIGSEGV, "x\n")


@needs_linux
def test_results_come_in_order_whoever_is_quicker() -> None:
    programs = [Program(f"import time\ntime.sleep({0.2 if i % 3 == 0 else 0})\nprint({i})") for i in range(9)]
    for workers in (1, 4, 20):
        assert [r.stdout for r in run_programs(programs, workers=workers)] == [f"{i}\n" for i in range(9)]
    assert run_programs([]) == []


@needs_linux
def test_sets_of_texts_come_in_the_same_order_in_every_run() -> None:
    source = "print({chr(i) * 3 for i in range(97, 123)}, __import__('os').environ)"
    assert run_python(source).stdout == run_python(source).stdout


@needs_linux
def test_limits_can_be_moved() -> None:
    files = "for i in range(3): open(str(i), 'wb').write(bytes(1000))"
    assert run_python(files).status == "ok"
    assert run_python(files, limits=Limits(files=2)).status == "files"
    assert run_python(files, limits=Limits(file_size=2000)).status == "files"
    assert run_python("print('x' * 99)", limits=Limits(output=100)).status == "ok"
    cut = run_python("print('x' * 100)", limits=Limits(output=100))
    assert (cut.status, cut.stdout) == ("output", "x" * 100)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"seconds": 0}, "seconds = 0: must be more than 0"),
        ({"seconds": float("nan")}, "seconds = nan: must be"),
        ({"memory": 1 << 20}, "memory = 1048576: must be at least 67108864"),
        ({"output": -1}, "output = -1: must be at least 0"),
        ({"threads": 0}, "threads = 0: must be at least 1"),
    ],
)
def test_impossible_limits_are_refused(limit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**limit)


@needs_linux
def test_without_landlock_nothing_can_be_written_and_it_must_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "isolation", lambda: Isolation("", 0))
    with pytest.raises(
        SandboxError, match=r"no Landlock in this kernel.*require_landlock = false runs them anyway"
    ):
        run_python("")
    with pytest.raises(SandboxError, match="no Landlock"):
        build_reward(RewardSettings(use="python_tests"))
    canary = tmp_path / "canary"
    canary.write_text("whole")
    attempts = [
        f"open({str(canary)!r}, 'w')",
        f"open({str(canary)!r}, 'r+')",
        f"os.open({str(canary)!r}, os.O_TRUNC)",
        f"os.open({str(tmp_path)!r}, os.O_TMPFILE | os.O_RDWR)",
        f"os.remove({str(canary)!r})",
        f"os.rename({str(canary)!r}, 'mine')",
        "open('mine', 'w')",
        "os.mkdir('mine')",
        "os.fork()",
        "__import__('socket').socket()",
    ]
    lines = ["import os", f"print(open({str(canary)!r}).read())"]
    for attempt in attempts:
        lines += ["try:", f"    {attempt}", "except OSError:", "    print('refused')"]
    (result,) = run_programs([Program("\n".join(lines))], require_landlock=False)
    assert result.stdout == "whole\n" + "refused\n" * len(attempts)
    assert canary.read_text() == "whole"
    run_programs([Program("")], require_landlock=False)
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1
    assert "can read every file that you can, and write none" in caplog.records[0].message


def test_a_system_that_cannot_confine_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "isolation", lambda: Isolation("the sandbox needs Linux", 0))
    for require in (True, False):
        with pytest.raises(SandboxError, match="needs Linux"):
            check_isolation(require)
    isolation.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isolation().problem == "the sandbox needs Linux (seccomp), this is darwin"
    isolation.cache_clear()


@needs_linux
def test_a_keeper_that_dies_is_replaced_and_its_program_counts_as_crashed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def take(keeper: Any, queue: Any) -> None:
        usual(keeper, queue)
        if keeper.number == 1:
            keeper.process.kill()

    usual = run._Keeper.take
    monkeypatch.setattr(run._Keeper, "take", take)
    results = run_programs([Program(f"print({i})") for i in range(4)], workers=1)
    assert [r.status for r in results] == ["ok", "crashed", "ok", "ok"]
    assert results[3].stdout == "3\n"
    assert "a keeper process ended" in caplog.text


@needs_linux
def test_a_kernel_that_refuses_is_told_and_the_program_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The start of a keeper whose confine fails."""
    broken = (
        "import sys; sys.path.insert(0, {path!r}); import proxlm.sandbox.confine as c\n"
        "def fails(*_): raise OSError(38, 'no such call')\n"
        "c.confine = fails\n"
        "from proxlm.sandbox.keeper import main; main()"
    )
    monkeypatch.setattr(run, "_START", broken)
    mark = tmp_path / "mark"
    with pytest.raises(SandboxError, match=r"refused to confine a program: OSError.*no such call") as raised:
        run_python(f"open({str(mark)!r}, 'w')")
    assert isinstance(raised.value, UserError)
    assert not mark.exists()


@needs_linux
def test_programs_and_their_folders_end_with_the_process_that_wanted_them(tmp_path: Path) -> None:
    code = (
        "from proxlm.sandbox import Limits, run, run_python\n"
        f"run._IN_MEMORY = {str(tmp_path)!r}\n"
        "print('started', flush=True)\n"
        'run_python(\'open("x", "w"); import time; time.sleep(600)\', limits=Limits(seconds=600))\n'
    )
    ours = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[2])},
    )
    with ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 20
        while len(found := descendants(ours.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(found) == 3  # the keeper, the watcher, the program
        ours.kill()
    while any(Path(f"/proc/{one}").exists() for one in found) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [one for one in found if Path(f"/proc/{one}").exists()]
    assert list(tmp_path.iterdir()) == []


def descendants(process: int) -> list[int]:
    """Children of any of its threads, and theirs."""
    children: list[str] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            children += path.read_text().split()
    return [int(c) for c in children] + [d for c in children for d in descendants(int(c))]


def test_no_call_has_two_rules_and_every_condition_can_hold() -> None:
    for _, column in MACHINES.values():
        numbers = [n[column] for table in (ALWAYS, WITH_FOLDER, CONDITIONAL) for n in table.values()]
        known = [n for n in numbers if n >= 0]
        assert len(known) == len(set(known))
    for name in CONDITIONAL:
        for folder in (True, False):
            assert all(v & c.mask == v for c in conditions(name, folder) for v in c.allowed)


@needs_linux
def test_time_in_which_nothing_was_let_run_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The program and its watcher are stopped for longer than the limit, then go on."""
    results: list[Any] = []
    monkeypatch.setattr(run, "_IN_MEMORY", str(tmp_path))
    landlock = isolation().landlock
    monkeypatch.setattr(run, "isolation", lambda: Isolation("", landlock))  # its files are seen from outside
    source = "import time\nopen('started', 'w')\nprint('a')\nfor _ in range(10): time.sleep(0.05)\nprint('b')"
    thread = threading.Thread(target=lambda: results.append(run_python(source, limits=Limits(seconds=2.0))))
    before = set(descendants(os.getpid()))  # of other tests
    thread.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*/*/started")) and time.monotonic() < deadline:
        time.sleep(0.01)
    found = set(descendants(os.getpid())) - before
    assert len(found) == 3
    for one in found:
        os.kill(one, signal.SIGSTOP)
    time.sleep(3)
    for one in found:
        os.kill(one, signal.SIGCONT)
    thread.join(60)
    assert [r.status for r in results] == ["ok"]
    assert results[0].stdout == "a\nb\n"
    assert results[0].seconds > 3
