"""What `proxlm evaluate` measures instead of responses: the probability of choices, and of plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting


@dataclass(frozen=True)
class ChoiceSettings:
    """Multiple choice by log-likelihood: how probable each of several answers is behind its prompt."""

    field: str = setting(
        "",
        "field of a record of data.eval_prompts with its choices: a list of texts, or an object of the lists text and"
        " label; empty: no multiple choice",
    )
    answer_field: str = setting("answer", "field with the right choice")
    answer: Literal["auto", "index", "letter", "text"] = setting(
        "auto",
        "how the right choice is given: its index from 0, its letter (A is the first) or label, its text; auto: as it"
        " reads, and where it reads in two ways, an error",
    )
    separator: str = setting(
        " ",
        "text between prompt and choice, and in the examples of data.shots, where neither has white space there (not"
        " in chat or for an encoder–decoder)",
    )


@dataclass(frozen=True)
class PerplexitySettings:
    """Perplexity and bits per byte of plain text, also of models whose tokenizers differ."""

    text: list[str] = setting(
        factory=list, help="files, folders or data sets of text, as in pretraining; empty: none", path="input"
    )
    extensions: list[str] = setting(factory=lambda: [".txt", ".md"], help="which files of a folder to read")
    window: int = setting(
        0,
        "most tokens that a model reads at once; 0: its context, at most micro_batch_tokens",
        ge=0,
    )
    stride: int = setting(
        0,
        "a text longer than the window: by how many tokens the window moves, whose newest ones are then predicted;"
        " less than the window; 0: half of it",
        ge=0,
    )


def perplexity_problems(perplexity: PerplexitySettings) -> list[tuple[str, str]]:
    """What cannot be combined."""
    found = []
    if perplexity.window == 1:
        found.append(("perplexity.window", "must be 2 or more: one token to read and one to predict; or 0"))
    elif perplexity.window and perplexity.stride >= perplexity.window:
        found.append(("perplexity.stride", f"must be less than perplexity.window = {perplexity.window}"))
    return found
