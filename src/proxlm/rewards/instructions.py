r"""Instructions whose keeping a rule can check, and the checks: plain functions of a response's text.

An instruction is a mapping: its kind, and the arguments of the kind: {"kind": "max_words", "count": 8}. `wording`
says it in English or Chinese, `kept` checks it. As in IFEval (Zhou et al. 2023) a check reads the text alone, and
decides the form, not whether the answer is true.

A word is what stands between white space and holds a letter or a digit. White space around the text counts for
nothing, and a text without a word keeps no instruction.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from proxlm.rewards.phrases import UNSPACED, characters, is_unspaced, phrase_pattern
from proxlm.text import listed, shown, suggestion

Instruction = Mapping[str, Any]

# A run of marks is tried at its beginning alone, so that the time stays linear.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$)|(?<![。！？])[。！？]++[”’」）]*+")
_WORD = re.compile(r"\w+")
_BULLET = re.compile(r"[-*•]\s+\S")
# In Chinese and Japanese without white space, too: 1、茶
_NUMBERED = re.compile(rf"(\d+)(?:[.)．）]\s+\S|[.)．）、]\s*[{UNSPACED}])")
# What may stand after a sentence's last mark, or around a word.
_CLOSING = "\"'”’)]}*_`» \t\n"
_AROUND = "\"'“”‘’()[]{}<>*_`«».,;:!?…-–—"
_AROUND_TEXT = _AROUND + "。，、！？；：「」『』（）《》〈〉【】 \t\n"
_QUOTES = {'"': '"', "“": "”", "«": "»", "「": "」"}
_LARGEST_COUNT = 10_000
_ONE = re.compile(r"\b1 (word|character|sentence|line)s\b")


@dataclass(frozen=True)
class Kind:
    """A kind of instruction.

    Attributes:
        check: (text, **arguments) → whether the text keeps it; the text holds a word and no white space around it.
        wording: How it is asked for, with the arguments in braces.
        chinese: The same in Chinese.
    """

    check: Callable[..., bool]
    wording: str
    chinese: str


def kept(text: str, instruction: Instruction) -> bool:
    """Whether the text keeps the instruction. Raises ValueError for what is none."""
    kind, arguments = _parts(instruction)
    text = text.strip()
    return bool(words(text)) and kind.check(text, **arguments)


def share_kept(text: str, instructions: Sequence[Instruction]) -> float:
    """The share of the instructions, of which there is one at least, that the text keeps. Raises ValueError."""
    if not instructions:
        raise ValueError("no instructions")
    return sum(kept(text, instruction) for instruction in instructions) / len(instructions)


def wording(instruction: Instruction, language: Literal["en", "zh"] = "en") -> str:
    """The instruction as a sentence in English or Chinese. Raises ValueError for what is none."""
    kind, arguments = _parts(instruction)
    if language not in ("en", "zh"):
        raise ValueError(f"language = {shown(repr(language), 40)}: must be en or zh")
    if language == "zh":
        return kind.chinese.format(**arguments)
    return _ONE.sub(r"1 \1", kind.wording.format(**arguments))


def words(text: str) -> list[str]:
    """The words of a text, with the marks that stand at them."""
    return [word for word in text.split() if any(c.isalnum() for c in word)]


def sentences(text: str) -> list[str]:
    """The sentences of a text: what ends in . ! ? or … before white space, or in 。！？, and what is left at the end.

    Abbreviations are not known: "Mr. Fox" is two.
    """
    return [part for part in _SENTENCE_END.split(text) if words(part)]


def copies(text: str, prompt: str, most: int) -> bool:
    """Whether more than `most` words in a row of the text stand in the prompt; case and marks do not count."""

    def runs(of: str) -> set[tuple[str, ...]]:
        found = _WORD.findall(of.casefold())
        return {tuple(found[i : i + most + 1]) for i in range(len(found) - most)}

    return not runs(text).isdisjoint(runs(prompt))


def mentions(text: str, phrases: Sequence[str]) -> bool:
    """Whether one of the words or phrases is in the text, not as a part of another word; case does not matter."""
    return any(_holds(text, phrase) for phrase in phrases)


def without(text: str, phrases: Sequence[str]) -> str:
    """The words of the text, case and marks apart, with "…" for each of the phrases: what it says of whatever."""
    plain = " ".join(_WORD.findall(text.casefold()))
    wanted = sorted((" ".join(_WORD.findall(p.casefold())) for p in phrases), key=len, reverse=True)
    pattern = "|".join(re.escape(phrase) for phrase in wanted if phrase)
    return re.sub(rf"\b(?:{pattern})\b", "…", plain) if pattern else plain


def max_words(text: str, count: int) -> bool:
    return len(words(text)) <= count


def min_words(text: str, count: int) -> bool:
    return len(words(text)) >= count


def max_characters(text: str, count: int) -> bool:
    return characters(text) <= count


def min_characters(text: str, count: int) -> bool:
    return characters(text) >= count


def exact_sentences(text: str, count: int) -> bool:
    return len(sentences(text)) == count


def lowercase(text: str) -> bool:
    return text == text.lower() and any(c.islower() for c in text)


def uppercase(text: str) -> bool:
    return text == text.upper() and any(c.isupper() for c in text)


def include(text: str, word: str) -> bool:
    return _holds(text, word)


def exclude(text: str, word: str) -> bool:
    return not _holds(text, word)


def starts_with(text: str, word: str) -> bool:
    if is_unspaced(word):
        return text.strip(_AROUND_TEXT).casefold().startswith(word.strip(_AROUND_TEXT).casefold())
    wanted = _bare_words(word)
    return _bare_words(text)[: len(wanted)] == wanted


def ends_with(text: str, word: str) -> bool:
    if is_unspaced(word):
        return text.strip(_AROUND_TEXT).casefold().endswith(word.strip(_AROUND_TEXT).casefold())
    wanted = _bare_words(word)
    return _bare_words(text)[-len(wanted) :] == wanted


def no_commas(text: str) -> bool:
    return not any(comma in text for comma in ",，、")


def no_digits(text: str) -> bool:
    return not any(c.isdigit() for c in text)


def has_number(text: str) -> bool:
    return any(c.isdigit() for c in text)


def question(text: str) -> bool:
    return text.rstrip(_CLOSING).endswith(("?", "？"))


def exclamation(text: str) -> bool:
    return text.rstrip(_CLOSING).endswith(("!", "！"))


def one_line(text: str) -> bool:
    return "\n" not in text


def bullets(text: str, count: int) -> bool:
    lines = _lines(text)
    return len(lines) == count and all(_BULLET.match(line) for line in lines)


def numbered(text: str, count: int) -> bool:
    found = [_NUMBERED.match(line) for line in _lines(text)]
    return [match and match[1] for match in found] == [str(n) for n in range(1, count + 1)]


def json_object(text: str, key: str) -> bool:
    """An object in JSON with nothing around it, in which the key has a value that is not empty."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get(key) not in (None, "", [], {})


