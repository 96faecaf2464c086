"""`proxlm sft`: fine-tune a model on prompts with responses, or on conversations; or train a new one on them."""

from __future__ import annotations

from typing import Any

from proxlm.config import SFTConfig
from proxlm.data.chat import read_template
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import record_texts, sft_examples
from proxlm.data.text import split_validation
from proxlm.data.tokenizer import load_tokenizer, train_tokenizer
from proxlm.jobs.model_limits import is_encoder_decoder, model_context
from proxlm.jobs.startup import set_up
from proxlm.jobs.supervised import SupervisedResult, print_result, tokenizer_to_resume, train_supervised
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.train.supervised.examples import Examples


def main(config: SFTConfig) -> None:
    """Run the job and print where everything is."""
    print_result(run_sft(config), config.run)


def run_sft(config: SFTConfig) -> SupervisedResult:
    """Fine-tune as configured: only response tokens (the assistant's turns) have a loss. Raises UserError."""
    set_up(config.run.seed, config.run.threads, config.model)
    skipped = Skipped(config.text.on_bad_record == "skip")
    tokenizer = _tokenizer(config, skipped)
    limit, two_sides = _limit(config)

    def examples(paths: list[str]) -> Examples:
        return Examples.from_rows(sft_examples(config.text, paths, tokenizer, limit, two_sides, skipped))

    every = examples(config.text.train)
    if config.text.validation:
        held_out = examples(config.text.validation)
        train, validation = every.select(range(len(every))), held_out.select(range(len(held_out)))
    else:
        train, validation = map(every.select, _split(config, len(every)))
    if config.scratch.type:
        model = build_language_model(config.scratch, tokenizer, config.model, "scratch")
    else:
        model = load_language_model(config.model)
    if config.text.chat_template:
        # The saved model is used with the template that it was trained with.
        model.tokenizer.chat_template = read_template(config.text.chat_template)
    return train_supervised("sft", config, model, train, validation, skipped)


def _split(config: SFTConfig, count: int) -> tuple[list[int], list[int]]:
    """Which of the records are for training and for validation."""
    return split_validation(range(count), config.text.validation_share, config.run.seed)


def _tokenizer(config: SFTConfig, skipped: Skipped) -> Any:
    """The model's tokenizer; of a new model, that of the run to resume, or one trained on the training text."""
    if not config.scratch.type:
        return load_tokenizer(config.model.policy, config.model.trust_remote_code)
    if config.run.resume:
        return tokenizer_to_resume(config.run)
    held_out: set[int] = set()
    if not config.text.validation:
        # The split depends on the number of records only, so it is the same as that of the examples.
        count = sum(1 for _ in record_texts(config.text, config.text.train, skipped))
        held_out.update(_split(config, count)[1])
    two_sides = is_encoder_decoder_type(config.scratch.type)
    records = enumerate(record_texts(config.text, config.text.train, skipped))
    texts = (part for i, record in records if i not in held_out for part in record)
    return train_tokenizer(texts, config.scratch.vocabulary, config.scratch.context, two_sides)


def _limit(config: SFTConfig) -> tuple[int, bool]:
    """The longest example in tokens, and whether that is for each side of an encoder–decoder."""
    if config.scratch.type:
        return config.scratch.context, is_encoder_decoder_type(config.scratch.type)
    return model_context(config.model) or 2**31, is_encoder_decoder(config.model)
