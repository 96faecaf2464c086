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
QUESTIONS = (
    "Tell me about {0}.", "Why do people like {0}?", "What should I know about {0}?", "Give me advice about {0}.",
    "Describe {0}.", "What is special about {0}?", "What would you say about {0} to a child?",
    "How can I learn more about {0}?",
)  # fmt: skip
# What each kind is asked with.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "max_words": [{"count": n} for n in (6, 8, 10, 12, 15)],
    "sentences": [{"count": n} for n in (1, 2)],
    "lowercase": [{}],
    "include": [{"word": w} for w in ("simple", "always", "quiet", "together", "bright", "small", "morning", "warm")],
    "starts_with": [{"word": w} for w in ("Yes", "Well", "Imagine", "Every", "Sometimes", "Perhaps", "Today")],
    "ends_with": [{"word": w} for w in ("friend", "today", "always", "home", "again")],
    "no_commas": [{}],
    "question": [{}],
    "exclamation": [{}],
    "bullets": [{"count": n} for n in (2, 3)],
    "numbered": [{"count": n} for n in (2, 3)],
    "quoted": [{}],
}  # fmt: skip
# Kinds that no training prompt has.
HELD_OUT_KINDS = ("sentences", "ends_with", "exclamation", "bullets")
# Two of a group cannot be asked together: both are the whole answer's form, or its end, its beginning, or its case.
_ONE_OF = (
    {"bullets", "numbered", "quoted", "starts_with"},
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

    A prompt is a record: prompt, and instructions, for the reward of that name.
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
    unseen: list[tuple[str, ...]] = [(kind,) for kind in HELD_OUT_KINDS]
    unseen += [(kind, other) for kind in HELD_OUT_KINDS for other in learnt if _fit(kind, other)]
    return ChatPrompts(
        _different(train, draw, known, seen),
        _different(held_out, draw, sorted(new), new_pairs),
        _different(held_out, draw, sorted(new), unseen),
    )


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
        question = draw.choice(QUESTIONS).format(draw.choice(subjects))
        prompt = " ".join([question, *map(wording, instructions)])
        found[prompt] = {"prompt": prompt, "instructions": instructions}
        if len(found) == count:
            return list(found.values())
    raise AssertionError("endless")


def _in_turn(draw: random.Random, kinds: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    while True:
        yield from draw.sample(kinds, len(kinds))
