"""Quality bounds, contamination and chat formats, with numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxlm.config import ChatSettings, QualitySettings, TextSettings
from proxlm.corpus.chat_formats import NOT_EXPRESSIBLE, ChatConversion
from proxlm.corpus.contamination import EvaluationNgrams
from proxlm.corpus.quality import rejection
from proxlm.data.formats import training_content
from proxlm.data.skipped import Record

OFF = QualitySettings(
    min_units=0, max_units=0, min_word_length=0, max_word_length=0, max_symbols=0, max_bullets=0, max_ellipses=0,
    min_letters=0, max_repeated_lines=0, max_repeated_line_characters=0, max_top_ngram=0, max_repeated_ngrams=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "just_right", "too_much"),
    [
        ({"min_units": 3}, "one two three", "one two"),
        ({"min_units": 3}, "一二三", "一二"),
        ({"max_units": 3}, "one two three", "one two three four"),
        ({"min_word_length": 3}, "one two", "on two"),
        ({"min_word_length": 3}, "一二三", "on two 一"),  # Chinese has no word length
        ({"max_word_length": 4}, "three one", "three four five"),
        ({"max_symbols": 0.5}, "one two #", "one two # #"),
        ({"max_bullets": 0.5}, "- one\ntwo", "- one\n• two\nthree"),
        ({"max_ellipses": 0.5}, "one...\ntwo", "one...\ntwo…"),
        ({"min_letters": 0.5}, "one 2", "one 2 3"),
        ({"min_letters": 0.5}, "一 2", "一 2 3"),
        ({"min_stop_words": 2}, "the cat and dog", "the cat the dog"),
        ({"min_ended_lines": 0.5}, "One.\ntwo", "One.\ntwo\nthree"),
        ({"min_ended_lines": 1.0}, "一。\n二！", "一。\n二"),
        ({"max_repeated_lines": 0.34}, "a\na\nb", "a\na\na\nb"),
        ({"max_repeated_line_characters": 0.25}, "aa\nbb\nbb\ncc", "aa\nbbbb\nbbbb\ncc"),
        # ab twice: 4 of 10 letters; three times: 6 of 10.
        ({"max_top_ngram": 0.4}, "a b c a b d e f g h", "a b c a b d a b g h"),
        # The second of two equal 5-grams is 5 of 10 letters.
        ({"max_repeated_ngrams": 0.5}, "a b c d e a b c d e", "a b c d e a b c d e a"),
    ],
)
def test_each_bound_alone(bound: dict[str, Any], just_right: str, too_much: str) -> None:
    assert rejection(just_right, replace(OFF, **bound)) == ("", "")
    assert rejection(too_much, replace(OFF, **bound))[0] != ""
    assert rejection(too_much, OFF) == ("", "")


def test_gophers_bounds_on_an_ordinary_paragraph() -> None:
    text = (
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of"
        " foolishness, it was the epoch of belief, it was the epoch of incredulity,"
        " it was the season of light and darkness."
    )
    assert rejection(text, QualitySettings())[0] == "units below 50"
    assert rejection(text, QualitySettings(min_units=10))[0].startswith("repeated") or rejection(
        text, QualitySettings(min_units=10)
    )[0].startswith("most frequent")
    assert rejection("", QualitySettings())[0] == "units below 50"


def test_contamination_is_found_whatever_stands_around_it() -> None:
    question = "If a train leaves at noon, when does it arrive in the city that is far away"
    known = EvaluationNgrams([question, "too short", "eight words make one n gram by themselves"], 13, 8)
    assert (known.texts, known.too_short) == (2, 1)
    assert known.size == len(question.split()) - 13 + 1 + 1
    assert known.shared("nothing of it is here " * 10) == (0.0, "")
    share, first = known.shared(f"Some text. {question.upper()}!!! And more.")
    assert first == "if a train leaves at noon when does it arrive in the city"
    words, ngrams = 2 + 17 + 2, 17 - 13 + 1
    assert share == pytest.approx(ngrams / (words - 13 + 1))
    assert known.shared(" ".join(question.split()[:12]))[0] == 0  # twelve words are not thirteen
    assert known.shared("we say: eight WORDS make one n-gram by themselves.")[0] > 0
    chinese = EvaluationNgrams(["小明有三个苹果，给了小红一个，还剩几个？"], 13, 8)
    assert chinese.shared("题目：小明有三个苹果给了小红一个还剩几个。")[0] > 0
    assert chinese.shared("小红有三个苹果，给了小明一个，还剩几个？")[0] == 0


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


def converted(fields: dict[str, Any], to: Any) -> Any:
    outcome = ChatConversion(ChatSettings(to=to))(Record(fields, 1, "f"))
    return outcome.removed or outcome.fields


@pytest.mark.parametrize("to", ["sharegpt", "alpaca", "messages"])
def test_a_conversation_says_the_same_in_every_format(to: str) -> None:
    made = converted({"messages": MESSAGES, "id": 7}, to)
    assert made["id"] == 7
    content = training_content(Record(made, 1, "f"), TextSettings(chat=True))
    assert content.messages == MESSAGES
    assert converted(made, "messages") == {"messages": MESSAGES, "id": 7}


def test_prompt_and_response_and_what_cannot_be_said() -> None:
    single = {"messages": MESSAGES[1:3]}
    assert converted(single, "prompt_response") == {"prompt": "One?", "response": "1"}
    assert converted({"prompt": "One?", "response": "1"}, "messages") == single
    # The first answer would no longer be trained on.
    assert converted({"messages": MESSAGES}, "prompt_response") == NOT_EXPRESSIBLE
    learnt_once = [{**m, "weight": 0} if m["content"] == "1" else m for m in MESSAGES]
    made = converted({"messages": learnt_once}, "prompt_response")
    assert made == {"prompt": MESSAGES[:-1], "response": MESSAGES[-1:]}
    content = training_content(Record(made, 1, "f"), TextSettings(chat=True))
    assert (content.messages, content.weights[-3:]) == (MESSAGES, (0, 0, 1))
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    for to in ("sharegpt", "alpaca", "prompt_response", "text"):
        assert converted({"messages": [*MESSAGES[:2], call]}, to) in (NOT_EXPRESSIBLE, {
            "prompt": MESSAGES[:2], "response": [call],
        })  # fmt: skip
    assert converted({**single, "weight": 0}, "messages") == "weight 0"
    assert converted(single, "text") == {"text": "One?\n\n1"}
