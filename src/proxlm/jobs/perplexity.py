"""Perplexity of text files in `proxlm evaluate`, also of models whose tokenizers differ."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from proxlm.config import EvaluateConfig
from proxlm.config.paths import short
from proxlm.data.skipped import Skipped
from proxlm.data.text import read_texts
from proxlm.errors import ConfigError
from proxlm.evaluation.perplexity import evaluate_texts
from proxlm.evaluation.results import Evaluation
from proxlm.jobs.progress import progress_line
from proxlm.models.source import ModelSource


def evaluate_texts_of(sources: Sequence[ModelSource], config: EvaluateConfig) -> list[Evaluation]:
    """The evaluation of each model on the same texts.

    Raises:
        ConfigError: An encoder–decoder, or a window beyond a model's context.
        DataError: A text cannot be read.
    """
    for source in sources:
        _window(source, config)
    skipped = Skipped(config.data.on_bad_record == "skip")
    documents = read_texts(config.perplexity.text, config.perplexity.extensions, skipped)
    skipped.print_summary()
    evaluations: list[Evaluation] = []
    for number, source in enumerate(sources):
        window = _window(source, config)
        stride = config.perplexity.stride or max(1, window // 2)
        name = short(source.settings.policy)
        print(
            f"evaluating {name} ({number + 1}/{len(sources)}), {window} tokens at once …",
            file=sys.stderr,
            flush=True,
        )
        evaluations.append(
            evaluate_texts(
                name,
                source.load(),
                documents,
                window,
                stride,
                config.micro_batch_tokens,
                max(config.samples, 16),
                progress_line("documents"),
            )
        )
    return evaluations


def _window(source: ModelSource, config: EvaluateConfig) -> int:
    """The most tokens that a model reads at once. Reads the model's configuration only."""
    settings, name = config.perplexity, source.settings.policy
    if source.encoder_decoder:
        raise ConfigError(
            f'model.policy = "{name}": an encoder–decoder has no perplexity of plain text, only of answers'
        )
    context = source.context
    if settings.window:
        if context is not None and settings.window > context:
            raise ConfigError(
                f"perplexity.window = {settings.window}: longer than the context of {context} of {name}"
            )
        return settings.window
    window = max(2, min(context or config.micro_batch_tokens, config.micro_batch_tokens))
    if settings.stride >= window:
        raise ConfigError(
            f"perplexity.stride = {settings.stride}: must be less than the window of {window} of {name}"
        )
    return window