def quoted(text: str) -> bool:
    return len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and not set(text[1:-1]) & {text[0], text[-1]}


def tagged(text: str, tag: str) -> bool:
    opening, closing = f"<{tag}>", f"</{tag}>"
    inner = text.removeprefix(opening).removesuffix(closing)
    return text == f"{opening}{inner}{closing}" and bool(words(inner))


KINDS: dict[str, Kind] = {
    "max_words": Kind(max_words, "Answer in {count} words or less.", "回答不超过{count}个单词。"),
    "min_words": Kind(min_words, "Answer in {count} words or more.", "回答不少于{count}个单词。"),
    "max_characters": Kind(
        max_characters, "Answer in {count} characters or less.", "回答不超过{count}个字。"
    ),
    "min_characters": Kind(
        min_characters, "Answer in {count} characters or more.", "回答不少于{count}个字。"
    ),
    "sentences": Kind(exact_sentences, "Answer in exactly {count} sentences.", "回答正好{count}句话。"),
    "lowercase": Kind(lowercase, "Write in lowercase letters only.", "只使用小写字母。"),
    "uppercase": Kind(uppercase, "Write in capital letters only.", "只使用大写字母。"),
    "include": Kind(include, 'Use the word "{word}".', "请使用词语“{word}”。"),
    "exclude": Kind(exclude, 'Do not use the word "{word}".', "不要使用词语“{word}”。"),
    "starts_with": Kind(starts_with, 'Start your answer with "{word}".', "以“{word}”开头。"),
    "ends_with": Kind(ends_with, 'End your answer with "{word}".', "以“{word}”结尾。"),
    "no_commas": Kind(no_commas, "Do not use commas.", "不要使用逗号。"),
    "no_digits": Kind(no_digits, "Do not use digits.", "不要使用数字。"),
    "has_number": Kind(has_number, "Give a number in digits.", "用阿拉伯数字给出一个数。"),
    "question": Kind(question, "Answer with a question.", "用一个问句回答。"),
    "exclamation": Kind(exclamation, "End with an exclamation mark.", "以感叹号结尾。"),
    "one_line": Kind(one_line, "Write everything on one line.", "全部写在一行。"),
    "bullets": Kind(
        bullets,
        'Write only a list of {count} lines that each begin with "- ".',
        "只写一个{count}行的列表，每行以“- ”开头。",
    ),
    "numbered": Kind(
        numbered,
        'Write only a list of {count} lines that begin with "1.", "2." and so on.',
        "只写一个{count}行的列表，各行以“1.”、“2.”等开头。",
    ),
    "json": Kind(
        json_object,
        'Write only a JSON object with the key "{key}".',
        "只写一个含有键“{key}”的JSON对象。",
    ),
    "quoted": Kind(quoted, "Put the whole answer in double quotes.", "把整个回答放在双引号中。"),
    "tagged": Kind(
        tagged,
        "Put the whole answer between <{tag}> and </{tag}>.",
        "把整个回答放在<{tag}>和</{tag}>之间。",
    ),
}
"""The kinds of instructions by name."""


