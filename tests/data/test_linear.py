"""Twice the input takes twice the work: operations are counted, so that no clock decides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxlm.data.json_list import DECODER
from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped


class Key(str):
    """A key that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Key.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def comparisons(size: int) -> int:
    pairs: list[tuple[Any, int]] = [(Key(f"k{i}"), i) for i in range(size)]
    Key.compared = 0
    with pytest.raises(ValueError, match="duplicate key"):
        DECODER.object_pairs_hook([*pairs, (Key(f"k{size - 1}"), 0)])
    return Key.compared


def test_a_repeated_key_is_found_without_comparing_all_with_all() -> None:
    assert comparisons(2000) <= 2.5 * max(comparisons(1000), 1)
    assert comparisons(2000) < 20_000


def calls(function: Callable[[], Any]) -> int:
    """How many functions, of Python and of C, are called."""
    count = 0

    def profile(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


INPUTS: dict[str, Callable[[int], str]] = {
    "a.jsonl": lambda n: '{"a": null, "b": [1, {"c": 2}]}\n' * n,
    "keys.jsonl": lambda n: "{" + ", ".join(f'"{i}": {i}' for i in range(n)) + "}",
    "bad.jsonl": lambda n: '{"a"\n' * n,
    "deep.jsonl": lambda n: ("[" * 900 + "\n") * n,
    "a.json": lambda n: json.dumps([{"a": i} for i in range(n)]),
    "large_first.json": lambda n: json.dumps([{"a": "x" * 2**18}, *({"a": i} for i in range(n))]),
    "a.csv": lambda n: "a,b\n" + "1,2\n" * n,
    "open.csv": lambda n: "a,b\n" + '"x\n' * n,
    "pairs.csv": lambda n: "a,b\n" + '"",""x\n' * n,
    "unclosed.csv": lambda n: 'a,b\n1,2\n"' + "x\n" * n,
    "a.txt": lambda n: "\n\nx" * n,
}


@pytest.mark.parametrize("name", INPUTS)
def test_reading_twice_as_much_calls_twice_as_many_functions(tmp_path: Path, name: str) -> None:
    counts = []
    for size in (300, 600):
        path = tmp_path / name
        path.write_text(INPUTS[name](size))
        good: list[Any] = []

        def read(path: Path = path, good: list[Any] = good) -> None:
            try:
                good.extend(iter_records(path, Skipped(skip=True)))
            except Exception:
                assert name.startswith(("bad", "deep", "open", "pairs"))

        counts.append(calls(read))
    assert counts[1] <= 2.3 * counts[0]
