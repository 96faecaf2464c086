"""No wrong solution of cheats.py passes a test, whatever it raises, returns, publishes or writes to its line."""

from __future__ import annotations

import pytest
from cheats import CHEATS, FRAMES, RIGHT, TESTS

from proxlm.sandbox import Limits, Program, SandboxResult, isolation, run_programs

pytestmark = pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")
LIMITS = Limits(seconds=30)


@pytest.fixture(scope="module")
def results() -> dict[str, SandboxResult]:
    programs = [Program(source, tests=tuple(TESTS.values())) for source in [RIGHT, *CHEATS.values()]]
    return dict(zip(["", *CHEATS], run_programs(programs, limits=LIMITS), strict=True))


def test_the_right_solution_passes_all(results: dict[str, SandboxResult]) -> None:
    assert dict(zip(TESTS, results[""].tests, strict=True)) == dict.fromkeys(TESTS, "")
    assert results[""].status == "ok"


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_wrong_solution_passes_no_test(cheat: str, results: dict[str, SandboxResult]) -> None:
    result = results[cheat]
    assert result.status in ("ok", "error"), result  # error: it has broken its own end of the line
    assert [name for name, told in zip(TESTS, result.tests, strict=False) if not told] == []
    assert len(result.tests) == len(TESTS) or result.status == "error"


def test_an_iterator_may_end() -> None:
    source = "def f(n): yield from range(n)\nclass Two:\n    n = 0\n    def __iter__(self): return self\n"
    source += "    def __next__(self):\n        self.n += 1\n        if self.n > 2: raise StopIteration\n"
    source += "        return self.n\n"
    tests = (
        "assert list(f(3)) == [0, 1, 2] and list(Two()) == [1, 2] and next(f(0), 7) == 7",
        "assert list(zip(f(2), f(3))) == [(0, 0), (1, 1)]",
        "it = f(0)\ntry:\n    it.__next__()\nexcept StopIteration:\n    pass\nelse:\n    assert 0",
        "g = f(2)\nassert g.send(None) == 0",
    )
    (result,) = run_programs([Program(source, tests=tests)], limits=LIMITS)
    assert result.tests == ("",) * 4


def test_a_function_may_have_the_name_of_a_module() -> None:
    source = "import statistics\ndef copy(x): return [x, x]\ndef bisect(x): return x / 2\n"
    source += "class queue:\n    size = 3\n"
    tests = (
        "assert copy(1) == [1, 1]",
        "assert bisect(4) == 2",
        "assert queue.size == 3",
        "assert statistics.mean([1, 3]) == 2",
    )
    (result,) = run_programs([Program(source, tests=tests)], limits=LIMITS)
    assert result.tests == ("",) * 4


def test_large_tables_stay_with_the_program() -> None:
    source = "SIEVE = list(range(10 ** 6))\nGRID = [[0] * 1000 for _ in range(1000)]\nTEXT = 'x' * 10 ** 6\n"
    source += "SMALL = [1, [2]]\ndef f(x): return SIEVE[x]"
    tests = ("assert f(7) == 7", "assert SIEVE[-1] == 999_999 and len(GRID) == 1000 and len(TEXT) == 10 ** 6")
    (result,) = run_programs([Program(source, tests=(*tests, "assert SMALL == [1, [2]]"))], limits=LIMITS)
    assert (result.status, result.tests) == ("ok", ("", "", ""))


def test_what_tests_cannot_do() -> None:
    source = "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return True\n"
    source += "    def __lt__(self, other): return True\n    def __add__(self, other): return 4\n"
    source += "def f(x): print(x, flush=True)\ndef show(x): return x.y"
    tests = (
        "assert P(1) == P(1)",
        "assert P(1) < P(2)",
        "assert P(1) + 1 == 4",
        "import sys\nassert f(3) is None and sys.stdout.isatty() is False and sys.stdin.read() == ''",
        "class Mine: y = 3\nshow(Mine())",
        "assert P(1).x == 1 and P(2) != 4",  # a handle is equal to nothing
    )
    (result,) = run_programs([Program(source, tests=tests)], limits=LIMITS)
    assert [told.partition(":")[0] for told in result.tests] == [
        "AssertionError", "TypeError", "TypeError", "", "TypeError", "",
    ]  # fmt: skip
    assert result.stdout == "3\n"


def test_what_is_written_to_the_line_is_no_pass() -> None:
    """Each frame is written again and again, from the start and in the middle of a test."""
    head = (
        "import os, threading\ndef write():\n    try:\n        for _ in range(500): os.write(4, {frame!r})\n"
    )
    head += "    except OSError: pass\n"
    sources = []
    for frame in FRAMES.values():
        framed = frame if frame[:1] in b"\xff\0" else len(frame).to_bytes(4, "big") + frame
        sources += [head.format(frame=framed) + tail for tail in ("write()", "def f(x): write()")]
    tests = ("try:\n    f(2)\nexcept Exception:\n    pass\nassert f(2) == 4", "assert f(3) == 9")
    results = run_programs([Program(source, tests=tests) for source in sources], limits=Limits(seconds=20))
    told = dict(zip([(name, place) for name in FRAMES for place in ("first", "later")], results, strict=True))
    assert {
        key: r for key, r in told.items() if "" in r.tests or r.status not in ("ok", "error", "timeout")
    } == {}
    assert {key for key, r in told.items() if r.status == "timeout"} == set()
