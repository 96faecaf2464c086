"""Solutions that are wrong and try to pass: ends that look like success, objects that equal anything, false modules.

The tests ask for squares. Each test below is one way in which people write such a test.
"""

from __future__ import annotations

TESTS = {
    "plain": "assert f(3) == 9",
    "map": "for got, want in zip(map(f, [1, 2, 3]), [1, 4, 9]):\n    assert got == want\n"
           "assert len(list(map(f, [1, 2]))) == 2",
    "all": "assert all(f(x) == x * x for x in (2, 3))",
    "all of a map": "assert all(map(lambda x: f(x) == x * x, [2, 3]))",
    "filter": "assert not list(filter(lambda x: f(x) != x * x, [2, 3]))",
    "starmap": "from itertools import starmap\nassert all(starmap(lambda x, y: f(x) == y, [(2, 4), (3, 9)]))",
    "zip of two maps": "assert all(a == b for a, b in zip(map(f, [2, 3]), map(lambda x: x * x, [2, 3])))",
    "zip of a map, alone": "for got, want in zip(map(f, [2, 3]), [4, 9]):\n    assert got == want",
    "iter of a function": "for got in iter(lambda: f(2), 4):\n    raise AssertionError(got)",
    "takewhile": "from itertools import takewhile\nassert not list(takewhile(lambda x: f(x) != x * x, [2, 3]))",
    "sum": "assert sum(map(f, [1, 2, 3])) == 14",
    "in": "assert f(2) in (4,) and f(2) in {4} and f(2) in {4: 0} and [4].index(f(2)) == 0 and [4].count(f(2)) == 1",
    "swapped": "assert 9 == f(3) and not 9 != f(3)",
    "in a list": "assert [f(2), f(3)] == [4, 9] and {'a': f(2)} == {'a': 4} and (f(2),) == (4,)",
    "type": "assert type(f(2)) is int and isinstance(f(2), int) and f(2) == 4",
    "close": "import math\nassert math.isclose(f(0.5), 0.25)",
    "close, no import": "assert math.isclose(f(0.5), 0.25)",
    "text": "import json, re\nassert json.dumps(f(2)) == '4' and re.fullmatch('4', str(f(2)))",
    "text, no import": "assert json.dumps(f(2)) == '4' and re.fullmatch('4', json.dumps(f(2)))",
    "sorted": "assert sorted([f(3), f(2)]) == [4, 9] and min(f(3), f(2)) == 4",
    "unittest": "import unittest\nunittest.TestCase().assertEqual(f(3), 9)",
    "solution": "import solution\nassert solution.f(3) == 9",
    "with a callback": "seen = []\nassert f(2) == 4 and f(3) == 9 and not seen",
    "errors are reported": "try:\n    got = f(2)\nexcept Exception as error:\n    raise AssertionError from error\n"
        "assert got == 4",
}  # fmt: skip

EQUAL = """
class Equal{base}:
    def yes(self, *_): return True
    def no(self, *_): return False
    __eq__ = __le__ = __ge__ = __lt__ = __gt__ = __contains__ = __bool__ = __instancecheck__ = yes
    __ne__ = no
    def __hash__(self): return hash(4)
    def __sub__(self, _): return 0
    __rsub__ = __add__ = __radd__ = __mul__ = __abs__ = __float__ = __index__ = __int__ = __sub__ if {odd} else yes
    def __str__(self): return "4"
    __repr__ = __str__
    @property
    def __class__(self): return int
def f(x): return Equal({value})
"""
RAISES = "def f(x): raise {error}"
MODULES = ("math", "json", "re", "itertools", "unittest", "builtins", "solution", "tests")
FALSE = """
class {name}:
    isclose = dumps = fullmatch = starmap = takewhile = assertEqual = staticmethod(lambda *_: "4")
    f = staticmethod(lambda x: x * x)
"""

