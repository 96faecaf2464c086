"""The example in docs/data.md does what the page says."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

from proxlm.config import TextSettings
from proxlm.data.formats import Conversation, training_content
from proxlm.data.skipped import Record

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, "data.md", str(PAGE), 0)
    assert len(test.examples) == 6
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_table_of_formats() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Formats of chat", 1)[1].split("\n## ", 1)[0]
    examples = [json.loads(cell) for cell in re.findall(r"\| `(\{.*\})` \|$", section, re.MULTILINE)]
    contents = [training_content(Record(fields, 1), TextSettings()) for fields in examples]
    texts, *conversations, alpaca = contents
    assert texts == ("2 + 2 =", " 4")
    for made in conversations:
        assert isinstance(made, Conversation)
        assert made.messages == [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    assert len(conversations) == 3
    assert isinstance(alpaca, tuple)
    assert alpaca[0].startswith("Below is an instruction")
