"""Small random models and a little text, for every test."""

from __future__ import annotations

from typing import Any

import torch

from proxlm.config import ModelSettings, NewModelSettings
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model

TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "One day a small dog found a big red ball in the park.",
    "def add(a, b): return a + b",
    "春眠不觉晓，处处闻啼鸟。",
]

# Beginnings of different lengths, for prompts.
WORDS = [
    "The cat",
    "One day a small dog found a big",
    "moon",
    "def add(a, b):",
    "处处",
    "a red ball in the park",
]


def tiny_model(tokenizer: Any, type: str = "llama", seed: int = 0, **model: Any) -> LanguageModel:
    """A random model with sharp enough predictions that sampling is not uniform."""
    torch.manual_seed(seed)
    new = NewModelSettings(type=type, hidden=32, layers=2, heads=4, context=128)
    built = build_language_model(new, tokenizer, ModelSettings(device="cpu", **model))
    with torch.no_grad():
        for name, p in built.network.named_parameters():
            if "lstm.weight" in name:  # a recurrence as torch begins it hardly moves
                p.mul_(2.0)
        # T5 starts sharp; BART starts so small that what the encoder read would hardly matter.
        if type == "bart":
            for module in built.trunk.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.mul_(10.0)
        if type != "t5":
            built.network.get_output_embeddings().weight.mul_(8.0)
    return built
