"""`proxlm sft`: fine-tune a model on prompts with responses, or on conversations; or train a new one on them."""

from __future__ import annotations

from typing import Any

from proxlm.apps.pretrain import SupervisedResult, print_result, run_supervised, tokenizer_to_resume
from proxlm.apps.session import is_encoder_decoder, model_context, set_up
from proxlm.config import SFTJob
from proxlm.data.chat import read_template
from proxlm.data.supervised import SFTExample, record_texts, sft_examples
from proxlm.data.text import split_validation
from proxlm.data.tokenizer import load_tokenizer, train_tokenizer
from proxlm.models.families import is_encoder_decoder_type
from proxlm.models.load import build_language_model, load_language_model
from proxlm.train.examples import Examples


def main(config: SFTJob) -> None:
    """Run the job and print where everything is."""
    print_result(run_sft(config), config.run)


def run_sft(config: SFTJob) -> SupervisedResult:
    """Train as configured: only response tokens (the assistant's turns) have a loss. Raises UserError."""
    set_up(config.run.seed, config.run.threads, config.model)
    tokenizer = _tokenizer(config)
    limit, two_sides = _limit(config)

    def examples(paths: list[str]) -> list[SFTExample]:
        return sft_examples(config.text, paths, tokenizer, limit, two_sides)

    train = examples(config.text.train)
    if config.text.validation:
        validation = examples(config.text.validation)
    else:
        train, validation = split_validation(train, config.text.validation_share, config.run.seed)
    if config.scratch.type:
        model = build_language_model(config.scratch, tokenizer, config.model, "scratch")
    else:
        model = load_language_model(config.model)
    if config.text.chat_template:
        # The saved model then speaks the way it was taught.
        model.tokenizer.chat_template = read_template(config.text.chat_template)
    return run_supervised("sft", config, model, Examples(train), Examples(validation))


def _tokenizer(config: SFTJob) -> Any:
    """The model's; for a new one, that of the run to resume, or one trained on the text that is trained on."""
    if not config.scratch.type:
        return load_tokenizer(config.model.policy, config.model.trust_remote_code)
    if config.run.resume:
        return tokenizer_to_resume(config.run)
    records = record_texts(config.text, config.text.train)
    if not config.text.validation:
        # The split depends on the number of records alone, so it is the one that the examples get.
        records = split_validation(records, config.text.validation_share, config.run.seed)[0]
    two_sides = is_encoder_decoder_type(config.scratch.type)
    texts = [part for record in records for part in record]
    return train_tokenizer(texts, config.scratch.vocabulary, config.scratch.context, two_sides)


def _limit(config: SFTJob) -> tuple[int, bool]:
    """The longest example in tokens, and whether that is for each side of an encoder–decoder."""
    if config.scratch.type:
        return config.scratch.context, is_encoder_decoder_type(config.scratch.type)
    return model_context(config.model) or 2**31, is_encoder_decoder(config.model)
