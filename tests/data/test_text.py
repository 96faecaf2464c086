from __future__ import annotations

import gzip
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.data.text import clean_text, read_texts, split_validation
from proxlm.errors import DataError

Write = Callable[..., str]


def test_clean_text_by_example() -> None:
    assert clean_text("\ufeffa\r\nb\rc\n") == "a\nb\nc\n"
    assert clean_text("e\u0301 \x00\x07tab\there\x7f\x85") == "é tab\there"
    assert clean_text("e\x00\u0301") == "é"
    chinese = "从前，有一个“小女孩”。\n她叫莉莉🙂！"
    assert clean_text(chinese) == chinese


@given(st.text())
@settings(deadline=None)
def test_clean_text_is_idempotent_and_has_no_controls(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\t\n"]


def test_folders_are_read_recursively_sorted_by_extension_and_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_bytes(b"one\r\n")
    (tmp_path / "a.MD").write_text("two")
    (tmp_path / "c.py").write_text("not read")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "z.txt.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "rows.jsonl").write_text('{"text": "four"}\n{"text": ""}\n{"text": "five"}\n')
    assert list(read_texts([str(tmp_path)], [".txt", ".md"])) == ["two", "one"]
    every = [".txt", ".md", ".txt.gz", ".jsonl"]
    assert list(read_texts([str(tmp_path)], every)) == ["two", "one", "four", "five", "three"]
    file, folder = str(tmp_path / "b" / "one.txt"), str(tmp_path)
    (tmp_path / "b" / "link.txt").symlink_to(tmp_path / "b" / "one.txt")
    assert list(read_texts([file, folder, f"{folder}/b/../b/one.txt"], [".txt"])) == ["one"]
    assert list(read_texts([str(tmp_path / "c.py")], [".txt"])) == ["not read"]


def test_reading_errors_name_file_and_line(write: Write, tmp_path: Path) -> None:
    cases = [
        (write("empty.txt", ""), r"empty\.txt: the file holds no text"),
        (write("latin.txt", b"ok\n\xe9"), r"latin\.txt:2: byte 1 of the line \(0xe9\)"),
        (
            write("a.jsonl", [{"text": "x"}, {"txt": "y"}]),
            r'a\.jsonl:2: no field "text"; did you mean txt\?',
        ),
        (write("b.jsonl", [{"text": 3}]), r'b\.jsonl:1: field "text" must be a text'),
        (str(tmp_path / "none.txt"), r"none\.txt: no such file"),
        (str(tmp_path), r"of the 4 files in this folder none has an extension in text\.extensions: \.rst"),
    ]
    for path, said in cases:
        with pytest.raises(DataError, match=said):
            read_texts([path], [".rst"])
    with pytest.raises(DataError, match=r"text\.train: there is no text to read"):
        read_texts([], [".txt"])


def test_a_folder_of_blank_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="there is no text to read"):
        read_texts([str(tmp_path)], [".txt"])


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(deadline=None)
def test_split_is_a_partition_in_order_with_the_share_asked_for(count: int, share: float, seed: int) -> None:
    records = list(range(count))
    train, validation = split_validation(records, share, seed)
    assert sorted(train + validation) == records
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert len(validation) == min(max(1, round(share * count)), count - 1)
    assert (train, validation) == split_validation(records, share, seed)


def test_split_depends_on_the_seed_and_takes_every_place() -> None:
    held_out = Counter(i for seed in range(400) for i in split_validation(list(range(20)), 0.1, seed)[1])
    # Each of 20 records is held out with probability 0.1: 40 ± 6 times in 400.
    assert len(held_out) == 20
    assert min(held_out.values()) > 15
    assert max(held_out.values()) < 65


@given(st.lists(st.text(min_size=2), min_size=1, max_size=4), st.floats(0.01, 0.24))
@settings(deadline=None)
def test_few_long_texts_each_give_their_end(texts: list[str], share: float) -> None:
    train, validation = split_validation(texts, share, 0)
    assert len(train) == len(validation) == len(texts)
    assert [a + b for a, b in zip(train, validation, strict=True)] == texts


def test_one_text_is_cut_at_the_end_of_a_line() -> None:
    text = "".join(f"line {i:03}\n" for i in range(100))  # 900 characters
    train, validation = split_validation([text], 0.1, 0)
    assert train[0] + validation[0] == text
    assert validation[0].startswith("line 09")
    assert len(validation[0]) == 90
    assert split_validation(["one two three four"], 0.3, 0) == (["one two "], ["three four"])
    assert split_validation(["从前有一个小女孩她"], 0.3, 0) == (["从前有一个小"], ["女孩她"])


def test_too_little_to_split_is_an_error() -> None:
    for records in (["x"], [{"a": 1}]):
        with pytest.raises(DataError, match="one record cannot be split"):
            split_validation(records, 0.5, 0)
