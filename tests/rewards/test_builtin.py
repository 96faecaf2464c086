import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import (
    answer_rewards,
    builtin,
    gym_reward,
    instruction_reward,
    reference_rewards,
    schema_reward,
    text_rewards,
)
from proxlm.rewards.builtin import BUILTINS
from proxlm.types import Completion
from story_model import ARITHMETIC, SHARED_DATA, beside_the_checkout

WORD_PROBLEMS = [ARITHMETIC, *beside_the_checkout(SHARED_DATA / "gsm8k" / "test.jsonl")]


def texts(*responses: str, prompt: str = "", **fields: Any) -> list[Completion]:
    return [Completion(prompt, text, fields=fields) for text in responses]


def test_chrf_is_sacrebleus_and_the_best_reference_counts() -> None:
    pytest.importorskip("sacrebleu")
    completions = texts("the cat sat", " The cat sat.\n", "", response="The cat sat.")
    some, same, none = builtin.chrf()(completions)
    assert 0.3 < some < 1
    assert same == 1
    assert none == 0
    several = texts("the cat sat", answer=["a dog", "the cat sat"])
    assert builtin.chrf(field="answer")(several) == [1]
    assert builtin.chrf(word_order=2)(completions)[0] < some
    for wrong in (7, [], [""], ["a", 1], ""):
        (error,) = builtin.chrf()(texts("a", response=wrong))
        assert isinstance(error, RewardError)
    assert "no field" in str(builtin.chrf()(texts("a"))[0])
    with pytest.raises(ValueError, match=r"^word_order = 3"):
        builtin.chrf(word_order=3)


def test_chrf_by_hand() -> None:
    """chrF of order 6 with β = 2: the mean over the orders that both texts have of F_β of character n-grams."""
    pytest.importorskip("sacrebleu")

    def f_score(order: int) -> float:
        a, b = ([text[i : i + order] for i in range(len(text) - order + 1)] for text in ("abcd", "abce"))
        both = sum(gram in b for gram in a)
        precision, recall = both / len(a), both / len(b)
        return 5 * precision * recall / (4 * precision + recall) if both else 0.0

    wanted = sum(f_score(order) for order in range(1, 5)) / 4
    assert builtin.chrf()(texts("abcd", response="abce")) == [pytest.approx(wanted, abs=1e-6)]


def test_chrf_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(ConfigError, match=r"needs sacrebleu: pip install \"proxlm\[metrics\]\""):
        builtin.chrf()


