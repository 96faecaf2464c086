"""`proxlm pretrain`: a new tokenizer and a new language model from text files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from proxlm.config import PretrainConfig
from proxlm.data.documents import Documents
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import pretrain_blocks
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import load_tokenizer, train_tokenizer
from proxlm.errors import ConfigError, DataError
from proxlm.jobs.model_limits import check_block, is_encoder_decoder
from proxlm.jobs.startup import set_up
from proxlm.jobs.supervised import SupervisedResult, print_result, tokenizer_to_resume, train_supervised
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.supervised.examples import Examples

# Characters of a text at a time; the tokenizers library collects 256 of them before it counts words.
_TOKENIZER_PART = 2**16


def main(config: PretrainConfig) -> None:
    """Run the job and print where everything is."""
    print_result(run_pretrain(config), config.run)


def run_pretrain(config: PretrainConfig, texts: Sequence[str] | None = None) -> SupervisedResult:
    """Pretrain as configured. The tokenizer is trained on the training documents, unless model.policy names a model.

    Args:
        config: The settings.
        texts: Documents to train on, instead of config.text.train.

    Raises:
        UserError: The settings or the data are wrong, or the run cannot continue.
    """
    set_up(config.run.seed, config.run.threads, config.model)
    _check_kind(config)
    skipped = Skipped(config.text.on_bad_record == "skip")
    train, validation = _documents(config, texts, skipped)
    tokenizer = _tokenizer(config, train)
    block = config.train.block
    # In the order of the files, neighbours in a block would be near-copies of each other.
    train = train.shuffled(derive_seed(config.run.seed, Purpose.DOCUMENTS))
    blocks = Examples.from_blocks(pretrain_blocks(tokenizer, train, block))
    held_out = Examples.from_blocks(_validation_blocks(tokenizer, validation, block))
    if config.model.policy:
        model = load_language_model(config.model)
    else:
        model = build_language_model(config.new, tokenizer, config.model)
    return train_supervised("pretrain", config, model, blocks, held_out, skipped, in_python=texts is not None)


def _check_kind(config: PretrainConfig) -> None:
    """Raise ConfigError for an encoder–decoder: plain text has no prompt for its encoder."""
    advice = "is an encoder–decoder, which learns from pairs: proxlm sft, with scratch.type for a new one"
    if config.model.policy:
        if is_encoder_decoder(config.model):
            raise ConfigError(f'model.policy = "{config.model.policy}": {advice}')
    elif is_encoder_decoder_type(config.new.type):
        raise ConfigError(f'new.type = "{config.new.type}": {advice}')


def _documents(
    config: PretrainConfig, texts: Sequence[str] | None, skipped: Skipped
) -> tuple[Documents, Documents]:
    text = config.text
    found = Documents(texts) if texts is not None else read_texts(text.train, text.extensions, skipped)
    if text.validation:
        return found, read_texts(text.validation, text.extensions, skipped)
    return found.split(text.validation_share, config.run.seed)


def _validation_blocks(tokenizer: Any, validation: Documents, block: int) -> torch.Tensor:
    try:
        return pretrain_blocks(tokenizer, validation, block)
    except DataError as error:
        raise DataError(f"the validation part: {error}; or raise text.validation_share") from error


def _tokenizer(config: PretrainConfig, train: Documents) -> Any:
    """The tokenizer of the run to resume, or of the model to continue from, or a new one."""
    if config.run.resume:
        return tokenizer_to_resume(config.run)
    if config.model.policy:
        check_block("train.block", config.train.block, config.model)
        return load_tokenizer(config.model.policy, config.model.trust_remote_code)
    parts = (part for i in range(len(train)) for part in train.parts(i, _TOKENIZER_PART))
    return train_tokenizer(parts, config.new.vocabulary, config.new.context)
