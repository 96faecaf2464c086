"""Each kind of instruction: texts that keep it and texts that do not, and what is no instruction."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from proxlm.errors import RewardError
from proxlm.rewards.instruction_reward import instructions
from proxlm.rewards.instructions import (
    KINDS,
    copies,
    kept,
    sentences,
    share_kept,
    without,
    wording,
    words,
)
from proxlm.types import Completion

# kind → (arguments, texts that keep it, texts that do not)
CASES = {
    "max_words": ({"count": 3}, ["one two three", "One.", " - a - b - c -\n"], ["one two three four"]),
    "min_words": ({"count": 3}, ["one two three", "a b\nc d"], ["one two", "a b - -"]),
    "max_characters": ({"count": 3}, ["猫、狗，鸟", "one two 3!"], ["猫狗鸟鱼", "a b c d"]),
    "min_characters": ({"count": 3}, ["猫狗鸟鱼", "one two 3"], ["猫。狗。", "one, two!"]),
    "sentences": (
        {"count": 2},
        ["Yes. No.", 'He said "Go!" Then he left.', "It costs 3.5 euros. Really?!", "Wait... what", "你好。再见！"],
        ["Yes.", "One. Two. Three.", "no end at all"],
    ),
    "lowercase": ({}, ["all small, 1 2 3!", "été"], ["One capital", "123", "日本"]),
    "uppercase": ({}, ["ALL BIG, 1 2 3!", "ÉTÉ"], ["ONE SMALl", "123"]),
    "include": ({"word": "Warm"}, ["so warm.", "WARM", "'warm'"], ["warmth", "lukewarm", "cold"]),
    "exclude": ({"word": "warm"}, ["warmth", "cold"], ["so warm.", "Warm"]),
    "starts_with": ({"word": "yes"}, ["Yes, it is", '"Yes!"', "**yes** no"], ["Yesterday", "Oh yes"]),
    "ends_with": ({"word": "home"}, ["going home.", "HOME", 'at "home"!'], ["homes", "home again"]),
    "no_commas": ({}, ["a b; c"], ["a, b", "a，b", "1,000"]),
    "no_digits": ({}, ["one two"], ["1 two"]),
    "has_number": ({}, ["in 1969"], ["in the sixties"]),
    "question": ({}, ["Is it?", 'He asked: "Why?"', "**Really?** ", "是吗？"], ["Is it? Yes.", "Is it"]),
    "exclamation": ({}, ["Go!", '"Go!"', "走！"], ["Go! Now."]),
    "one_line": ({}, ["a b c\n"], ["a\nb"]),
    "bullets": (
        {"count": 2},
        ["- one\n- two", "* one\n\n* two\n", "  - one\n  • two"],
        ["- one", "- one\n- two\n- three", "Here:\n- one\n- two", "-one\n-two", "1. one\n2. two", "- \n- b"],
    ),
    "numbered": (
        {"count": 2},
        ["1. one\n2. two", "1) one\n\n2) two"],
        ["1. one", "1. one\n3. two", "2. one\n1. two", "A:\n1. one\n2. two", "1.one\n2.two", "01. a\n2. b"],
    ),
    "json": (
        {"key": "answer"},
        ['{"answer": "tea"}', ' {"a": 1,\n "answer": ["b"]} '],
        ['{"answer": ""}', '{"text": "tea"}', '["answer"]', '```{"answer": 1}```', "{'answer': 'tea'}", "answer",
         '{"answer": NaN}', "[" * 100_000 + "1"],
    ),
    "quoted": ({}, ['"All of it."', "“All of it.”"], ['"Some" of it', 'no', '"one" and "two"', '"', '""', '" - "']),
    "tagged": (
        {"tag": "note"}, ["<note>Hi</note>", "<note>\nHi\n</note>\n"],
        ["<note>Hi", "Hi</note>", "a <note>Hi</note>", "<note></note>", "<Note>Hi</Note>", "<note> - </note>"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind):
    arguments, right, wrong = CASES[kind]
    instruction = {"kind": kind, **arguments}
    assert [text for text in right if not kept(text, instruction)] == []
    assert [text for text in wrong if kept(text, instruction)] == []
    for text in ("", "  \n", "- ,. !?", '"…"'):
        assert not kept(text, instruction), "an answer without a word is none"
    assert all(str(value) in wording(instruction) for value in arguments.values())


def test_wording_is_english():
    assert wording({"kind": "sentences", "count": 1}) == "Answer in exactly 1 sentence."
    assert wording({"kind": "max_words", "count": 11}) == "Answer in 11 words or less."
    assert wording({"kind": "include", "word": "warm"}) == 'Use the word "warm".'


def test_phrases_are_several_words():
    assert kept("In short, yes", {"kind": "starts_with", "word": "in short"})
    assert not kept("In brief", {"kind": "starts_with", "word": "in short"})
    assert kept("I am at\nhome", {"kind": "include", "word": "at home"})
    assert not kept("yes", {"kind": "ends_with", "word": "oh yes"})


def test_words_and_sentences():
    assert words(" - one, two… 3 !") == ["one,", "two…", "3"]
    assert [part.strip() for part in sentences("A b. C d!? e")] == ["A b", "C d", "e"]


def test_share():
    asked = [{"kind": "lowercase"}, {"kind": "max_words", "count": 2}, {"kind": "question"}]
    assert share_kept("why?", asked) == 1
    assert share_kept("Why?", asked) == pytest.approx(2 / 3)
    assert share_kept("", asked) == 0


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("lowercase", "not an instruction"),
        ({}, "not an instruction"),
        ({"kind": 3}, "3: no kind of instruction"),
        ({"kind": "lower"}, "did you mean lowercase"),
        ({"kind": "max_words"}, '"max_words" takes count, and got none'),
        ({"kind": "lowercase", "count": 3}, '"lowercase" takes no arguments, and got count'),
        ({"kind": "max_words", "count": "3"}, "count = '3': must be a whole number"),
        ({"kind": "max_words", "count": 0}, "count = 0: must be a whole number from 1"),
        ({"kind": "max_words", "count": True}, "count = True"),
        ({"kind": "max_words", "count": 10**9}, "must be a whole number"),
        ({"kind": "include", "word": " "}, "word = ' ': must be a text"),
        ({"kind": "include", "word": 3}, "word = 3: must be a text"),
    ],
)
def test_what_is_no_instruction_is_named(instruction, reason):
    for call in (lambda: kept("text", instruction), lambda: wording(instruction)):
        with pytest.raises(ValueError, match=reason):
            call()


def test_long_texts():
    """Each finishes; with a pattern that tries every place of a run again, it would take minutes."""
    for text in ("." * 100_000 + "a", "a" + "?" * 100_000, "1. " * 30_000, '"' * 100_000, "{" * 100_000):
        for kind, (arguments, _, _) in CASES.items():
            kept(text, {"kind": kind, **arguments})


# --- the reward

ASKED = [{"kind": "lowercase"}, {"kind": "max_words", "count": 3}]


def completion(text, asked=ASKED, prompt="p"):
    return Completion(prompt, text, fields={"instructions": asked})


def test_reward_is_the_share_or_all():
    texts = [completion("a b c"), completion("A b c"), completion("A b c d"), completion("")]
    assert instructions()(texts) == [1.0, 0.5, 0.0, 0.0]
    assert instructions(all=True)(texts) == [1.0, 0.0, 0.0, 0.0]


def test_guards_against_short_answers_and_one_answer_to_every_prompt():
    short, long = completion("yes yes yes"), completion("yes no maybe")
    assert instructions(min_words=2)([short, long]) == [0.0, 1.0]
    same = [completion("it is so", prompt=p) for p in ("p", "q", "q")]
    assert instructions()(same) == [1.0, 1.0, 1.0]
    assert instructions(repeats=False)(same) == [0.0, 0.0, 0.0]
    assert instructions(repeats=False)(same[1:]) == [1.0, 1.0], "the same prompt may get the same answer"
    assert instructions(repeats=False)([completion("It is  so", prompt="p"), same[1]]) == [0.0, 0.0]


def test_guard_against_copies_of_the_prompt():
    prompt = "<user>Describe tea. Do not use commas. Answer in 9 words or less.<end>"
    copied = [
        "Do not use commas.",
        "do NOT use, commas",
        "Tea: answer in 9 words or less!",
        "tea. Do not use commas",
    ]
    own = [
        "Tea is warm.",
        "Do not use tea.",
        "Do not use tea. Use commas in 9 words.",
        "commas use not do",
        "",
        "...",
    ]
    assert [copies(text, prompt, 3) for text in (*copied, *own)] == [True] * 4 + [False] * 6
    assert [copies(copied[0], prompt, most) for most in (1, 2, 3, 4)] == [True, True, True, False]
    asked = [{"kind": "no_commas"}]
    texts = [completion(text, asked, prompt) for text in (copied[0], own[0])]
    assert instructions()(texts) == [1.0, 1.0]
    assert instructions(copied_words=3)(texts) == [0.0, 1.0]
    assert instructions(copied_words=4)(texts) == [1.0, 1.0]


def test_guard_against_answers_about_something_else():
    asked = [{"kind": "no_commas"}]

    def of(text, about):
        return Completion("p", text, fields={"instructions": asked, "about": about})

    reward = instructions(about="about")
    answers = ["Bees buzz.", "A BEE!", "the bee's knees", "It has been", "Honey is sweet", "bees, too"]
    assert reward([of(text, ["bees", "bee"]) for text in answers]) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    counted = instructions(about="about", about_as="instruction")
    assert counted([of(text, "bees") for text in ("Bees buzz.", "Honey, bees", "Honey, now", "Honey")]) == [
        1,
        0.5,
        0,
        0.5,
    ]
    assert reward([of("by the sea", "the sea"), of("by the seaside", "the sea")]) == [1.0, 0.0]
    wrong = reward([of("tea", value) for value in ([], "", " - ", 3, ["tea", 3], ["tea", "."])])
    assert all(isinstance(value, RewardError) and 'field "about"' in str(value) for value in wrong)
    missing = reward([completion("tea")])[0]
    assert isinstance(missing, RewardError)
    assert 'no field "about"' in str(missing)


def test_one_sentence_about_everything_is_one_answer():
    asked = [{"kind": "no_commas"}]

    def of(text, about):
        return Completion(about, text, fields={"instructions": asked, "about": [about, about.rstrip("s")]})

    template = [of("What are cats?", "cats"), of("what are  dogs", "dogs"), of("What is a bee?", "bees")]
    assert instructions(repeats=False, about="about")(template) == [0.0, 0.0, 1.0]
    assert instructions(repeats=False)([of("What is a bee?", "bees"), *template[:1]]) == [1.0, 1.0]
    assert without("The bee's knees, the Bees!", ["bee", "bees"]) == "the … s knees the …"
    assert without("sea bees", ["sea bees", "sea"]) == without("sea", ["sea", "sea bees"]) == "…"
    assert without("A (b)", []) == "a b"


def test_records_that_cannot_be_scored():
    missing, empty, wrong = Completion("p", "t"), completion("t", []), completion("t", [{"kind": "lower"}])
    found = instructions()([missing, empty, wrong, completion("t", "lowercase")])
    assert all(isinstance(value, RewardError) for value in found)
    assert 'no field "instructions"' in str(found[0])
    assert "did you mean lowercase" in str(found[2])
    assert instructions(field="asked")([Completion("p", "t", fields={"asked": [{"kind": "lowercase"}]})]) == [
        1.0
    ]


def test_wrong_arguments():
    for name in ("min_words", "copied_words"):
        with pytest.raises(ValueError, match=f"{name} = -1"):
            instructions(**{name: -1})


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("我喜欢猫。", {"kind": "include", "word": "猫"}, {"kind": "exclude", "word": "喜欢"}),
        ("我用Python写。", {"kind": "include", "word": "python"}, {"kind": "include", "word": "pyth"}),
        ("“今天很好！”", {"kind": "starts_with", "word": "今天"}, {"kind": "starts_with", "word": "很好"}),
        ("今天很好！", {"kind": "ends_with", "word": "很好"}, {"kind": "ends_with", "word": "今天"}),
        ("我有3只猫，OK。", {"kind": "max_characters", "count": 6}, {"kind": "max_characters", "count": 5}),
        ("我有3只猫，OK。", {"kind": "min_characters", "count": 6}, {"kind": "min_characters", "count": 7}),
        ("你好。真的吗？！好", {"kind": "sentences", "count": 3}, {"kind": "sentences", "count": 2}),
        ("1、茶\n2、水", {"kind": "numbered", "count": 2}, {"kind": "numbered", "count": 3}),
        ("1.茶\n2. 水", {"kind": "numbered", "count": 2}, {"kind": "bullets", "count": 2}),
        ("「很好」", {"kind": "quoted"}, {"kind": "question"}),
        ("It's 3.5 km", {"kind": "max_characters", "count": 3}, {"kind": "min_characters", "count": 4}),
    ],
)
def test_chinese(text: str, yes: dict[str, Any], no: dict[str, Any]) -> None:
    assert kept(text, yes)
    assert not kept(text, no)


def test_every_kind_is_worded_in_chinese_with_its_arguments() -> None:
    said = set()
    for name, kind in KINDS.items():
        arguments = {"count": 7, "word": "茶", "key": "k", "tag": "t"}
        wanted = {key: arguments[key] for key in list(inspect.signature(kind.check).parameters)[1:]}
        text = wording({"kind": name, **wanted}, "zh")
        assert text.endswith("。")
        assert all(str(value) in text for value in wanted.values())
        said.add(text)
    assert len(said) == len(KINDS)
    with pytest.raises(ValueError, match=r"^language = 'fr': must be en or zh"):
        wording({"kind": "question"}, "fr")  # type: ignore[arg-type]