CHEATS = {
    # Ends that are no end of the tests.
    "StopIteration": RAISES.format(error="StopIteration"),
    "StopIteration of its own class": "class End(StopIteration): pass\n" + RAISES.format(error="End()"),
    "StopAsyncIteration": RAISES.format(error="StopAsyncIteration"),
    "StopIteration from an attribute": "class F:\n    def __getattr__(self, name): raise StopIteration\n"
        "    def __call__(self, x): raise StopIteration\nf = F()",
    "StopIteration at the second call": "n = []\ndef f(x):\n    n.append(x)\n"
        "    if len(n) % 2: raise StopIteration\n    return 0",
    "an iterator instead of the function": "class F:\n    def __iter__(self): return self\n"
        "    def __next__(self): raise StopIteration\n    __call__ = lambda self, x: next(self)\nf = F()",
    "GeneratorExit": RAISES.format(error="GeneratorExit"),
    "SystemExit": RAISES.format(error="SystemExit"),
    "SystemExit of None": RAISES.format(error="SystemExit(None)"),
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "quit": "def f(x): quit()",
    "KeyboardInterrupt": RAISES.format(error="KeyboardInterrupt"),
    "a BaseException of its own": "class End(BaseException): pass\n" + RAISES.format(error="End()"),
    "an exception group": RAISES.format(error="BaseExceptionGroup('x', [SystemExit(0)])"),
    "a test that was skipped": "import unittest\n" + RAISES.format(error="unittest.SkipTest"),
    "an exception without words": "class E(Exception):\n    def __str__(self): return ''\n"
        + RAISES.format(error="E()"),
    "an exception whose words raise": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\n"
        + RAISES.format(error="E()"),
    "an exception that says that it is none": "class E(Exception):\n    __class__ = int\n    __name__ = ''\n"
        + RAISES.format(error="E()"),
    "LostError by name": "class LostError(BaseException): pass\n" + RAISES.format(error="LostError()"),
    # Objects that equal anything.
    "equals all": EQUAL.format(base="", odd=0, value=""),
    "equals all, differs by nothing": EQUAL.format(base="", odd=1, value=""),
    "an int that equals all": EQUAL.format(base="(int)", odd=0, value="5"),
    "a float that equals all": EQUAL.format(base="(float)", odd=1, value="5.0"),
    "a text that equals all": EQUAL.format(base="(str)", odd=0, value="'4'"),
    "a list that equals all": EQUAL.format(base="(list)", odd=0, value="[4]"),
    "a tuple that equals all": EQUAL.format(base="(tuple)", odd=0, value="(4, 9)"),
    "a dict that equals all": EQUAL.format(base="(dict)", odd=0, value="{4: 4}"),
    "a set that equals all": EQUAL.format(base="(frozenset)", odd=0, value="{4, 9}"),
    "bytes that equal all": EQUAL.format(base="(bytes)", odd=0, value="b'4'"),
    "a class whose class equals all": "class Meta(type):\n    __eq__ = lambda *_: True\n"
        "    __hash__ = lambda _: hash(4)\n"
        "    __instancecheck__ = lambda *_: True\nclass f(metaclass=Meta):\n    def __init__(self, x): pass",
    "a not-a-number": "def f(x): return float('nan')",
    "True": "def f(x): return True",
    "Ellipsis and NotImplemented": "def f(x): return NotImplemented if x % 2 else ...",
    "a mock": "from unittest.mock import MagicMock, ANY\ndef f(x): return ANY if x % 2 else MagicMock()",
    # False modules and built-ins.
    **{f"a false {name}": FALSE.format(name=name) + f"import sys\nsys.modules['{name}'] = {name}\ndef f(x): return 0"
       for name in MODULES},
    "all false modules": "".join(FALSE.format(name=name) for name in MODULES) + "def f(x): return 0",
    "false modules as files": "".join(
        f"open('{name}.py', 'w').write('isclose = dumps = fullmatch = starmap = lambda *_: True')\n"
        for name in MODULES) + "def f(x): return 0",
    "a module's functions changed": "import builtins, itertools, json, math, re, unittest\n"
        "math.isclose = json.dumps = re.fullmatch = itertools.starmap = lambda *_: '4'\n"
        "unittest.TestCase.assertEqual = lambda *_: None\n"
        "builtins.all = builtins.map = builtins.zip = builtins.len = lambda *_: 1\ndef f(x): return 0",
    "false built-ins published": "all = any = zip = map = sum = len = isinstance = type = sorted = True\n"
        "AssertionError = None\ndef f(x): return 0",
    "a false name of the tests' machinery": "published = module = solution = tests = names = {}\n__name__ = 'tests'\n"
        "__builtins__ = None\ndef f(x): return 0",
    # Words and processes.
    "words of success": "import sys\ndef f(x):\n    print('OK', 'passed', '[\"value\", 9]')\n"
        "    sys.stderr.write('OK')\n    return 0",
    "words at the end": "import atexit\natexit.register(print, 'passed')\ndef f(x): return 0",
    "a thread that says passed": "import os, threading, time\ndef say():\n    while True:\n        time.sleep(0.01)\n"
        "        print('passed', flush=True)\nthreading.Thread(target=say, daemon=True).start()\ndef f(x): return 0",
    "a child that says passed": "import os\ntry:\n"
        "    if os.fork() == 0: os._exit(0)\nexcept OSError: pass\ndef f(x): return 0",
    "arguments changed": "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if type(o) is list and o[:2] == [4, 9]:\n            o.clear()\n    return 0",
    "its callers looked at": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for one in list(frame.f_locals.values()):\n"
        "            if 'ass' + 'ert f(' in str(one): return x * x\n"
        "        frame = frame.f_back\n    return 0",
    "nothing": "pass",
}  # fmt: skip

