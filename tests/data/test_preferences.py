"""Comparisons in the formats that preference data is published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxlm.config import PreferenceSettings
from proxlm.data.preferences import comparisons, read_comparison, shared_beginning
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError
from proxlm.types import Completion

USER = {"role": "user", "content": "Hi?"}
GOOD, BAD = {"role": "assistant", "content": "Hello."}, {"role": "assistant", "content": "No."}


def read(fields: dict[str, Any], **settings: Any) -> Any:
    return read_comparison(Record(fields, 7, "p.jsonl"), PreferenceSettings(**settings))


def test_a_prompt_and_two_texts():
    found = read({"prompt": "Hi? ", "chosen": "Hello.", "rejected": "No."})
    assert found.sides == (Completion("Hi? ", "Hello."), Completion("Hi? ", "No."))
    assert (found.margin, found.slice, found.where) == (0.0, "", "p.jsonl:7")


def test_without_a_prompt_it_is_what_both_begin_with():
    found = read(
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}
    )
    assert [side.prompt for side in found.sides] == ["\n\nHuman: Hi?\n\nAssistant:"] * 2
    assert [side.text for side in found.sides] == [" Hello.", " No."]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("a b", "a c", "a"),
        ("I can go", "I can't go", "I"),  # no word is torn
        ("I can", "I can go", "I can"),
        ("x", "y", ""),
        ("Q\n", "Q\nA", "Q\n"),
    ],
)
def test_the_shared_beginning(first, second, both):
    assert shared_beginning(first, second) == both


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},  # TRL's, with a prompt
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},  # TRL's, without
        {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback's
        {"prompt": [USER], "chosen": "Hello.", "rejected": "No."},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": {"role": ["user", "assistant"], "content": ["Hi?", "Hello."]}, "rejected": [USER, BAD]},
    ],
)
def test_messages_in_every_form_are_the_same_comparison(fields):
    found = read(fields)
    assert [side.messages for side in found.sides] == [(USER, GOOD), (USER, BAD)]
    assert [side.text for side in found.sides] == ["Hello.", "No."]
    assert (
        found.group == read({"prompt": [USER], "chosen": [GOOD], "rejected": [{**BAD, "content": "x"}]}).group
    )


def test_chat_makes_messages_of_texts():
    found = read({"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}, chat=True)
    assert found.chosen.messages == (USER, GOOD)


@pytest.mark.parametrize(
    ("winner", "settings", "better"),
    [
        ("a", {}, "Hello."),
        ("B", {}, "No."),
        ("model_a", {}, "Hello."),
        ("response_b", {}, "No."),
        (0, {}, "Hello."),
        (1, {}, "No."),
        ("1", {}, "No."),
        (2, {"winner_values": ["1", "2"]}, "No."),
        ("left", {"winner_values": ["left", "right"]}, "Hello."),
        ("tie", {}, None),
        ("tie (bothbad)", {}, None),
    ],
)
def test_two_completions_and_a_winner(winner, settings, better):
    found = read({"prompt": "Hi?", "response_a": "Hello.", "response_b": "No.", "winner": winner}, **settings)
    assert (found and found.chosen.text) == better
    if better:
        assert {found.chosen.text, found.rejected.text} == {"Hello.", "No."}


def test_margin_and_slice_of_nested_fields():
    fields = {"prompt": "p", "chosen": "a", "rejected": "b", "meta": {"gap": "1.5", "kind": "maths"}}
    found = read(fields, margin_field="meta.gap", slice_field="meta.kind")
    assert (found.margin, found.slice) == (1.5, "maths")


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, {}, 'no field "rejected"'),
        ({"prompt": "p"}, {}, 'no field "chosen"'),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": 2}, {}, "text.winner_values"),
        ({"prompt": "p", "response_a": "a", "winner": "a"}, {}, 'no field "response_b"'),
        ({"prompt": "p", "chosen": "a", "rejected": [BAD]}, {}, "must both be texts"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, {}, "last message is not the assistant's"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "m": "much"},
            {"margin_field": "m"},
            "must be a number",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "m": float("nan")},
            {"margin_field": "m"},
            "must be a number",
        ),
        ({"prompt": "p", "chosen": 1, "rejected": 2}, {}, "must be"),
        ({"prompt": " ", "chosen": "", "rejected": "b"}, {}, "is empty"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(fields, settings, message):
    with pytest.raises(BadRecordError, match=r"^p\.jsonl:7: ") as raised:
        read(fields, **settings)
    assert message in str(raised.value)
    assert len(str(raised.value)) <= 300


def test_ties_and_equal_completions_are_left_out_and_counted(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped = Skipped()
    found = [comparison for _, comparison in comparisons(PreferenceSettings(), [file], skipped)]
    assert [comparison.where for comparison in found] == [f"{file}:2"]
    assert skipped.counts == {"no preference": 2}
