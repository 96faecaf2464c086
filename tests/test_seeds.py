"""Random streams: declared once, never two by one value, and nothing derives a seed for an undeclared purpose."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from proxlm.seeds import Purpose, Stream, derive_seed

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
# What a run's seed means: results of earlier versions hold as long as these values do.
STREAMS = {"TRAINING": 0, "EVALUATION": 1, "TRIAL": 2, "REFERENCE": 3, "TEACHER": 4}


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function in the sources, with where it stands."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def declared(node: ast.expr, kind: str) -> bool:
    """Whether an expression is a member of an enumeration or one by its value."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == kind
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == kind


def test_seeds_are_derived_for_declared_purposes_only():
    found = calls("derive_seed")
    assert len(found) >= len(Purpose) - 3  # the three games share one call
    for where, call in found:
        assert declared(call.args[1], "Purpose"), where


def test_every_purpose_is_used():
    used = {
        node.attr
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Purpose"
    }
    games = {Purpose.NUMBER_GAME.name, Purpose.TIC_TAC_TOE.name, Purpose.FROZEN_LAKE.name}
    assert used | games == {purpose.name for purpose in Purpose}


@pytest.mark.parametrize("kind", [Purpose, Stream])
def test_no_two_streams_are_one(kind):
    assert len({member.value for member in kind}) == len(kind.__members__)


def test_no_two_purposes_give_one_seed():
    seeds = [
        derive_seed(base, p, *c) for base in range(3) for p in Purpose for c in ((), (0,), (0, 0), (1, 0))
    ]
    assert len(set(seeds)) == len(seeds)


def test_values_stay():
    assert {stream.name: stream.value for stream in Stream} == STREAMS
    assert derive_seed(0, Purpose.WEIGHTS) == 4_283_426_181_684_004_966
    assert derive_seed(7, Purpose.CHANCE, Stream.EVALUATION, 2, 3, 4) == 2_903_501_977_303_979_162
