"""The prompts of `proxlm demo --chat`: everyday questions with one or two instructions, composed by rule."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from proxlm.rewards.instructions import wording

SUBJECTS = (
    "tea", "coffee", "bread", "honey", "rain", "snow", "the sea", "rivers", "mountains", "the moon", "stars",
    "trees", "gardens", "birds", "cats", "dogs", "horses", "bees", "music", "dancing", "painting", "books",
    "letters", "maps", "bicycles", "trains", "bridges", "markets", "cooking", "soup", "apples", "chess",
    "football", "swimming", "walking", "sleep", "dreams", "friends", "neighbours", "school", "teachers",
    "work", "holidays", "birthdays", "cities", "villages", "clocks", "candles", "shoes", "hats", "windows",
    "kitchens", "libraries", "museums", "photographs", "telephones", "computers", "robots", "numbers",
    "colours",
)  # fmt: skip
# How an answer may name what it is about, beside the subject itself and its singular.
_ALSO = {
    "colours": ("color", "colors"), "neighbours": ("neighbor", "neighbors"), "dancing": ("dance", "dances"),
    "painting": ("paint", "paintings"), "cooking": ("cook", "cooks"), "swimming": ("swim", "swims"),
    "walking": ("walk", "walks"), "photographs": ("photo", "photos"),
    "telephones": ("phone", "phones"), "bicycles": ("bike", "bikes"), "school": ("schools",), "tea": ("teas",),
}  # fmt: skip
QUESTIONS = (
    "Tell me about {0}.", "Why do people like {0}?", "What should I know about {0}?", "Give me advice about {0}.",
    "Describe {0}.", "What is special about {0}?", "What would you say about {0} to a child?",
    "How can I learn more about {0}?",
)  # fmt: skip
# What each kind is asked with.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "max_words": [{"count": n} for n in (6, 8, 10, 12, 15)],
    "lowercase": [{}],
    "include": [{"word": w} for w in ("simple", "always", "quiet", "together", "bright", "small", "morning", "warm")],
    "starts_with": [{"word": w} for w in ("Yes", "Well", "Imagine", "Every", "Sometimes", "Perhaps", "Today")],
    "no_commas": [{}],
    "numbered": [{"count": n} for n in (2, 3)],
    "question": [{}],
    "sentences": [{"count": n} for n in (1, 2)],
    "ends_with": [{"word": w} for w in ("friend", "today", "always", "home", "again")],
    "exclamation": [{}],
    "bullets": [{"count": n} for n in (2, 3)],
}  # fmt: skip
# Kinds that no training prompt has.
HELD_OUT_KINDS = ("sentences", "ends_with", "exclamation", "bullets")
# How often a set of kinds with one of these comes up in training, where others do once: the model hardly ever does by
# itself what they ask for, so a step needs more tries.
TIMES = {"include": 2, "starts_with": 2}
# Two of a group cannot be asked together: both are the whole answer's form, or its end, its beginning, or its case.
_ONE_OF = (
    {"bullets", "numbered", "starts_with"},
    {"bullets", "numbered", "sentences"},
    {"bullets", "numbered", "question", "exclamation", "ends_with"},
)
# Of every so many subjects one is held out.
_SUBJECT_EVERY = 5


@dataclass(frozen=True)
class ChatPrompts:
    """Prompts by what is new in them.

    Attributes:
        train: One or two instructions of the kinds to learn.
        combinations: Pairs of kinds that training never has together, on subjects that it never has.
        kinds: A kind that training never has, alone or beside one of the others, on the same new subjects.
    """

    train: list[dict[str, Any]]
    combinations: list[dict[str, Any]]
    kinds: list[dict[str, Any]]


def chat_prompts(train: int, held_out: int, seed: int) -> ChatPrompts:
    """So many prompts to train on, and to evaluate on of each kind of novelty; all of them different.

    A prompt is a record: prompt, instructions, for the reward of that name, and about, the words of which an answer
    must hold one.
    """
    draw = random.Random(seed)
    new = set(SUBJECTS[::_SUBJECT_EVERY])
    known = [subject for subject in SUBJECTS if subject not in new]
    learnt = [kind for kind in ARGUMENTS if kind not in HELD_OUT_KINDS]
    pairs = [pair for pair in combinations(learnt, 2) if _fit(*pair)]
    new_pairs = [
        pair for pair in pairs if _is_held_out(learnt.index(pair[0]), learnt.index(pair[1]), len(learnt))
    ]
    seen: list[tuple[str, ...]] = [
        *((kind,) for kind in learnt),
        *(pair for pair in pairs if pair not in new_pairs),
    ]
    often = [kinds for kinds in seen for _ in range(max(TIMES.get(kind, 1) for kind in kinds))]
    unseen: list[tuple[str, ...]] = [(kind,) for kind in HELD_OUT_KINDS]
    unseen += [(kind, other) for kind in HELD_OUT_KINDS for other in learnt if _fit(kind, other)]
    return ChatPrompts(
        _different(train, draw, known, often),
        _different(held_out, draw, sorted(new), new_pairs),
        _different(held_out, draw, sorted(new), unseen),
    )


def names_of(subject: str) -> list[str]:
    """The words by which an answer may name a subject."""
    name = subject.removeprefix("the ")
    names = [name, *_ALSO.get(name, ())]
    if name.endswith("ies"):
        names.append(name.removesuffix("ies") + "y")
    elif name.endswith("s") and not name.endswith("ss"):
        names.append(name.removesuffix("s"))
    return names


def _is_held_out(first: int, second: int, count: int) -> bool:
    """Whether the pair of the kinds with these numbers is held out: each kind is in about as many such pairs."""
    return second - first == count // 2 or (second - first == 1 and first % 2 == 0)


def _fit(first: str, second: str) -> bool:
    return not any({first, second} <= group for group in _ONE_OF)


def _different(
    count: int, draw: random.Random, subjects: Sequence[str], kinds: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """Different prompts, the sets of kinds in turn."""
    found: dict[str, dict[str, Any]] = {}
    for chosen in _in_turn(draw, kinds):
        instructions = [{"kind": kind, **draw.choice(ARGUMENTS[kind])} for kind in chosen]
        draw.shuffle(instructions)
        question, subject = draw.choice(QUESTIONS), draw.choice(subjects)
        prompt = " ".join([question.format(subject), *map(wording, instructions)])
        found[prompt] = {"prompt": prompt, "instructions": instructions, "about": names_of(subject)}
        if len(found) == count:
            return list(found.values())
    raise AssertionError("endless")


def _in_turn(draw: random.Random, kinds: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    while True:
        yield from draw.sample(kinds, len(kinds))
