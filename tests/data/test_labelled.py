"""Responses with labels: what a record may hold, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from proxlm.config import LabelSettings, PreferenceSettings
from proxlm.data.labelled import LabelFormat, classes_in, labelled, step_ends
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError, DataError

Fields = dict[str, Any]


def read(kind: Any, fields: Fields, classes: tuple[str, ...] = (), **labels: Any) -> Any:
    how = LabelFormat(kind, PreferenceSettings(), LabelSettings(**labels), classes)
    return how.read(Record(fields, 7, "r.jsonl"))


def test_scores_with_and_without_a_prompt_and_as_csv_gives_them():
    found = read("scores", {"prompt": "Tea?", "response": " Yes.", "score": "4.5"})
    assert (found.completion.prompt, found.completion.text, found.numbers) == ("Tea?", " Yes.", (4.5,))
    assert found.group == "Tea?"
    assert read("scores", {"response": "Yes.", "score": 0}).group == "Yes."  # not all in one group


def test_one_of_several_scores_may_be_missing():
    names = ["helpful", "rating.safe"]
    found = read("scores", {"response": "a", "rating": {"safe": 2}}, score_fields=names).numbers
    assert math.isnan(found[0])
    assert found[1] == 2.0


def test_messages_are_read_as_of_comparisons():
    messages = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    found = read("scores", {"response": messages, "score": 1})
    assert [message["role"] for message in found.completion.messages] == ["user", "assistant"]
    assert found.completion.text == "Yes."


@pytest.mark.parametrize(
    ("value", "number"), [("no", 0), ("yes", 1), (1, 1), (0.0, 0), ("1", 1), (" yes ", 1)]
)
def test_a_class_is_its_name_or_its_number(value, number):
    assert read("classes", {"response": "a", "label": value}, ("no", "yes")).numbers == (number,)


def test_a_name_that_looks_like_a_number_is_a_name():
    assert read("classes", {"response": "a", "label": 1}, ("1", "0")).numbers == (0,)


def test_classes_are_found_in_their_order(tmp_path):
    file = tmp_path / "r.jsonl"
    for values, wanted in (
        [[10, 2, 1], ["1", "2", "10"]],
        [["b", "a", "b"], ["a", "b"]],
        [[True, False], ["false", "true"]],
    ):
        file.write_text("".join(json.dumps({"label": value}) + "\n" for value in values), "utf-8")
        assert classes_in("label", [str(file)], Skipped()) == wanted
    file.write_text('{"label": "a"}\n', "utf-8")
    with pytest.raises(DataError, match="needs two classes"):
        classes_in("label", [str(file)], Skipped())
    file.write_text("".join(f'{{"label": {i}}}\n' for i in range(1200)), "utf-8")
    with pytest.raises(DataError, match=r"r\.jsonl:1001: .*objective\.kind = \"scores\""):
        classes_in("label", [str(file)], Skipped())


def test_steps_as_a_list_and_as_a_text():
    listed = read("steps", {"prompt": "2+2?", "completions": ["a", "b"], "labels": [True, False]})
    assert (listed.completion.text, listed.numbers) == ("a\nb", (1.0, 0.0))
    text = read("steps", {"completions": "a.\n\nb.\n", "labels": [1, 0.25]})
    assert (text.completion.text, text.numbers) == ("a.\n\nb.\n", (1.0, 0.25))
    assert step_ends("a. \n\n b.\n \nc", "\n") == [2, 8, 12]
    assert step_ends("one ки two", "ки") == [3, 10]
    assert step_ends(" \n ", "\n") == []


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("scores", {"response": "a"}, 'no field "score"'),
        ("scores", {"response": "a", "score": "high"}, "must be a number, not 'high'"),
        ("scores", {"response": "a", "score": float("nan")}, "must be a number"),
        ("scores", {"response": "a", "score": True}, "must be a number"),
        ("scores", {"response": "a", "score": 1e39}, "must be a number"),
        ("scores", {"response": "a", "score": 10**400}, "must be a number"),
        ("scores", {"score": 1}, 'no field "response"'),
        ("scores", {"response": " ", "score": 1}, "is empty"),
        ("scores", {"response": 3, "score": 1}, "response"),
        ("classes", {"response": "a", "label": "maybe"}, "is 'maybe'; the classes are no, yes"),
        ("classes", {"response": "a", "label": 2}, "the classes are"),
        ("classes", {"response": "a", "label": "9" * 150}, "the classes are"),
        ("classes", {"response": "a", "label": [1]}, "must be a class"),
        ("classes", {"response": "a", "label": 0.5}, "must be a class"),
        ("classes", {"response": "a", "label": "x" * 300}, "must be a class"),
        ("steps", {"completions": ["a", "b"], "labels": [1]}, "must be a list of 2 labels, one for each step, not 1"),
        ("steps", {"completions": ["a"], "labels": [2]}, "must be true, false or from 0 to 1"),
        ("steps", {"completions": ["a"], "labels": [None]}, "must be a number"),
        ("steps", {"completions": ["a"], "labels": 1}, "not a int"),
        ("steps", {"completions": ["a\nb"], "labels": [1]}, "a step is empty or holds"),
        ("steps", {"completions": ["a", " "], "labels": [1, 1]}, "a step is empty or holds"),
        ("steps", {"completions": [], "labels": []}, "must hold steps"),
        ("steps", {"completions": [1], "labels": [1]}, "must hold steps"),
        ("steps", {"prompt": "p", "completions": "\n", "labels": []}, "is empty"),
        ("steps", {"completions": ["a"]}, 'no field "labels"'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_file_and_line(kind, fields, message):
    with pytest.raises(BadRecordError) as caught:
        read(kind, fields, ("no", "yes") if kind == "classes" else ())
    assert str(caught.value).startswith("r.jsonl:7: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_a_bad_record_is_left_out_if_that_is_wanted(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"response": "a", "score": 1}\n{"response": "b", "score": "x"}\n', "utf-8")
    how, skipped = LabelFormat("scores", PreferenceSettings(), LabelSettings()), Skipped(skip=True)
    assert [found.numbers for _, found in labelled(how, [str(file)], skipped)] == [(1.0,)]
    assert skipped.counts == {"no number": 1}