def _parts(instruction: Any) -> tuple[Kind, dict[str, Any]]:
    """The kind of an instruction and its arguments, checked. Raises ValueError that names what is wrong."""
    given = dict(instruction) if isinstance(instruction, Mapping) else {}
    name = given.pop("kind", None)
    if name is None:
        raise ValueError(
            f'{shown(repr(instruction), 60)}: not an instruction, such as {{"kind": "lowercase"}}'
        )
    if not isinstance(name, str) or name not in KINDS:
        known = suggestion(str(name), KINDS, f"there are {listed(KINDS)}")
        raise ValueError(f"{shown(repr(name), 40)}: no kind of instruction; {known}")
    kind = KINDS[name]
    wanted = list(inspect.signature(kind.check).parameters)[1:]
    if set(given) != set(wanted):
        needs = listed(wanted, "no arguments")
        raise ValueError(f'"{name}" takes {needs}, and got {listed(map(str, given), "none")}')
    types = get_type_hints(kind.check)
    for key, value in given.items():
        if types[key] is int:
            right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_COUNT
        else:
            right = isinstance(value, str) and bool(words(value))
        if not right:
            form = f"a whole number from 1 to {_LARGEST_COUNT}" if types[key] is int else "a text with a word"
            raise ValueError(f'"{name}": {key} = {shown(repr(value), 40)}: must be {form}')
    return kind, given


def _holds(text: str, word: str) -> bool:
    """Whether the word or phrase is in the text, not as a part of another word; case does not matter."""
    return re.search(phrase_pattern(word.casefold()), text.casefold()) is not None


def _bare_words(text: str) -> list[str]:
    """The words of a text without case and the marks around them."""
    return [word.strip(_AROUND).casefold() for word in words(text)]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are no JSON
