"""What transformers and PEFT print while we call them that tells a user nothing: silenced for that call alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What PEFT warns of in every use of ours: a name that it still asks transformers for; and tied weights, which
# `adapters.py` refuses, or which an adapter has untied on purpose.
_KNOWN_OF_PEFT = (
    "`is_gradient_checkpointing` is deprecated",
    "Model (with|has) `tie_word_embeddings=True`",
    "Input and output embeddings are no longer tied",
)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers shows no bars of its own; those of the hub's downloads, which may take long, stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def without_known_warnings(*more: str) -> Iterator[None]:
    """PEFT's warnings that are known, and answered, are not shown; others are.

    Args:
        *more: Beginnings of further messages, as regular expressions.
    """
    with warnings.catch_warnings():
        for message in (*_KNOWN_OF_PEFT, *more):
            warnings.filterwarnings("ignore", message=message)
        yield
