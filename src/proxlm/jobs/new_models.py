"""A new language model for a job: built, and its embeddings started from word vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from proxlm.config import DistillConfig, ModelSettings, NewModelSettings, SFTConfig
from proxlm.jobs.startup import seeded_weights
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model, check_named_parts
from proxlm.models.source import ModelSource
from proxlm.models.word_vectors import check_vectors, start_embeddings
from proxlm.seeds import Purpose, derive_seed


def check_new_model(new: NewModelSettings, key: str = "new") -> None:
    """Look at what can be known before any text is read. Raises ConfigError and DataError as `new_language_model`."""
    check_named_parts(new, key)
    check_vectors(new.embeddings, new.hidden, key)


def new_language_model(
    new: NewModelSettings,
    tokenizer: Any,
    model: ModelSettings,
    texts: Callable[[], Iterable[str]],
    seed: int,
    key: str = "new",
) -> LanguageModel:
    """Build a new language model, and say how many of its tokens begin with a word vector, if any do.

    Args:
        new: What it is.
        tokenizer: Its tokenizer.
        model: Device and precision, and what learns.
        texts: Gives the training texts, for word2vec.
        seed: The run's.
        key: The settings' section, for messages.

    Raises:
        ConfigError: It cannot be built so.
        DataError: The file of word vectors cannot be used.
    """
    built = build_language_model(new, tokenizer, model, key)
    word_seed = derive_seed(seed, Purpose.WORD_VECTORS)
    if line := start_embeddings(built, new.embeddings, texts, word_seed, key):
        print(line, flush=True)
    return built


def new_or_loaded(
    config: SFTConfig | DistillConfig, source: ModelSource, tokenizer: Any, texts: Callable[[], Iterable[str]]
) -> LanguageModel:
    """A new model where the section [scratch] names a type, or the source's. Raises as `new_language_model`."""
    with seeded_weights(config.run.seed):
        if config.scratch.type:
            seed = config.run.seed
            return new_language_model(config.scratch, tokenizer, config.model, texts, seed, "scratch")
        return source.load()
