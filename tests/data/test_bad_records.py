"""What is bad in a file: told with file, line and field, or left out, counted and listed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from record_helpers import read_records

from proxlm.data.json_list import JsonList
from proxlm.data.lines import LONGEST_LINE, byte_lines
from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped
from proxlm.errors import BadRecordError, DataError

Write = Callable[..., str]

JSONL = b"""{"a": "first"}
{"a":
[1]
{"a": 1, "a": 2}
{"a": "\\ud800"}
{"a": "\xe4\xbd"}

{"b": "\xe4\xbd\xa0\xe5\xa5\xbd"}"""
JSON = b"""[{"a": "first"},
3,
{"a": 1, "a": {"b": []}},
{"a": "\\ud800"},
{"a": "\xe4\xbd"}, {"b": "\xe4\xbd\xa0\xe5\xa5\xbd"}
]"""
CSV = b"""a,b

first,"1
2"
"open,3
x,"y"z
\xe9t\xe9,"4
5"
one
one,two,three
\xe4\xbd\xa0\xe5\xa5\xbd,
"""
TXT = b"first\n\n\xff\xfa\n \xe4\xbd\xa0\xe5\xa5\xbd \n"

# file → fields of the good records by line; kind and a part of the reason of the bad ones, by line
CASES: dict[str, tuple[bytes, dict[int, Any], dict[int, tuple[str, str]]]] = {
    "a.jsonl": (
        JSONL,
        {1: {"a": "first"}, 8: {"b": "你好"}},
        {
            2: ("not valid JSON", "not valid JSON: Expecting value (column 6)"),
            3: ("not an object", "a record must be an object {...}, not [1]"),
            4: ("not valid JSON", 'duplicate key "a" in an object'),
            5: ("half a character", "a \\uD... escape stands for half a character"),
            6: ("not UTF-8", "byte 8 of the line (0xe4) is not UTF-8"),
        },
    ),
    "a.json": (
        JSON,
        {1: {"a": "first"}, 5: {"b": "你好"}},
        {
            2: ("not an object", "a record must be an object {...}, not 3"),
            3: ("not valid JSON", 'duplicate key "a" in an object'),
            4: ("half a character", "a \\uD... escape stands for half a character"),
            5: ("not UTF-8", "the record holds a byte (0xe4) that is not UTF-8"),
        },
    ),
    "a.csv": (
        CSV,
        {3: {"a": "first", "b": "1\n2"}, 11: {"a": "你好", "b": ""}},
        {
            5: ("not valid CSV", "not valid CSV: ',' expected after '\"'"),
            6: ("not valid CSV", "not valid CSV: ',' expected after '\"'"),
            7: ("not UTF-8", 'field "a" holds a byte (0xe9) that is not UTF-8'),
            9: ("wrong number of values", "1 values, but the header has 2 columns"),
            10: ("wrong number of values", "3 values, but the header has 2 columns"),
        },
    ),
    "a.txt": (
        TXT,
        {1: {"text": "first"}, 4: {"text": " 你好 "}},
        {3: ("not UTF-8", "byte 1 of the line (0xff) is not UTF-8")},
    ),
}
CASES["a.tsv"] = (CSV.replace(b",", b"\t"), CASES["a.csv"][1], CASES["a.csv"][2] | {5: ("not valid CSV", "")})
CASES["a.tsv"][2][6] = ("not valid CSV", "expected after")


def listed(skipped: Skipped, folder: Path) -> list[dict[str, Any]]:
    """The rows of skipped.jsonl."""
    skipped.save(folder)
    file = folder / "skipped.jsonl"
    return [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("windows", [False, True])
def test_bad_records_are_left_out_counted_and_listed(
    write: Write, tmp_path: Path, name: str, packed: bool, windows: bool
) -> None:
    content, good, bad = CASES[name]
    if windows:
        content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    path = write(name + ".gz", gzip.compress(content)) if packed else write(name, content)
    skipped = Skipped(skip=True)
    assert {record.line: record.fields for record in iter_records(path, skipped)} == good
    rows = listed(skipped, tmp_path)
    assert [(row["file"], row["line"]) for row in rows] == [(path, line) for line in bad]
    for row in rows:
        kind, reason = bad[row["line"]]
        assert row["kind"] == kind
        assert reason in row["reason"]
        assert row["record"]
    kinds = [kind for kind, _ in bad.values()]
    assert skipped.counts == {kind: kinds.count(kind) for kind in kinds}
    assert len(skipped) == len(bad)
    list(iter_records(path, skipped))  # read again, each is still counted once
    assert len(skipped) == len(bad)


@pytest.mark.parametrize("name", CASES)
def test_without_skip_the_first_bad_record_ends_it_after_the_good_ones_before(
    write: Write, name: str
) -> None:
    content, good, bad = CASES[name]
    path = write(name, content)
    records = iter_records(path)
    assert next(records).fields == next(iter(good.values()))
    line, (kind, reason) = next(iter(bad.items()))
    with pytest.raises(BadRecordError) as caught:
        list(records)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert reason in str(caught.value)
    assert caught.value.kind == kind


def test_an_open_quotation_mark_costs_its_own_record_alone(write: Write) -> None:
    path = write("a.csv", 'a,b\n1,2\n"open,2\n' + "".join(f"{i},x\n" for i in range(5)))
    skipped = Skipped(skip=True)
    assert [r.line for r in iter_records(path, skipped)] == [2, 4, 5, 6, 7, 8]
    assert skipped.summary() == "1 left out, not valid CSV"
    with pytest.raises(DataError, match=r"a\.csv:3: not valid CSV: unexpected end of data"):
        read_records(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt"])
@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_utf_16_and_32_are_named(write: Write, ending: str, code: str) -> None:
    path = write(f"a.{ending}", '[{"a": "some text of a few words"}]\n'.encode(code))
    for skip in (False, True):  # no record of the file can be told, so it is never left out
        with pytest.raises(DataError, match=rf"a\.{ending}:1: ") as caught:
            read_records(path, Skipped(skip))
        assert ("UTF-32" if code == "utf-32" else "UTF-16") in str(caught.value)
        assert "save it as UTF-8" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{}x\n[]\n", r"no record can be used; the first bad one: .*a\.jsonl:1: not valid JSON"),
        ("a.csv", "a,b\n1\n2\n", r"no record can be used; the first bad one: .*a\.csv:2: 1 values"),
        ("a.csv", "a,\n1,2\n", ":1: the header needs a different name"),
        ("a.csv", b"a,\xff\n1,2\n", ":1: the header holds a byte"),
        ("a.csv", 'a,"b\n1,2\n', ":1: not valid CSV"),
        ("a.json", '[{"a": 1}, {"a": }, {"a": 2}]', r":1: not valid JSON: Expecting value \(column 18\)"),
        ("a.json", '[{"a": 1} {"a": 2}]', ":1: not valid JSON: expected , or ] after the element"),
        ("a.json", '[{"a": 1},', ":1: not valid JSON: Expecting value"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "the gzip data is cut off or damaged"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + bytes(9), "the gzip data is cut off or damaged"),
    ],
)
def test_what_makes_the_rest_unreadable_is_an_error_even_with_skip(
    write: Write, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_records(write(name, content), Skipped(skip=True))


def test_lines_have_a_limit(write: Write, tmp_path: Path) -> None:
    path = Path(write("a.jsonl", b"short\n" + b"x" * 30 + b"\nagain\r\n" + b"y" * 30))
    skipped = Skipped(skip=True)
    assert list(byte_lines(path, skipped, longest=20)) == [(1, b"short"), (3, b"again")]
    assert [(row["line"], row["kind"], row["record"]) for row in listed(skipped, tmp_path)] == [
        (2, "line too long", "x" * 30),
        (4, "line too long", "y" * 30),
    ]
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than"):
        list(byte_lines(path, Skipped(), longest=20))
    assert list(byte_lines(path, Skipped(), longest=31))[1] == (2, b"x" * 30)


@pytest.mark.parametrize(
    ("name", "template"),
    [("a.jsonl", '{"a": "%s"}\n'), ("a.json", '[{"a": "%s"}]'), ("a.txt", "%s\n"), ("a.txt.gz", "%s\n")],
)
def test_a_line_of_ten_megabytes_is_read(write: Write, name: str, template: str) -> None:
    value = "你" * (10 * 2**20 // 3)
    data = (template % value).encode()
    (record,) = read_records(write(name, gzip.compress(data, 1) if name.endswith(".gz") else data))
    assert list(record.fields.values()) == [value]


def test_a_line_over_the_limit_is_named_and_others_are_still_read(write: Write) -> None:
    path = write("a.jsonl", b'{"a": "' + b"x" * LONGEST_LINE + b'"}\n{"a": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: the line is longer than 64 MiB; cut it into several"):
        read_records(path)
    assert [r.line for r in read_records(path, Skipped(skip=True))] == [2]


def test_an_element_over_the_limit_is_named(write: Write) -> None:
    path = Path(write("a.json", '[{"a": 1},\n{"a": "' + "x" * 5 * 2**20 + '"}]'))
    elements = iter(JsonList(path, longest=2**20))
    assert next(elements).value == {"a": 1}
    with pytest.raises(DataError, match=r"a\.json:2: the record is longer than 1 MiB"):
        next(elements)


def test_elements_of_all_sizes_come_whole_with_their_lines(write: Write) -> None:
    chance = random.Random(0)
    rows = [{"a": "x\n你" * chance.choice([1, 10, 30_000]), "n": -i * 10**9} for i in range(60)]
    text = "[" + ",\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n"
    found = read_records(write("a.json", text))
    assert [r.fields for r in found] == rows
    assert [r.line for r in found] == [1 + 2 * i for i in range(60)]
    broken = text[: text.rindex("-") + 1] + "]\n"
    line = broken.count("\n")
    with pytest.raises(DataError, match=rf"a\.json:{line}: not valid JSON: Expecting .* \(column "):
        read_records(write("a.json", broken))


def test_numbers_are_not_cut_where_the_buffer_ends(write: Write, tmp_path: Path) -> None:
    path = write("a.json", "[" + ",".join(str(10**30 + i) for i in range(20_000)) + ',{"a": 1}]')
    skipped = Skipped(skip=True)
    assert [r.fields for r in iter_records(path, skipped)] == [{"a": 1}]
    # One line, so they count as one record left out, the first.
    (row,) = listed(skipped, tmp_path)
    assert row["record"] == str(10**30)


def test_records_are_read_no_earlier_than_needed(tmp_path: Path) -> None:
    path = tmp_path / "growing.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + b" \n" * 2**20)
    records = iter_records(path)
    assert [r.fields["a"] for r in islice(records, 2)] == [1, 2]
    with open(path, "ab") as file:  # the end has not been reached
        file.write(b'{"a": 3}\n')
    assert [r.fields["a"] for r in records] == [3]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.csv"])
def test_good_records_come_before_the_error_of_the_tail(write: Write, name: str) -> None:
    chance = random.Random(0)
    values = [chance.randbytes(300).hex() for _ in range(2000)]
    data = {
        "a.jsonl.gz": gzip.compress("".join(f'{{"a": "{v}"}}\n' for v in values).encode())[:-100],
        "a.json": ("[" + ",\n".join(f'{{"a": "{v}"}}' for v in values) + ",\n{").encode(),
        "a.csv": ("a\n" + "".join(f"{v}\n" for v in values) + "x,y\n").encode(),
    }[name]
    records = iter_records(write(name, data))
    assert [r.fields["a"] for r in islice(records, 1500)] == values[:1500]
    with pytest.raises(DataError, match=r"cut off|:2001: not valid JSON|:2002: 2 values"):
        list(records)


def test_the_list_is_cut_to_a_limit_and_goes_when_nothing_is_left_out(tmp_path: Path) -> None:
    skipped = Skipped(skip=True)
    skipped.note("f", 1, "kind", "reason", "\ud800" + "x" * 5000)
    (row,) = listed(skipped, tmp_path)
    assert row["record"] == "\ud800" + "x" * 999
    assert listed(Skipped(skip=True), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_path(tmp_path: Path) -> None:
    for name, said in [
        ("a\0b.jsonl", "not a path"),
        ("~nobody-of-this-name/a.jsonl", "no such file"),
        (str(tmp_path / ("x" * 300 + ".jsonl")), "cannot be read: File name too long"),
    ]:
        with pytest.raises(DataError, match=said):
            read_records(name)
