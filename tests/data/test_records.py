from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_helpers import read_records

from proxlm.data.skipped import Record
from proxlm.errors import DataError
from story_model import ARITHMETIC, SHARED_DATA, beside_the_checkout

Write = Callable[..., str]

# The same two records in every kind of file; blank lines are no records, but count as lines.
JSONL = '{"q": "你好", "n": "1"}\n\n{"q": "b, c", "n": "2"}\n'
JSON = '[\n  {"q": "你好", "n": "1"}\n, {"q": "b, c",\n   "n": "2"}\n]\n'
CSV = 'q,n\n你好,1\n"b, c",2\n'
TSV = "q\tn\n你好\t1\nb, c\t2\n"


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", JSONL, (1, 3)),
        ("a.json", JSON, (2, 3)),
        ("a.csv", CSV, (2, 3)),
        ("a.tsv", TSV, (2, 3)),
        ("A.JSONL", JSONL, (1, 3)),
        ("a.ndjson", JSONL, (1, 3)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("windows", [False, True])
def test_every_kind_gives_the_same_records(
    write: Write, name: str, text: str, lines: tuple[int, int], packed: bool, windows: bool
) -> None:
    data = text.encode()
    if windows:
        data = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    path = write(name + ".gz", gzip.compress(data)) if packed else write(name, data)
    assert read_records(path) == [
        Record({"q": "你好", "n": "1"}, lines[0]),
        Record({"q": "b, c", "n": "2"}, lines[1]),
    ]


def test_txt_keeps_lines_as_they_are_and_leaves_out_blank_ones(write: Write) -> None:
    path = write("a.txt", "\ufeffone  \r\n\r\n \t\n  two\x0b\u2028too")
    assert read_records(path) == [Record({"text": "one  "}, 1), Record({"text": "  two\x0b\u2028too"}, 4)]


def test_csv_value_over_several_lines_counts_from_its_first(write: Write) -> None:
    path = write("a.csv", 'q,n\r\n"x\r\ny",1\r\n\r\nz,2\r\n')
    assert read_records(path) == [Record({"q": "x\ny", "n": "1"}, 2), Record({"q": "z", "n": "2"}, 5)]


def test_line_numbers_are_right_after_a_value_over_several_lines_in_json(write: Write) -> None:
    path = write("a.json", '\n[{"a":\n[1,\n2]},\n\n{"a": 3}\n,{"a": 4}]')
    assert [r.line for r in read_records(path)] == [2, 6, 7]


@given(
    st.lists(
        st.dictionaries(st.text(min_size=1, max_size=4), st.text() | st.integers() | st.none(), max_size=3),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_jsonl_and_json_give_back_what_was_written(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    lines, whole = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    whole.write_bytes(json.dumps(rows, indent=1).encode())
    fields = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert [r.fields for r in read_records(lines)] == fields
    assert [r.line for r in read_records(lines)] == list(range(1, len(rows) + 1))
    assert [r.fields for r in read_records(whole)] == fields


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', ":3: not valid JSON: Expecting value (column 7)"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', ":2: a record must be an object {...}, not [1, 2]"),
        ("a.jsonl", '{"a": 1}\n"text"', ':2: a record must be an object {...}, not "text"'),
        ("a.jsonl", '{"a": 1, "a": 2}', ':1: not valid JSON: duplicate key "a" in an object'),
        ("a.jsonl", '{"a": "\\ud800"}', ":1: a \\uD... escape stands for half a character"),
        ("a.jsonl", "[" * 200_000, ":1: not valid JSON: nested too deeply"),
        ("a.jsonl", '{"a": ' + "[" * 100 + "]" * 100 + "}", ":1: not valid JSON: nested too deeply"),
        ("a.json", '[{"a": ' + "[" * 100 + "]" * 100 + "}]", ":1: not valid JSON: nested too deeply"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": "\xe4\xbd"}\n',
            ":2: byte 8 of the line (0xe4) is not UTF-8; save the file as UTF-8",
        ),
        ("a.txt", "a".encode("utf-16"), ":1: byte 1 of the line (0xff) is not UTF-8"),
        ("a.jsonl", "", ": the file holds no records"),
        ("a.jsonl", "\n \n", ": the file holds no records"),
        ("a.txt", "\ufeff\r\n", ": the file holds no records"),
        ("a.csv", "a,b\n", ": the file holds no records"),
        ("a.json", "[]", ": the file holds no records"),
        ("a.json", " ", ": the file holds no records"),
        ("a.json", '{"a": 1}', ": must hold a list of objects"),
        ("a.json", '[{"a": 1},\n 3]', ":2: a record must be an object {...}, not 3"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', ":1: not valid JSON: expected , or ] after the element"),
        ("a.json", '[{"a": 1},\n{"a": ', ":2: not valid JSON: Expecting value (column 7)"),
        ("a.json", '[{"a": 1}', ":1: not valid JSON: expected , or ] after the element"),
        ("a.json", '[{"a": 1}]\n\n{}', ":3: text after the end of the list"),
        ("a.csv", "a,b\n1,2\n3\n", ":3: 1 values, but the header has 2 columns"),
        ("a.csv", "a,a\n1,2\n", ":1: the header needs a different name for each column"),
        ("a.csv", "a,\n1,2\n", ":1: the header needs a different name for each column"),
        ("a.csv", 'a,b\n1,2\n"open,2\n', ":3: not valid CSV: unexpected end of data"),
        ("a.csv", "a\n" + "x" * 140_000, ":2: not valid CSV: field larger than field limit"),
        ("a.parquet", "PAR1", ": not a Parquet file, or damaged: "),
        ("a.parquet.gz", "PAR1", ": unknown kind of file; use .jsonl, .ndjson, .json, .csv, .tsv, .txt"),
        ("a", "x", ": unknown kind of file"),
        ("a.gz", "x", ": unknown kind of file"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)[:-9], ": the gzip data is cut off or damaged"),
        ("a.jsonl.gz", JSONL, ": the gzip data is cut off or damaged"),
        ("a.jsonl.gz", b"", ": the file holds no records"),
    ],
)
def test_bad_files_get_one_line_that_names_file_and_line(
    write: Write, name: str, content: str | bytes, said: str
) -> None:
    path = write(name, content)
    with pytest.raises(DataError) as caught:
        read_records(path)
    message = str(caught.value)
    assert message.startswith(path + said)
    assert "\n" not in message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file$"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder, but a file is needed"):
        read_records(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="is a folder, but a file is needed"):
        read_records(tmp_path / "folder.jsonl")


@pytest.mark.parametrize(
    "path", [ARITHMETIC, *beside_the_checkout(SHARED_DATA / "gsm8k" / "test.jsonl")], ids=str
)
def test_word_problems(path: Path) -> None:
    records = read_records(path)
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert len(records) == records[-1].line == lines >= 60
    assert all(set(r.fields) == {"question", "answer"} and "#### " in r.fields["answer"] for r in records)


def test_preferences_in_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl.gz"
    rows = [
        {"chosen": f"\n\nHuman: {i}?\n\nAssistant: “yes”", "rejected": f"\n\nHuman: {i}"} for i in range(300)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    preferences = read_records(path)
    assert [dict(r.fields) for r in preferences] == rows
    assert preferences[-1].line == 300
    for larger in beside_the_checkout(SHARED_DATA / "hh-rlhf" / "harmless-test.jsonl.gz"):
        preferences = read_records(larger)
        assert len(preferences) == 2312
        assert all(set(r.fields) == {"chosen", "rejected"} for r in preferences)