def test_the_list_of_built_in_rewards_is_complete_and_typed() -> None:
    modules = [
        builtin,
        answer_rewards,
        gym_reward,
        instruction_reward,
        reference_rewards,
        schema_reward,
        text_rewards,
    ]
    defined = [
        name
        for module in modules
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert set(BUILTINS) == {
        *defined,
        "reward_model",
        "reward_ensemble",
        "process_reward_model",
        "similarity",
        "chinese_poem",
        "judge",
    }
    for factory in BUILTINS.values():
        for parameter in inspect.signature(factory, eval_str=True).parameters.values():
            assert isinstance(parameter.annotation, type) or typing.get_args(parameter.annotation)


def test_sentiment_is_vaders_compound() -> None:
    great, awful, none = builtin.sentiment()(texts("a great day", "an awful day", "a day"))
    # The lexicon gives great 3.1 and awful -2.0; compound is s / sqrt(s² + 15), to four decimals.
    assert great == round(3.1 / (3.1**2 + 15) ** 0.5, 4)
    assert awful == round(-2.0 / (2.0**2 + 15) ** 0.5, 4)
    assert none == 0


def test_sentiment_of_text_reads_the_prompt_too() -> None:
    completion = texts("a day.", prompt="I love ")
    assert builtin.sentiment()(completion) == [0]
    assert builtin.sentiment(of="text")(completion) == [pytest.approx(0.6369, abs=1e-4)]


def test_regex() -> None:
    completions = texts("<a>1</a>", "say <a>1</a>", "<a>1\n</a>", "")
    assert builtin.regex(r"<a>.*</a>")(completions) == [1, 1, 0, 0]
    assert builtin.regex(r"<a>.*</a>", full=True)(completions) == [1, 0, 0, 0]
    assert builtin.regex(r"(?s)<a>.*</a>")(completions) == [1, 1, 1, 0]


def test_exact_match() -> None:
    completions = texts("Paris", " Paris\n", "paris", "Paris is it", answer="Paris")
    assert builtin.exact_match()(completions) == [1, 1, 0, 0]
    assert builtin.exact_match(ignore_case=True)(completions) == [1, 1, 1, 0]
    assert builtin.exact_match(strip=False)(completions) == [1, 0, 0, 0]
    assert builtin.exact_match(field="n")(texts("42", "43", n=42)) == [1, 0]


@pytest.mark.parametrize("factory", [builtin.exact_match, builtin.numeric_answer])
def test_a_missing_field_is_named_with_the_ones_there_are(factory: Any) -> None:
    (error,) = factory(field="anwser")(texts("1", answer="1", source="x"))
    assert isinstance(error, RewardError)
    assert str(error) == 'the record has no field "anwser"; it has answer, source'
    (error,) = factory()(texts("1"))
    assert str(error) == 'the record has no field "answer"; it has no other fields than the prompt'


def test_a_field_that_cannot_be_compared_is_an_error() -> None:
    (error,) = builtin.exact_match()(texts("1", answer=["1"]))
    assert str(error) == 'field "answer" holds a list, not a text or a number'
    (error,) = builtin.numeric_answer()(texts("1", answer="a dozen"))
    assert str(error) == "field \"answer\" holds no number: 'a dozen'"


def test_numeric_answer() -> None:
    answer = "He has 1,000 + 234.5 = <<1000+234.5=1234.5>>1234.5\n#### 1,234.50"
    completions = texts(
        "#### 1234.5",
        "#### $1,234.50.",
        "so\n####   1234.500 dollars",
        "#### 1234.6",
        "1234.5",
        "",
        answer=answer,
    )
    assert builtin.numeric_answer()(completions) == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("72%", ["#### 72%", "#### 72", "#### **72 %**"], ["#### 0.72", "#### 7"]),
        ("1/2", ["#### 1/2", "#### 0.5", "#### 2/4", "#### \\boxed{\\frac{1}{2}}"], ["#### 1", "#### 2"]),
        (0.1, ["#### 1/10", "#### 0.10"], ["#### 0.1000001"]),
        ("#### 1/3", ["#### 2/6"], ["#### 0.3333333333333333"]),
        (72, ["#### **72**", "#### \\boxed{72}", "#### 72 ####", "#### $72", "#### ７２"], ["#### 72^2"]),
    ],
)
def test_numeric_answer_compares_exact_values(reference: Any, right: list[str], wrong: list[str]) -> None:
    score = builtin.numeric_answer()
    assert score(texts(*right, answer=reference)) == [1.0] * len(right)
    assert score(texts(*wrong, answer=reference)) == [0.0] * len(wrong)


def test_numeric_answers_fallback_is_only_for_responses_without_a_mark() -> None:
    completions = texts("so it is 8.", "7 or 8", "8 or 7", "#### x\n8", "#### 7, not 8", answer=8)
    assert builtin.numeric_answer(fallback=True)(completions) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("path", WORD_PROBLEMS, ids=str)
def test_numeric_answer_takes_every_solution_as_its_own_answer(path: Path) -> None:
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    score = builtin.numeric_answer()
    right = [Completion("", a, fields={"answer": a}) for a in answers]
    assert score(right) == [1.0] * len(answers)
    wrong = [Completion("", f"{a}1", fields={"answer": a}) for a in answers]
    assert score(wrong) == [0.0] * len(answers)


def test_python_parses_needs_the_parse_and_the_guards() -> None:
    completions = [
        Completion("x = foo(", text) for text in ("a, b)", "a, b", "", ")", "a, b)  # c", "a)\ny = 2")
    ]
    assert builtin.python_parses()(completions) == [1, 0, 0, 0, 0, 0]
    assert builtin.python_parses(min_tokens=1, min_names=0)(completions) == [1, 0, 0, 1, 0, 0]
    assert builtin.python_parses(single_line=False)(completions) == [1, 0, 0, 0, 0, 1]


def test_length() -> None:
    completions = [Completion("", "ab cd ef", tokens=tuple(range(n))) for n in (0, 5, 10, 12, 15, 20, 25)]
    assert builtin.length(10)(completions) == pytest.approx([0, 0.5, 1, 0.8, 0.5, 0, 0])
    assert builtin.length(10, tolerance=4)(completions) == pytest.approx([0, 0, 1, 0.5, 0, 0, 0])
    assert builtin.length(3, unit="words")(completions[:1]) == [1]
    assert builtin.length(16, unit="characters")(completions[:1]) == [0.5]
    assert builtin.length(2, unit="characters")(texts("你好")) == [1]


