"""Random records in which known fields hold anything are understood, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from proxlm.config import DataSettings, TextSettings
from proxlm.data.formats import Conversation, prompt_content, training_content
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError

NAMES = [
    "prompt", "response", "completion", "messages", "conversations", "instruction", "input", "output", "history",
    "tools", "system", "weight", "chat_template_kwargs", "role", "content", "from", "value", "tool_calls", "function",
    "name", "arguments", "type", "text",
]  # fmt: skip
WORDS = [
    "",
    "a",
    "user",
    "assistant",
    "human",
    "gpt",
    "function_call",
    "text",
    "{}",
    "[",
    '{"name": "f"}',
    "\x1b[2J",
    "x" * 500,
]


class Chance(random.Random):
    """Makes values of JSON with the known names."""

    def value(self, depth: int) -> Any:
        kind = self.randrange(8 if depth else 5)
        if kind < 2:
            return self.choice(WORDS)
        if kind == 2:
            return self.choice([0, 1, -1, 0.5, True, 10**400, 1e308])
        if kind == 3:
            return {"role": self.choice(WORDS), "content": self.choice(WORDS)}
        if kind == 4:
            return {"from": self.choice(WORDS), "value": self.choice(WORDS)}
        if kind == 5:
            return self.object(depth - 1)
        return [self.value(depth - 1) for _ in range(self.randrange(4))]

    def object(self, depth: int) -> dict[str, Any]:
        return {self.choice(NAMES): self.value(depth) for _ in range(self.randrange(5))}


@pytest.mark.parametrize("seed", range(4))
def test_a_record_is_understood_or_refused_in_one_line(seed: int) -> None:
    chance = Chance(seed)
    understood, refused = 0, list[str]()
    for _ in range(2500):
        fields = chance.object(4)
        before = copy.deepcopy(fields)
        record = Record(fields, 1, "a.jsonl")
        for chat in (False, True):
            for read in (
                lambda chat=chat, record=record: training_content(record, TextSettings(chat=chat)),
                lambda chat=chat, record=record: prompt_content(record, DataSettings(chat=chat), "prompt"),
            ):
                try:
                    made = read()
                except BadRecordError as error:
                    refused.append(str(error))
                    continue
                understood += 1
                if isinstance(made, Conversation):
                    json.dumps([made.messages, made.extras.tools, dict(made.extras.variables)])
                    assert len(made.messages) == len(made.weights)
                    assert all(isinstance(m["role"], str) for m in made.messages)
                    assert all(isinstance(m["content"], str) or m["tool_calls"] for m in made.messages)
        assert fields == before
    assert understood > 200
    assert len(refused) > 1000
    assert all(message.startswith("a.jsonl:1: ") and len(message) <= 300 for message in refused)
    assert not any("\x1b" in message for message in refused)
