"""Write a model in Hugging Face format."""

from __future__ import annotations

import copy
from pathlib import Path

from proxlm.models.language_model import LanguageModel


def save_language_model(model: LanguageModel, folder: Path) -> None:
    """Weights (safetensors), config, generation config and tokenizer: `from_pretrained(folder)` loads them.

    With LoRA: the base with the adapters added in. The model itself is left as it is.
    """
    if model.adapters is None:
        model.network.save_pretrained(folder)
    else:
        copy.deepcopy(model.adapters).merge_and_unload().save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