RIGHT = "import math, json, re\ndef f(x): return x * x"

# What can be written to the line between a program and its tests instead of an answer.
FRAMES = {
    "no frame": b"\xff" * 99,
    "a frame of nothing": b"\0\0\0\0",
    "no JSON": b"\0\0\0\4nope",
    "no list": b"\0\0\0\4true",
    "an answer of no kind": b'["passed", true]',
    "too many words": b'["value", 1, 2]',
    "a value that is no pair": b'["value", 9]',
    "no table of names": b'["value", ["tuple", 3, ["tuple"]]]',
    "names that are numbers": b'["value", ["tuple", ["dict", 1, 2], ["tuple"]]]',
    "a dict of JSON": b'["value", {"f": 9}]',
    "an unknown tag": b'["value", ["tuple", ["pickle", "x"], ["tuple"]]]',
    "a handle beyond all": b'["value", ["tuple", ["yours", 99999], ["tuple"]]]',
    "a handle of no number": b'["value", ["tuple", ["mine", "x"], ["tuple"]]]',
    "an exception of no name": b'["raise", [[1, null], "x"]]',
    "an exception that is no exception": b'["raise", [["exec", "open", "int"], "x"]]',
    "an exception with too much": b'["raise", [["KeyError"], "x", "y"]]',
    "a request without end": b'["call", [0, ["tuple"], ["dict"]]]',
    "a module that acts": b'["value", ["tuple", ["dict", "f", ["module", "unittest.__main__"]], ["tuple"]]]',
    "a module of no name": b'["value", ["tuple", ["dict", "f", ["module", 7]], ["tuple"]]]',
    "a number of many digits": b'["value", ["tuple", ' + b"9" * 9999 + b', ["tuple"]]]',
    "numbers that are none": b'["value", ["tuple", ["complex", "x", []], ["tuple"]]]',
    "a key that cannot be one": b'["value", ["tuple", ["dict", ["list"], 1], ["tuple"]]]',
    "half a pair": b'["value", ["tuple", ["dict", 1], ["tuple"]]]',
    "a dict in a set": b'["value", ["tuple", ["set", ["dict"]], ["tuple"]]]',
    "a nest": b'["value", ' + b'["list", ' * 5000 + b"]" * 5001,
}
