"""The mutation check itself: which mutants it makes of a snippet, and that it tells caught from missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def mutated(monkeypatch):
    """source → its mutants as "original → mutated"."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from mutators import find_mutants

    return lambda source: [f"{m.original} → {m.mutated}" for m in find_mutants(source, "x.py").mutants]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a = b + c", ["a = b - c"]),
        ("a = -b", ["a = b"]),
        ("a = b < c", ["a = b <= c", "a = b > c"]),
        ("a = b & ~c", ["a = b | ~c", "a = b & c"]),
        ("a = 0.5", ["a = 1.0"]),
        ("a = -1", ["a = 1", "a = -2", "a = 0"]),
        ("a = x[1:]", ["a = x[2:]"]),
        ("a = x[:n]", ["a = x[:n + 1]"]),
        ("a = x.sum(-1)", ["a = x.mean(-1)", "a = x.sum(0)"]),
        ("a = x.cumsum(0)", ["a = x.flip(0).cumsum(0).flip(0)"]),
        ("a = torch.exp(x)", ["a = torch.log(x)"]),
        ("a = x.detach()", ["a = x"]),
        ("a = torch.minimum(x, y)", ["a = torch.maximum(x, y)"]),
        ("a = torch.where(m, x, y)", ["a = torch.where(m, y, x)"]),
        ("a = torch.where(m, x, 0)", ["a = torch.where(m, 0, x)", "a = x", "a = torch.where(m, x, 1)"]),
        ("a = x * mask", ["a = x / mask", "a = x"]),
        ("a = x.clamp(min=b)", ["a = x", "a = x.clamp(max=b)"]),
        ("a = x.clamp(b, c)", ["a = x.clamp(max=c)", "a = x.clamp(min=b)", "a = x.clamp(min=c, max=b)"]),
        ("def f(a: int = 3) -> int:\n    return a", ["a=4"]),
        ("for i in range(n):\n    pass", ["for i in range(n - 1)"]),
    ],
)  # fmt: skip
def test_mutants_of_a_line(mutated, source, wanted):
    assert [line.split(" → ")[1] for line in mutated(source)] == wanted


def test_clip_settings_are_exchanged(mutated):
    got = mutated("a = x.clamp(b - low, b + high)")
    assert "a = x.clamp(b - low, b + high) → a = x.clamp(min=b - high, max=b + low)" in got


def test_guards_messages_docstrings_and_annotations_are_left_alone(mutated, monkeypatch):
    source = (
        'def f(a: "x | y", b):\n'
        '    """One + one."""\n'
        "    if a.shape != b.shape or len(a) < 2:\n"
        '        raise ValueError(f"{len(a) + 1} shapes")\n'
        "    return b\n"
    )
    assert mutated(source) == []
    from mutators import find_mutants

    found = find_mutants(source, "x.py")
    assert (found.guards, found.guard_mutants) == (1, 5)


def test_the_tree_is_as_before_and_ids_are_unique(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ast

    from mutators import find_mutants

    for path in sorted((BENCHMARKS.parent / "src" / "proxlm" / "rl").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        found = find_mutants(source, path.name)
        assert ast.dump(found.tree) == ast.dump(ast.parse(source))
        assert len({m.id for m in found.mutants}) == len(found.mutants)
        for mutant in found.mutants:
            found.compiled(mutant, str(path))


def test_a_run_tells_caught_from_missed(tmp_path):
    """A package of two functions, the tests of which check one number of each."""
    (tmp_path / "src" / "toy").mkdir(parents=True)
    (tmp_path / "src" / "toy" / "__init__.py").write_text("")
    source = "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x * 2\n"
    (tmp_path / "src" / "toy" / "sums.py").write_text(source)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_toy.py").write_text(
        "from toy.sums import f, g\n"
        "def test_f():\n    assert f(2) == 3\n"
        "def test_g():\n    assert g(0) == 0\n"
    )
    script = (
        "import sys, tempfile, pathlib; sys.path.insert(0, sys.argv[1]); root = pathlib.Path(sys.argv[2])\n"
        "import mutation; from mutators import find_mutants; from mutation_run import Harness\n"
        "mutation.ROOT, mutation.PACKAGE = root, pathlib.Path('src/toy')\n"
        "found, mutants = mutation.collect(None, None)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    check = mutation.Check(Harness(root, pathlib.Path(folder), 2), ['tests/test_toy.py'], found)\n"
        "    for o in check.run(mutants, [''] * len(mutants)):\n"
        "        print('>', o.mutant.mutated, o.status, o.by)\n"
    )
    command = [sys.executable, "-c", script, str(BENCHMARKS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line[2:] for line in done.stdout.splitlines() if line.startswith(">")] == [
        "return x - 1 caught tests/test_toy.py::test_f",
        "return x + 2 caught tests/test_toy.py::test_f",
        "return x + 0 caught tests/test_toy.py::test_f",
        "return x / 2 survived ",
        "return x * 3 survived ",
    ]
