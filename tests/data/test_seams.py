"""The end of what a model continues is compared with the same text when a word follows."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from proxlm.config import DataSettings, EnvironmentSettings, RolloutSettings
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.prompts import PromptSources, load_prompts
from proxlm.data.seams import seam_problem
from proxlm.data.tokenizer import train_tokenizer
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.types import Prompt
from small_models import TEXTS, tiny_model
from story_model import sentencepiece_tokenizer


def byte_level() -> Any:
    return train_tokenizer(TEXTS * 20, 320, 128)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_tokenizer])
def test_an_end_in_a_space_is_found_and_others_are_not(make: Any) -> None:
    tokenizer = make()
    for text in ("say: ", "And then? ", "The cat ", "A long one. " * 99):
        problem = seam_problem(tokenizer, text)
        assert problem is not None
        assert len(problem) <= 300
    for text in ("say:", "And then?", "The cat", "a", "x:\n", "2 + 2 =", "处处", "(", ""):
        assert seam_problem(tokenizer, text) is None


def test_prompts_are_checked_and_it_is_said_once(caplog: Any) -> None:
    tokenizer = byte_level()

    def load(*texts: str) -> None:
        records = InMemoryRecords([{"prompt": text} for text in texts], "asked", "prompt")
        sources = PromptSources(records)
        load_prompts(DataSettings(eval_count=0), tokenizer, 100, "train", 0, sources=sources)

    with caplog.at_level(logging.WARNING):
        load("a cat", "and so")
        assert not caplog.text
        load("a cat", "2 + 2 is: ", "3 + 3 is: ")
        load("2 + 2 is: ")
    assert caplog.text.count('ends in "2 + 2 is: "') == 1


class Asks:
    def reset(self, task: Any) -> str:
        return "tell me"

    def step(self, reply: str) -> tuple[str, float, bool]:
        return " and then? ", 0.0, False


def test_what_an_environment_says_is_checked(caplog: Any) -> None:
    model = tiny_model(byte_level())
    spec = MultiTurn(Asks, PlainMessageTokens(model.tokenizer), EnvironmentSettings(use="x", max_turns=2))
    sampling = RolloutSettings(max_new_tokens=4)
    with caplog.at_level(logging.WARNING):
        spec(NativeEngine(model, sampling), [Prompt(i, (), "") for i in range(3)], sampling, seed=0, step=0)
    assert caplog.text.count('ends in " and then? "') == 1
