"""A short run of benchmarks/fuzz.py, that it finds what is wrong, and what longer runs have found."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from proxlm.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
INPUTS = 1200


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    return fuzz


def test_damaged_input_raises_our_own_errors_alone_and_keeps_its_budget(harness: Any) -> None:
    told = {}
    for name, inputs in harness.shares(list(harness.TARGETS), INPUTS).items():
        tally = harness.fuzz(name, inputs, seed=1)
        assert tally.inputs == inputs >= 2
        told[name] = [(found.wrong, found.place, data) for found, data in tally.found]
    assert {name: found for name, found in told.items() if found} == {}


def wrong(data: bytes, folder: Path) -> None:
    """A reader with one fault of each kind."""
    if b"loop" in data:
        while True:
            pass
    if b"wait" in data:
        time.sleep(600)
    if b"swallow" in data:
        try:
            while True:
                pass
        except BaseException:
            return
    if b"memory" in data:
        kept = [bytes(1 << 20) for _ in range(5000)]
        raise UserError(str(len(kept)))
    if b"lines" in data:
        error = UserError("")
        error.args = ("one\ntwo",)
        raise error
    if b"long" in data:
        error = UserError("")
        error.args = ("x" * 5000,)
        raise error
    if b"key" in data:
        raise KeyError(folder)
    if b"{" in data:
        raise UserError("refused")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("loop", "over budget: CPU time"),
        ("wait", "over budget: time on the clock"),
        ("swallow", "over budget: CPU time"),
        ("memory", "MemoryError"),
        ("lines", "a message with control characters or several lines"),
        ("long", "a message that is too long"),
        ("key", "KeyError"),
        ("{", ""),
        ("", ""),
    ],
)
def test_each_kind_of_fault_is_found(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, expected: str
) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0.2)
    monkeypatch.setattr(harness, "CLOCK_SECONDS", 1.0 if word == "wait" else 60.0)
    monkeypatch.setattr(harness, "MEMORY", 64 << 20)
    target = harness.Target(lambda: [b""], wrong)
    with harness.limited_memory():
        outcome = harness.attempt(target, f"ab{word}c".encode(), tmp_path)
    assert outcome.wrong == expected
    assert outcome.refused == (word in ("{", "lines", "long"))


def test_coverage_leads_to_what_chance_alone_does_not_find(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault behind four letters, each of which shows in a line that is reached when those before it are there."""

    def behind(data: bytes, _: Path) -> None:
        seen = []
        if data[:1] == b"d":
            seen.append(1)
        if data[:2] == b"de":
            seen.append(2)
        if data[:3] == b"dee":
            seen.append(3)
        if data[:4] == b"deep":
            raise KeyError

    monkeypatch.setattr(harness, "SOURCE", __file__)
    monkeypatch.setitem(
        harness.TARGETS, "deep", harness.Target(lambda: [b"...."], behind, (b"d", b"e", b"p"))
    )
    tally = harness.fuzz("deep", 12_000, seed=3)
    assert [(found.wrong, data) for found, data in tally.found] == [("KeyError", b"deep")]


def test_a_run_can_be_repeated(harness: Any) -> None:
    from fuzz_mutate import mutated

    first, again = ([mutated(random.Random(5), [b'{"a": [1, "b"]}'], ()) for _ in range(3)] for _ in range(2))
    assert first == again
    once, twice = (harness.fuzz("state", 40, seed=2) for _ in range(2))
    assert (once.refused, once.corpus, once.lines) == (twice.refused, twice.corpus, twice.lines)


# target → an input that once raised something else, or was told in more than one line
FOUND: list[tuple[str, bytes]] = [
    ("arguments", b"control\n\n\0"),
    ("arguments", b"ppo\n" + b"x" * 300),
    ("data-set", b'{"_data_files": [{"filename": "da\\ud800ta.arrow"}]}'),
    ("chats", json.dumps({"x\ny": 1}).encode()),
    ("jsonl", b'{"a\\nb": 1, "a\\nb": 2}'),
    ("csv", b'"a\nb",c\n\xff,1\n'),
    ("arrow", b"\xff\xff\xff\xff\x18\x01\x00x"),
]


@pytest.mark.parametrize(("name", "value"), FOUND)
def test_what_was_found(harness: Any, tmp_path: Path, name: str, value: bytes) -> None:
    outcome = harness.attempt(harness.TARGETS[name], value, tmp_path)
    assert (outcome.wrong, outcome.refused) == ("", True)


def test_an_arrow_file_whose_offsets_lie_beyond_its_end_is_refused(harness: Any, tmp_path: Path) -> None:
    """pyarrow aborts the process that reads such a text."""
    (good,) = harness.TARGETS["arrow"].seeds()
    at = good.index(
        b"".join(offset.to_bytes(4, "little") for offset in (0, 6, 6))
    )  # of the texts "2 + 2?" and none
    bad = good[: at + 4] + (-3).to_bytes(4, "little", signed=True) + good[at + 8 :]
    outcome = harness.attempt(harness.TARGETS["arrow"], bad, tmp_path)
    assert (outcome.wrong, outcome.refused) == ("", True)
