"""A tiny trained tokenizer, chat templates, and a tokenizer of the SentencePiece type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxlm.data.tokenizer import load_tokenizer, train_tokenizer
from story_model import PRETRAINED, beside_the_checkout, sentencepiece_tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "return self.parser.parse(text, 10) + 20",
    "从前有一个小女孩，她叫莉莉。",
    "user\nassistant\nsystem\nWhat is 2 + 3? It is 5.",
] * 5

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """300 tokens, BOS first, no chat template. Not to be changed by a test."""
    return train_tokenizer(TEXTS, 300, 128)


def _with_template(template: str, specials: list[str], eos: str) -> Any:
    made = train_tokenizer(TEXTS, 300, 128)
    made.add_special_tokens({"additional_special_tokens": specials})
    made.eos_token = eos
    made.chat_template = template
    return made


@pytest.fixture(scope="session")
def chatml() -> Any:
    """Ends turns with <|im_end|>, which is EOS, then a line break, as Qwen does."""
    return _with_template(CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")


@pytest.fixture(scope="session")
def llama3() -> Any:
    """Writes BOS itself, two line breaks after the role, and <|eot_id|>, which is EOS."""
    return _with_template(LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>")


@pytest.fixture(scope="session", params=["small", *(p.name for p in beside_the_checkout(PRETRAINED))])
def stories(request: pytest.FixtureRequest) -> Any:
    """SentencePiece type, BOS first: a space is put before every text. Also that of stories260K where it is there."""
    return load_tokenizer(str(PRETRAINED)) if request.param == PRETRAINED.name else sentencepiece_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a file: a list as JSON lines, a text as it is, bytes as they are. Returns its path."""

    def put(name: str, content: list[Any] | str | bytes) -> str:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return put
