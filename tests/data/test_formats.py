"""Which fields of a record are its prompt, response and messages, in every format."""

from __future__ import annotations

from typing import Any

import pytest

from proxlm.config import DataSettings, TextSettings
from proxlm.data.fields import field_at, without_nulls
from proxlm.data.formats import Conversation, prompt_content, training_content
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError

USER, BOT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def learnt(fields: dict[str, Any], **settings: Any) -> Any:
    return training_content(Record(fields, 7, "a.jsonl"), TextSettings(**settings))


def asked(fields: dict[str, Any], **settings: Any) -> Any:
    data = DataSettings(**settings)
    return prompt_content(Record(fields, 7, "a.jsonl"), data, data.prompt_field)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, BOT]},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [USER, BOT]},
        {"messages": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"prompt": "not used alone", "messages": [USER, BOT]},
    ],
)
def test_conversations(fields: dict[str, Any]) -> None:
    made = learnt(fields)
    assert (made.messages, made.weights, made.extras.tools) == ([USER, BOT], (1, 1), None)


def test_prompt_and_response_as_texts_or_messages() -> None:
    for name in ("response", "completion"):
        assert learnt({"prompt": "2 + 2?", name: "4"}) == ("2 + 2?", "4")
        assert learnt({"prompt": "2 + 2?", name: "4"}, chat=True).messages == [USER, BOT]
        made = learnt({"prompt": [USER, BOT, USER], name: [BOT]})
        assert (made.messages, made.weights) == ([USER, BOT, USER, BOT], (0, 0, 0, 1))
    own = {"response_field": "answer"}
    assert learnt({"prompt": "q", "completion": "c", "answer": "a"}, **own) == ("q", "a")


def test_alpaca() -> None:
    fields = {"instruction": "Add {them}.", "input": "2 and 2", "output": "4"}
    prompt, response = learnt(fields)
    assert prompt.endswith("### Instruction:\nAdd {them}.\n\n### Input:\n2 and 2\n\n### Response:\n")
    assert prompt.startswith("Below is an instruction")
    assert response == "4"
    assert "Input" not in learnt({**fields, "input": ""})[0]
    del fields["input"]
    assert "Input" not in learnt(fields)[0]
    made = learnt({**fields, "input": "2 and 2", "history": [["Hi", "Hello"]], "system": "Brief."}, chat=True)
    assert [m["content"] for m in made.messages] == ["Brief.", "Hi", "Hello", "Add {them}.\n\n2 and 2", "4"]
    assert [m["role"] for m in made.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_what_stands_beside_messages() -> None:
    extra = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}, "system": "Be brief."}
    for fields, settings in [
        ({"messages": [USER, BOT], **extra}, {}),
        ({"prompt": "2 + 2?", "response": "4", **extra}, {"chat": True}),
        ({"data": {"chat": [USER, BOT], **extra}}, {"messages_field": "data.chat"}),
        ({"data": {"chat": [USER, BOT]}, **extra}, {"messages_field": "data.chat"}),
    ]:
        made = learnt(fields, **settings)
        assert made.messages == [{"role": "system", "content": "Be brief."}, USER, BOT]
        assert (made.extras.tools, made.extras.variables) == (TOOLS, {"enable_thinking": False})
        assert len(made.weights) == 3
    prompt = asked({"prompt": [USER], **extra})
    assert (prompt.extras.tools, prompt.extras.variables) == (TOOLS, {"enable_thinking": False})
    assert learnt({"messages": [USER, BOT], "tools": '[{"name": "f"}]'}).extras.tools == [{"name": "f"}]
    assert learnt({"messages": [USER, BOT], "tools": []}).extras.tools is None


