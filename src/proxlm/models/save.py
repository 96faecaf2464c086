"""Write a model in Hugging Face format."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxlm.models.language_model import LanguageModel


def save_language_model(model: LanguageModel, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer, for `from_pretrained(folder)`.

    With LoRA it writes the base with the adapters merged in. The model itself does not change.
    """
    with _no_progress_bars():
        if model.adapters is None:
            model.network.save_pretrained(folder)
        else:
            copy.deepcopy(model.adapters).merge_and_unload().save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without transformers' bars, which would tear the run's own display at each checkpoint."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
