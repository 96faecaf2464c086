"""Mutations of bytes: of single bytes and words, of two inputs together, and of JSON as a tree."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

WORDS = [
    b"\n", b"\r\n", b'"', b",", b"\0", b"\xff", b"\\", b"[", b"]", b"{", b"}", b":", b"\\ud800", b"1e999", b"\t",
    b"NaN", b"-1", b"0", b"null", b"true", b"-Infinity", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\x1b[31m", b"\xc2\x9b",
    b" ", b"'", b"=", b".", b"/", b"../", b"#", b"\xe2\x80\xa8", b"9" * 400, b"[" * 300, b"(" * 300, b"a" * 500,
    b"18446744073709551616",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.0, 1e308, "", "x", "\0", "\ud800",
    "\u202e\x1b[2J",
    "é\n", "1/2", "x" * 600, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, "a", None], "NaN", "../x",
    "/dev/zero",
    *(float(word) for word in ("nan", "inf", "-inf")),
]  # fmt: skip


def mutated(rng: random.Random, corpus: Sequence[bytes], words: Sequence[Any]) -> bytes:
    """An input made from one or two of the corpus; the newer ones are taken more often."""
    data = _chosen(rng, corpus)
    if rng.random() < 0.75 and (changed := _tree_mutated(rng, data, words)) is not None:
        data = changed
        if rng.random() < 0.9:
            return data
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 6))):
        data = _edited(rng, data, corpus, words)
    return data


def _chosen(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    newer = rng.random() < 0.4
    return corpus[rng.randrange(max(0, len(corpus) - 8) if newer else 0, len(corpus))]


def _edited(rng: random.Random, data: bytes, corpus: Sequence[bytes], words: Sequence[Any]) -> bytes:
    at = rng.randint(0, len(data))
    end = min(len(data), at + rng.choice((0, 1, 1, 2, 4, 16, 64)))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        word = rng.choice(words) if words and rng.random() < 0.6 else rng.choice(WORDS)
        return (
            data[:at]
            + (word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass"))
            + data[end:]
        )
    if kind == 2:
        return data[:at] + data[end:]
    if kind == 3:
        return data[:end] + data[at:end] * rng.choice((1, 2, 40)) + data[end:]
    if kind == 4:
        other = _chosen(rng, corpus)
        start = rng.randint(0, len(other))
        return data[:at] + other[start : start + rng.randint(0, 64)] + data[end:]
    if kind == 5:
        lines = data.split(b"\n")
        if len(lines) > 1:
            lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
        return b"\n".join(lines)
    return data[:at] if rng.random() < 0.3 else data[:at] + rng.randbytes(rng.randint(1, 4)) + data[end:]


def _tree_mutated(rng: random.Random, data: bytes, words: Sequence[Any]) -> bytes | None:
    """The input with one of its lines, or all of it, changed as JSON; None if it is none."""
    lines = [data] if rng.random() < 0.3 else data.split(b"\n")
    begun = [i for i, line in enumerate(lines) if line.lstrip()[:1] in (b"{", b"[", b'"')]
    if not begun:
        return None
    number = rng.choice(begun)
    try:
        tree = json.loads(lines[number])
    except (ValueError, RecursionError):
        return None
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _changed(rng, tree, words)
    try:
        lines[number] = json.dumps(tree, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    except RecursionError:
        return None
    return b"\n".join(lines)


def _changed(rng: random.Random, tree: Any, words: Sequence[Any]) -> Any:
    if isinstance(tree, dict | list) and tree and rng.random() < 0.8:
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        draw = rng.random()
        if draw < 0.55:
            tree[key] = _changed(rng, tree[key], words)
        elif draw < 0.7:
            del tree[key]
        elif isinstance(tree, list):
            tree.insert(key, tree[key] if rng.random() < 0.5 else _value(rng, words))
        else:
            tree[_name(rng, words)] = tree[key] if rng.random() < 0.5 else _value(rng, words)
        return tree
    return _value(rng, words)


def _name(rng: random.Random, words: Sequence[Any]) -> str:
    names = [word for word in words if isinstance(word, str)]
    return (
        rng.choice(names)
        if names and rng.random() < 0.8
        else rng.choice(("", "x\ny", "\ud800", "a.b", "\x1b"))
    )


def _value(rng: random.Random, words: Sequence[Any]) -> Any:
    if words and rng.random() < 0.4:
        word = rng.choice(words)
        return word.decode("utf-8", "replace") if isinstance(word, bytes) else json.loads(json.dumps(word))
    if rng.random() < 0.03:
        deep: Any = 0
        for _ in range(400):
            deep = [deep]
        return deep
    return json.loads(json.dumps(rng.choice(VALUES)))
