"""Messages in every form in which data has them, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxlm.data.messages import read_messages, split_weights
from proxlm.errors import BadRecordError

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}


def test_sharegpt_is_the_same_as_role_and_content() -> None:
    sharegpt = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "2 + 2?"},
        {"from": "gpt", "value": "4", "weight": 0},
        {"from": "observation", "value": "dry"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"town": "Ulm"}})},
    ]
    assert read_messages(sharegpt, "f:1") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "weight": 0},
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": None, "tool_calls": [CALL["function"]]},
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "input_text", "text": "你好", "image_url": None}], "你好"),
        ([], ""),
        ("", ""),
    ],
)
def test_a_content_of_text_parts_is_their_text(content: Any, expected: str) -> None:
    assert read_messages([{"role": "user", "content": content}], "f:1") == [
        {"role": "user", "content": expected}
    ]


@pytest.mark.parametrize("message", [{"content": None}, {}])
@pytest.mark.parametrize("arguments", [{"town": "Ulm"}, '{"town": "Ulm"}'])
def test_a_call_needs_no_content_and_its_arguments_are_an_object(message: Any, arguments: Any) -> None:
    call = {**CALL, "function": {**CALL["function"], "arguments": arguments}}  # type: ignore[dict-item]
    made = read_messages([{"role": "assistant", "tool_calls": [call], **message}], "f:1")
    assert made == [{"role": "assistant", "content": None, "tool_calls": [CALL]}]


def test_an_object_of_lists_is_a_list_of_objects() -> None:
    columns = {"role": ["user", "assistant"], "content": ["a", "b"], "weight": [None, 0]}
    assert read_messages(columns, "f:1") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hello", "f:1: must be a list of messages"),
        ([], "f:1: must be a list of messages"),
        ({"role": "user", "content": "a"}, "f:1: must be a list of messages"),
        (["hello"], 'f:1: message 1 is not an object with "role" and "content"'),
        ([{"content": "a"}], 'f:1: message 1 needs a text "role"'),
        ([{"role": "user", "content": None}], 'f:1: message 1 needs a text "content"'),
        ([{"role": "assistant", "content": None, "tool_calls": []}], 'message 1 needs a text "content"'),
        ([{"role": "user", "content": 3}], 'needs a text "content" or a list of text parts, not int'),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            'f:1: message 1: part 2 of its content is of type "image_url"; only parts of type text are taken',
        ),
        ([{"role": "user", "content": ["a"]}], 'part 1 of its content is of type "str"'),
        ([{"role": "user", "content": [{"type": "text"}]}], 'part 1 of its content needs a text "text"'),
        ([{"from": "narrator", "value": "x"}], 'message 1 is from "narrator"; known are human, user, gpt'),
        ([{"from": "human", "value": 3}], 'message 1 needs a text "value"'),
        ([{"from": "function_call", "value": "f("}], "message 1: its value: a text that is not JSON: f("),
        ([{"role": "assistant", "tool_calls": {}, "content": 1}], "needs a text"),
        ([{"role": "assistant", "tool_calls": "x"}], "message 1: tool_calls must be a list of calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], 'call 1 needs a "function" with a text'),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}],
            "the arguments of call 1: a text that is not JSON: [",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "the arguments of call 1 must be an object, or its JSON",
        ),
    ],
)
def test_what_is_no_list_of_messages_is_refused_by_name(value: Any, said: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        read_messages(value, "f:1")
    assert said in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_weights_are_taken_out_and_checked() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.0}]
    assert split_weights(messages, "f:1") == (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        (1, 0),
    )
    for weight in (0.5, 2, -1, "0", True, [0], float("nan")):
        with pytest.raises(BadRecordError, match=r"f:1: message 1: weight must be 0 .* or 1, not"):
            split_weights([{"role": "user", "content": "a", "weight": weight}], "f:1")


def test_messages_of_the_caller_are_not_changed() -> None:
    given = [{"role": "assistant", "content": None, "weight": 1, "tool_calls": [CALL], "name": None}]
    before = json.dumps(given)
    split_weights(read_messages(given, "f:1"), "f:1")
    assert json.dumps(given) == before
