"""The choices of a record, which one is right, and the tokens of prompt and choices."""

from __future__ import annotations

from typing import Any

import pytest

from proxlm.config import ChoiceSettings
from proxlm.data.choices import Choices, question_of, read_choices
from proxlm.data.skipped import Record
from proxlm.data.tokenizer import encode_prompt, train_tokenizer
from proxlm.errors import BadRecordError
from proxlm.types import Prompt
from small_models import TEXTS
from story_model import sentencepiece_tokenizer


def read(choices: Any, answer: Any, how: Any = "auto") -> int:
    settings = ChoiceSettings(field="choices", answer=how)
    return read_choices(Record({"choices": choices, "answer": answer}, 1, "f"), settings).right


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["red", "green", "blue"], 2, 2),
        (["red", "green", "blue"], "2", 2),
        (["red", "green", "blue"], "B", 1),
        (["red", "green", "blue"], "green", 1),
        ([" red", " green"], "green", 1),
        (["B", "A"], "0", 0),
        ({"text": ["red", "green"], "label": ["1", "2"]}, "1", 0),
        ({"text": ["red", "green"], "label": ["1", "2"]}, 2, 1),
        ({"text": ["red", "green"], "label": ["x", "y"]}, "green", 1),
        ({"text": ["red", "green"], "label": ["x", "y"]}, 0, 0),
    ],
)
def test_the_right_choice_by_index_letter_label_or_text(choices: Any, answer: Any, right: int) -> None:
    assert read(choices, answer) == right


@pytest.mark.parametrize(
    ("choices", "answer", "how", "wanted"),
    [
        (["B", "A"], "A", "auto", "reads as different choices"),
        (["2", "1", "0"], "2", "auto", "reads as different choices"),
        (["red", "green"], 2, "auto", "no index, letter or text"),
        (["red", "green"], -1, "auto", "no index"),
        (["red", "green"], True, "auto", "no index"),
        (["red", "green"], "C", "letter", "no letter of the 2"),
        (["red", "green"], "A", "text", "no text"),
        (["red", "red "], 0, "auto", "two choices are the same"),
        (["red"], 0, "auto", "at least two"),
        (["red", 2], 0, "auto", "list of at least two texts"),
        ("red or green", 0, "auto", "list of at least two texts"),
        (["red", " "], 0, "auto", "a choice is empty"),
        ({"text": ["a", "b"], "label": ["x", "x"]}, "x", "auto", "label must be"),
        (["red", "green"], None, "auto", 'no field "answer"'),
        (None, 1, "auto", 'no field "choices"'),
    ],
)
def test_what_cannot_be_read_is_an_error(choices: Any, answer: Any, how: Any, wanted: str) -> None:
    fields = {"choices": choices, "answer": answer}
    record = Record({key: value for key, value in fields.items() if value is not None}, 7, "f.jsonl")
    with pytest.raises(BadRecordError, match=wanted) as caught:
        read_choices(record, ChoiceSettings(field="choices", answer=how))
    assert str(caught.value).startswith("f.jsonl:7: ")


def test_what_reads_in_two_ways_can_be_said() -> None:
    assert read(["B", "A"], "A", "letter") == 0
    assert read(["B", "A"], "A", "text") == 1
    assert read(["2", "1", "0"], "2", "index") == 2
    assert read(["2", "1", "0"], "2", "text") == 0


def question(tokenizer: Any, text: str, *texts: str, separator: str = " ") -> Any:
    prompt = Prompt(0, tuple(encode_prompt(tokenizer, text)), text)
    return question_of(tokenizer, prompt, Choices(texts, 0), separator, encoder_decoder=False)


def byte_level() -> Any:
    return train_tokenizer([*TEXTS, "The answer: the cat, a dog, the moon."] * 20, 400, 128)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_tokenizer])
@pytest.mark.parametrize("text", ["The answer:", "The answer: ", "The cat", "so\n", "处处"])
def test_prompt_and_choice_have_the_tokens_of_the_whole_text(make: Any, text: str) -> None:
    tokenizer = make()
    found = question(tokenizer, text, "the cat", "a dog", "moon")
    for answer, choice in zip(found.answers, found.choices.texts, strict=True):
        whole = text + ("" if text[-1].isspace() else " ") + choice
        assert list(found.given + answer) == encode_prompt(tokenizer, whole)
    # All that the texts have in common but what is not the prompt's.
    assert found.given == tuple(encode_prompt(tokenizer, text))[: len(found.given)]


def test_a_token_across_the_seam_belongs_to_every_choice() -> None:
    tokenizer = byte_level()
    apart, at_space = (question(tokenizer, text, "the cat", "?!") for text in ("The answer:", "The answer: "))
    # " the" is one token, " ?" is two: the space that the prompt ends in is predicted for both.
    assert at_space.given == apart.given == tuple(encode_prompt(tokenizer, "The answer:"))
    assert at_space.answers == apart.answers
    assert tokenizer.decode(at_space.answers[0]) == " the cat"
    assert tokenizer.decode(at_space.answers[1]) == " ?!"


def test_a_separator_is_used_where_there_is_no_white_space() -> None:
    tokenizer = byte_level()
    ids = {
        separator: question(tokenizer, "cat", " a", "dog", separator=separator).answers
        for separator in ("", " ", ": ")
    }
    assert [tokenizer.decode(answers[0]) for answers in ids.values()] == [" a", " a", " a"]
    assert [tokenizer.decode(answers[1]) for answers in ids.values()] == ["dog", " dog", ": dog"]