def test_weight_0_is_left_out() -> None:
    assert learnt({"messages": [USER, BOT], "weight": 0}) is None
    assert learnt({"prompt": "a", "response": "b", "weight": 0}) is None
    assert learnt({"prompt": "a", "response": "b", "weight": 1}) == ("a", "b")
    assert learnt({"messages": [USER, {**BOT, "weight": 0}]}) is None
    assert learnt({"messages": [USER, {**BOT, "weight": 0}, USER, BOT]}).weights == (1, 0, 1, 1)
    assert asked({"prompt": "heavy?", "weight": 70}) == "heavy?"  # a field like any other, for the reward


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "a"}, "a"),
        ({"prompt": "a", "messages": [USER]}, "a"),
        ({"messages": [USER]}, [USER]),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}]}, [USER]),
        ({"prompt": [USER], "completion": [BOT]}, [USER]),
    ],
)
def test_prompts(fields: dict[str, Any], expected: Any) -> None:
    made = asked(fields)
    assert (made.messages if isinstance(made, Conversation) else made) == expected


def test_dotted_names() -> None:
    fields = {"data": {"question": "a", "turns": [{"text": "b"}]}, "x.y": "c", "x": {"y": "d"}}
    for name, value in [
        ("data.question", "a"),
        ("data.turns.0.text", "b"),
        ("x.y", "c"),
        ("data.turns.1.text", None),
        ("data.turns.-1.text", None),
        ("data.question.0", None),
        ("data..question", None),
        ("", None),
        ("data.turns." + "9" * 5000, None),
    ]:
        assert field_at(fields, name) == value
    assert asked(fields, prompt_field="data.question") == "a"
    assert learnt(fields, prompt_field="data.question", response_field="data.turns.0.text") == ("a", "b")
    with pytest.raises(
        BadRecordError, match=r'a\.jsonl:7: no field "data\.answer"; .*fields here: data, x\.y, x'
    ):
        asked(fields, prompt_field="data.answer")


@pytest.mark.parametrize(
    ("fields", "settings", "said"),
    [
        ({}, {}, 'no field "prompt"; fields here: none'),
        ({"question": "a", "answer": "b"}, {}, 'no field "prompt"; '),
        ({"prompt": "a"}, {}, 'no field "response"; '),
        ({"instruction": "a"}, {}, 'no field "output"; '),
        ({"instruction": "a", "output": "b"}, {"prompt_field": "q"}, 'no field "q"; '),
        ({"instruction": 3, "output": "b"}, {}, 'field "instruction" must be a text, not int'),
        ({"instruction": "a", "input": [], "output": "b"}, {}, 'field "input" must be a text, not list'),
        ({"instruction": "a", "output": ""}, {}, 'field "output" is empty'),
        ({"instruction": "a", "output": "b", "history": [["x", "y"]]}, {}, "set text.chat = true"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, {"chat": True}, "a list of pairs of texts"),
        ({"prompt": [USER], "completion": "4"}, {}, "must both be texts or both lists of messages"),
        ({"prompt": [USER], "completion": [USER]}, {}, "has no message of the assistant"),
        ({"messages": [USER, BOT], "tools": "["}, {}, 'field "tools": a text that is not JSON'),
        ({"messages": [USER, BOT], "tools": ["f"]}, {}, 'field "tools" must be a list of objects'),
        ({"messages": [USER, BOT], "tools": [{"function": {}}]}, {}, 'tool 1 needs a "function" with a text'),
        ({"messages": [USER, BOT], "chat_template_kwargs": 3}, {}, "must be an object, not int"),
        ({"messages": [USER, BOT], "weight": 0.5}, {}, "a.jsonl:7: weight must be 0 (not trained on) or 1"),
    ],
)
def test_what_fits_no_format_is_named(fields: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        learnt(fields, **settings)
    assert str(caught.value).startswith("a.jsonl:7: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_nulls_are_no_fields_but_stay_in_lists() -> None:
    given = {"a": None, "b": {"c": None, "d": [None, {"e": None}]}, "f": (1, None)}
    assert without_nulls(given, "f:1") == {"b": {"d": [None, {}]}, "f": [1, None]}
    assert given["a"] is None
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRecordError, match="f:1: the record is nested too deeply"):
        without_nulls({"a": deep}, "f:1")
