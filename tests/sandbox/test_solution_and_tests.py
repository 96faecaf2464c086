"""A program and its tests in two processes: what passes between them, and what a program gains by cheating."""

from __future__ import annotations

import pytest

from proxlm.sandbox import Limits, Program, SandboxResult, isolation, run_programs

pytestmark = pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")


def judged(source: str, *tests: str, seconds: float = 10.0) -> SandboxResult:
    return run_programs([Program(source, tests=tests)], limits=Limits(seconds=seconds))[0]


PLAIN = ["None", "True", "-3", "2 ** 70", "-(2 ** 20000)", "1.5", "float('inf')", "'é\\ud800'", "b'\\0x'", "2 + 3j",
         "[1, [2]]", "(1, (2,))", "{1: 'a', (2, 3): None}", "{1, 2}", "frozenset([1])", "range(1, 9, 2)",
         "__import__('collections').deque([1])"]  # fmt: skip


def test_plain_data_passes_unchanged_both_ways() -> None:
    tests = [f"x = {value}\nassert same(x) == x and type(same(x)) is type(x)" for value in PLAIN]
    result = judged("def same(x): return x", *tests)
    assert (result.status, set(result.tests)) == ("ok", {""}), result


def test_subclasses_arrive_as_what_they_are_underneath() -> None:
    source = "import collections, enum\ndef count(x): return collections.Counter(x)\n"
    source += "class E(enum.IntEnum):\n    A = 2\ndef e(): return E.A\n"
    source += "P = collections.namedtuple('P', 'x')\ndef p(): return P(1)"
    result = judged(
        source, "assert count('aab') == {'a': 2, 'b': 1}", "assert e() == 2", "assert p() == (1,)", "P(3).x"
    )
    assert result.tests == ("", "", "", "AttributeError: 'tuple' object has no attribute 'x'")


def test_classes_generators_callbacks_changes_in_place_and_exceptions() -> None:
    source = """
import math
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def __len__(self): return len(self.items)
    def __str__(self): return f"Stack({self.items})"
class Mine(ValueError): pass
def count(n): yield from range(n)
def twice(f, x): return f(f(x))
def maker(): return lambda x: x + 1
def sort(x, *, down=False): x.sort(reverse=down)
def fails(kind): raise {"key": KeyError, "own": Mine}[kind]("no")
LIMIT = 7
"""
    tests = [
        "s = Stack()\nassert not s\ns.push(4)\n"
        "assert len(s) == 1 and s and s.items == [4] and str(s) == 'Stack([4])'",
        "assert list(count(3)) == [0, 1, 2] and 2 in count(3)\nassert [x for x in count(2)] == [0, 1]",
        "assert twice(lambda x: x * 3, 2) == 18",
        "assert maker()(1) == 2",
        "x = [1, 3, 2]\nsort(x, down=True)\nassert x == [3, 2, 1]",
        "try:\n    fails('key')\n    assert False\nexcept KeyError as e:\n    assert 'no' in str(e)",
        "try:\n    fails('own')\n    assert False\nexcept ValueError:\n    pass",
        "assert LIMIT == 7 and math.floor(1.5) == 1",
        "from solution import maker as m\nassert m()(2) == 3",
    ]  # fmt: skip
    result = judged(source, *tests)
    assert (result.status, result.tests) == ("ok", ("",) * len(tests))


def test_what_a_test_finds_wrong_is_told_and_the_others_go_on() -> None:
    result = judged(
        "def f(x): return x", "assert f(1) == 2, 'one'", "assert f(1) == 1", "f()", "g", "raise SystemExit(0)"
    )
    assert result.status == "ok"
    assert result.tests[:2] == ("AssertionError: one", "")
    assert "missing 1 required positional argument" in result.tests[2]
    assert result.tests[3:] == ("NameError: name 'g' is not defined", "SystemExit: 0")


TESTS = (
    "assert f(2) == 4 and not f(2) != 4",
    "assert abs(f(0.5) - 0.25) < 1e-6",
    "assert f(3) in (9, 9.0)",
    "import math\nassert math.isclose(f(0.1), 0.01)",
    "assert len(str(f(10))) == 3 and sorted([f(2), f(1)]) == [1, 4]",
)
YES = """
class Yes(int):
    def _yes(self, *_): return True
    __eq__ = __lt__ = __le__ = __contains__ = _yes
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = lambda self, *_: 0
"""
CHEATS = {
    "always equal": YES + "def f(x): return Yes()",
    "equal to all, and no int": YES.replace("Yes(int)", "Yes") + "def f(x): return Yes()",
    "a class instead of the function": YES.replace("Yes(int)", "Yes") + "f = Yes",
    "other built-ins": "abs = len = sorted = str = lambda *_: 0\n__builtins__ = {}\ndef f(x): return 0",
    "built-ins changed": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.AssertionError = None\n"
    "def f(x): return 0",
    "a false module": "class math:\n    isclose = lambda *_: True\nimport sys\nsys.modules['math'] = math\n"
    "def f(x): return 0",
    "says that it passed": "print('passed ' * 9)\ndef f(x):\n    print('ok')\n    return 0",
    "stops the tests by exceptions": "def f(x): raise SystemExit(0)",
    "looks for its tests": "import gc, sys\ndef f(x):\n"
    "    seen = [o for o in gc.get_objects() if 'isclose' in str(o)[:999]]\n"
    "    return 0 if not any('assert' in str(o) for o in seen) else exit()",
    "no such function": "",
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_passes_no_test(cheat: str) -> None:
    result = judged(CHEATS[cheat], *TESTS)
    assert result.status == "ok"
    assert len(result.tests) == len(TESTS)
    assert all(result.tests), result.tests
    honest = judged("def f(x): return x * x", *TESTS)
    assert honest.tests == ("",) * len(TESTS)


ENDS = {
    "ends at once": ("import os\nos._exit(0)", "error"),
    "ends before its tests": ("def f(x): return x * x\nraise SystemExit(0)", "error"),
    "ends in a test": ("import os\ndef f(x): os._exit(0)", "error"),
    "closes the line": ("import os\ndef f(x): os.closerange(3, 9)", "error"),
    "writes passes to every descriptor": (
        "import os\nfor p in range(3, 99):\n    for message in (b'\\0\\0\\0\\2\"\"', b'\\0\\0\\0\\4true'):\n"
        "        try: os.write(p, message)\n        except OSError: pass\ndef f(x): return x",
        "error",
    ),
    "speaks nonsense": ("import os\nos.write(4, b'\\xff' * 99)", "error"),
    "nests without end": (
        "import os\nd = b'[\"value\",' + b'[\"list\",' * 9**5\nos.write(4, len(d).to_bytes(4, 'big') + d)",
        "error",
    ),
    "loops in a test": ("def f(x):\n    while True: pass", "timeout"),
    "takes all memory in a test": ("def f(x): return bytes(1 << 40)", "memory"),
    "crashes in a test": ("import ctypes\ndef f(x): ctypes.string_at(0)", "crashed"),
    "asks without end": ("def f(x):\n    while True: x()", "timeout"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_does_not_come_to_the_end_of_its_tests_has_not_passed(end: str) -> None:
    source, status = ENDS[end]
    seconds = 1.0 if status == "timeout" else 10.0
    result = judged(
        source, "try:\n    f(lambda: 1)\nexcept BaseException:\n    pass", "f(2)", seconds=seconds
    )
    assert result.status == status, result
    assert "" not in result.tests
