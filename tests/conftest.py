"""A small tokenizer and the real small model; one thread, so that small matrices stay quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proxlm.data.tokenizer import train_tokenizer
from small_models import TEXTS

pytest_plugins = ["checklist_table"]

torch.set_num_threads(1)

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 20, vocabulary=320, context=128)


@pytest.fixture(scope="session")
def stories() -> Path:
    path = SHARED / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip("needs the pretrained model stories260K beside the checkout")
    return path
