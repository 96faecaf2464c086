"""The built-in reward for instructions that a rule can check (instructions.py), and its guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from proxlm.errors import RewardError
from proxlm.rewards.fields import field_of
from proxlm.rewards.instructions import copies, mentions, share_kept, without, words
from proxlm.types import Completion


def instructions(
    field: str = "instructions",
    all: bool = False,
    min_words: int = 0,
    about: str = "",
    about_as: Literal["guard", "instruction"] = "guard",
    copied_words: int = 0,
    repeats: bool = True,
) -> Callable[[list[Completion]], list[Any]]:
    """The share of the record's instructions that the response keeps (rewards/instructions.py).

    The other arguments are guards: what they refuse gets 0. They are off where nothing is said.

    Args:
        field: The record's field: a list of instructions, {"kind": "max_words", "count": 8} for instance.
        all: 1 if every one is kept, else 0, instead of the share.
        min_words: A response needs so many different words.
        about: The record's field that says what the response must be about: a word or phrase, or several of which
            one must be in it.
        about_as: Whether a response that is not about it is refused, or that is one more instruction, kept or not.
        copied_words: The most words in a row that a response may take from its prompt; 0: no limit.
        repeats: Whether one text, the words of `about` apart, may answer different prompts of a call.
    """
    for name, value in (("min_words", min_words), ("copied_words", copied_words)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be at least 0")

    def score(completion: Completion, subject: Sequence[str]) -> float | RewardError:
        asked = field_of(completion, field)
        if isinstance(asked, RewardError):
            return asked
        if not isinstance(asked, list):
            return RewardError(f'field "{field}" holds a {type(asked).__name__}, not a list of instructions')
        text = completion.text
        try:
            share = share_kept(text, asked)
        except ValueError as error:
            return RewardError(f'field "{field}": {error}')
        on_subject = not about or mentions(text, subject)
        if about and about_as == "instruction":
            share = (share * len(asked) + on_subject) / (len(asked) + 1)
        refused = (
            len({word.casefold() for word in words(text)}) < min_words
            or (about_as == "guard" and not on_subject)
            or (copied_words and copies(text, completion.prompt, copied_words))
        )
        return 0.0 if refused else float(share == 1 if all else share)

    def score_all(completions: list[Completion]) -> list[float | RewardError]:
        subjects = [_phrases(c, about) if about else [] for c in completions]
        scores = [
            subject if isinstance(subject, RewardError) else score(c, subject)
            for c, subject in zip(completions, subjects, strict=True)
        ]
        if repeats:
            return scores
        prompts: dict[str, set[str]] = {}
        texts = [
            without(c.text, [] if isinstance(subject, RewardError) else subject)
            for c, subject in zip(completions, subjects, strict=True)
        ]
        for text, completion in zip(texts, completions, strict=True):
            prompts.setdefault(text, set()).add(completion.prompt)
        return [
            0.0 if len(prompts[text]) > 1 and isinstance(value, float) else value
            for text, value in zip(texts, scores, strict=True)
        ]

    return score_all


def _phrases(completion: Completion, field: str) -> list[str] | RewardError:
    """The record's field as phrases: a text with a word in it, or a list of them."""
    found = field_of(completion, field)
    if isinstance(found, RewardError):
        return found
    phrases = found if isinstance(found, list) else [found]
    if phrases and all(isinstance(phrase, str) and words(phrase) for phrase in phrases):
        return phrases
    return RewardError(f'field "{field}" holds no word or phrase, and no list of them')