def test_repetition() -> None:
    def of(*tokens: int, n: int = 3) -> float:
        return builtin.repetition(n)([Completion("", "", tokens)])[0]

    assert of(1, 2, 3, 4, 5) == 0
    assert of(1, 2) == 0
    assert of(1, 1, 1, 1, 1, 1) == -3 / 4  # four 3-grams, three of them repeats
    assert of(1, 2, 3, 1, 2, 3) == -1 / 4
    assert of(1, 2, 1, 3, n=1) == -1 / 4
    assert builtin.repetition(2, unit="words")(texts("a b a b")) == [pytest.approx(-1 / 3)]
    assert builtin.repetition(1, unit="characters")(texts("哈哈哈哈")) == [-3 / 4]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_stays_between_minus_1_and_0_and_is_0_without_repeats(tokens: list[int], n: int) -> None:
    (score,) = builtin.repetition(n)([Completion("", "", tuple(tokens))])
    assert -1 < score <= 0
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    assert (score == 0) == (len(set(grams)) == len(grams))


@given(st.text(), st.integers(1, 50))
def test_length_stays_between_0_and_1_and_is_1_at_the_target_alone(text: str, target: int) -> None:
    (score,) = builtin.length(target, unit="characters")(texts(text))
    assert 0 <= score <= 1
    assert (score == 1) == (len(text) == target)


def test_forbidden_words_are_whole_ones_but_in_chinese(tmp_path: Path) -> None:
    completions = texts(
        "a damn shame, damn it",
        "the DAMN’s",
        "damned",
        "你damn好",
        "ｄａｍｎ",
        "真笨蛋！",
        "笨的蛋",
        "",
        "so  so bad",
    )
    words = ["damn", "笨蛋", "so so bad"]
    assert builtin.forbidden_words(words)(completions) == [-1, -1, 0, -1, -1, -1, 0, 0, -1]
    assert builtin.forbidden_words(words, count=True)(completions) == [-2, -1, 0, -1, -1, -1, 0, 0, -1]
    file = tmp_path / "words.txt"
    file.write_text("# not these\n\n damn \n笨蛋\n", encoding="utf-8")
    assert builtin.forbidden_words(["so so bad"], file=str(file))(completions) == [
        -1,
        -1,
        0,
        -1,
        -1,
        -1,
        0,
        0,
        -1,
    ]
    # One inside another is one hit, and marks are no patterns.
    assert builtin.forbidden_words(["bad", "bad dog", "c++"], count=True)(texts("bad dog c++ c")) == [-2]
    for arguments, message in [
        ({}, "words = "),
        ({"words": [" "]}, "words = "),
        ({"file": "no.txt"}, "file = "),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            builtin.forbidden_words(**arguments)


def test_keyword() -> None:
    completions = texts("The Cat sat", "a dog", "cat and dog", "bird")
    assert builtin.keyword(["cat", "dog"])(completions) == [1, 1, 1, 0]
    assert builtin.keyword(["cat", "dog"], all=True)(completions) == [0, 0, 1, 0]
    assert builtin.keyword(["cat"], ignore_case=False)(completions) == [0, 0, 1, 0]
    assert builtin.keyword(["红色", "蓝"])(texts("一只红色的鸟", "红的鸟")) == [1, 0]
    assert builtin.keyword(["STRASSE"])(texts("eine Straße")) == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: builtin.regex("("), "pattern = "),
        (lambda: builtin.length(0), "target = 0: must be at least 1"),
        (lambda: builtin.length(5, tolerance=0), "tolerance = 0: must be"),
        (lambda: builtin.length(5, tolerance=float("nan")), "tolerance = nan: must be"),
        (lambda: builtin.repetition(0), "n = 0: must be at least 1"),
        (lambda: builtin.keyword([]), r"words = \[\]: needs at least one"),
        (lambda: builtin.keyword(["a", ""]), "none may be empty"),
        (lambda: builtin.python_parses(min_tokens=-1), "min_tokens = -1: must be"),
        (lambda: builtin.RewardModel("a", batch_size=0), "batch_size = 0: must be"),
        (lambda: builtin.RewardModel("a", max_length=-1), "max_length = -1: must be"),
        (lambda: builtin.RewardModel("a", device="abacus"), 'device = "abacus": '),
        (lambda: builtin.RewardModel("./no/such/folder"), 'path = "./no/such/folder": no such folder'),
    ],
)
def test_impossible_arguments_fail_when_the_reward_is_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
