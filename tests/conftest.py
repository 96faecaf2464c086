"""Small models and a small tokenizer for every test; one thread, so that small matrices stay quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proxlm.config import ModelConfig, NewModelConfig
from proxlm.data.tokenizer import train_tokenizer
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model

torch.set_num_threads(1)

SHARED = Path(__file__).parents[1].parent / "shared"

TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "One day a small dog found a big red ball in the park.",
    "def add(a, b): return a + b",
    "春眠不觉晓，处处闻啼鸟。",
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 20, vocabulary=320, context=128)


def tiny_model(tokenizer: Any, type: str = "llama", seed: int = 0, **model: Any) -> LanguageModel:
    """A random model with sharp enough predictions that sampling is not uniform."""
    torch.manual_seed(seed)
    new = NewModelConfig(type=type, hidden=32, layers=2, heads=4, context=128)
    built = build_language_model(new, tokenizer, ModelConfig(device="cpu", **model))
    with torch.no_grad():
        built.network.get_output_embeddings().weight.mul_(8.0)
    return built


@pytest.fixture(scope="session")
def stories() -> Path:
    path = SHARED / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip("needs the pretrained model stories260K beside the checkout")
    return path
