"""`proxlm pretrain`: a new tokenizer and a new language model from text files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from proxlm.checkpoint import newest_checkpoint
from proxlm.config import PretrainConfig, RunSettings, SFTConfig, SupervisedSettings
from proxlm.data.documents import Documents
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import pretrain_blocks
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import load_tokenizer, train_tokenizer
from proxlm.errors import ConfigError, DataError
from proxlm.jobs.session import (
    announce_resume,
    check_block,
    is_encoder_decoder,
    left_out,
    run_folder,
    set_up,
)
from proxlm.models.families import is_encoder_decoder_type
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model, load_language_model
from proxlm.report.page import write_report
from proxlm.runlog.folder import folder_to_resume
from proxlm.runlog.writer import RunLog
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.trainer import SupervisedState, SupervisedTrainer

# The tokenizers library gathers 256 texts before it counts their words.
_TOKENIZER_PART = 2**16


@dataclass(frozen=True)
class SupervisedResult:
    """A finished run: its folder, whose policy/ holds the best weights, and where training ended."""

    folder: Path
    state: SupervisedState


def main(config: PretrainConfig) -> None:
    """Run the job and print where everything is."""
    print_result(run_pretrain(config), config.run)


def run_pretrain(config: PretrainConfig, texts: Sequence[str] | None = None) -> SupervisedResult:
    """Pretrain as configured; `texts`, a list of documents, takes the place of config.text.train.

    The tokenizer is trained on the training documents, unless model.policy names a model to go on from.
    Raises UserError.
    """
    set_up(config.run.seed, config.run.threads, config.model)
    _check_kind(config)
    skipped = Skipped(config.text.on_bad_record == "skip")
    train, validation = _documents(config, texts, skipped)
    tokenizer = _tokenizer(config, train)
    block = config.train.block
    # In another order than the text's own, neighbours in a block are not near-copies of each other.
    train = train.shuffled(derive_seed(config.run.seed, Purpose.DOCUMENTS))
    blocks = Examples.from_blocks(pretrain_blocks(tokenizer, train, block))
    held_out = Examples.from_blocks(_validation_blocks(tokenizer, validation, block))
    if config.model.policy:
        model = load_language_model(config.model)
    else:
        model = build_language_model(config.new, tokenizer, config.model)
    return run_supervised("pretrain", config, model, blocks, held_out, skipped, in_python=texts is not None)


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
    """That of the model to go on from, or of the run to resume, or a new one."""
    if config.run.resume:
        return tokenizer_to_resume(config.run)
    if config.model.policy:
        check_block("train.block", config.train.block, config.model)
        return load_tokenizer(config.model.policy, config.model.trust_remote_code)
    parts = (part for i in range(len(train)) for part in train.parts(i, _TOKENIZER_PART))
    return train_tokenizer(parts, config.new.vocabulary, config.new.context)


def tokenizer_to_resume(run: RunSettings) -> Any:
    """That of the run to go on with: it was trained on text that may no longer be what it was."""
    # What is wrong with a checkpoint is told when its weights are read.
    checkpoint = newest_checkpoint(folder_to_resume(run.folder), tell=lambda _line: None)
    return load_tokenizer(str(checkpoint / "policy"))


def run_supervised(
    job: str,
    config: PretrainConfig | SFTConfig,
    model: LanguageModel,
    train: Examples,
    validation: Examples,
    skipped: Skipped,
    in_python: bool = False,
) -> SupervisedResult:
    """The part that pretraining and fine-tuning share: folder, loop, report. `in_python`: see RunLog."""
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    tokens = [int(e.lengths.sum()) for e in (train, validation)]
    said = f" ({left_out(skipped)})" if len(skipped) else ""
    print(
        f"{millions:.2f}M parameters; {tokens[0]:,} tokens to train on, {tokens[1]:,} to validate on{said}",
        flush=True,
    )
    with run_folder(config, job) as folder:
        skipped.save(folder)
        trainer = SupervisedTrainer(model, train, validation, config, folder)
        if config.run.resume:
            announce_resume(config, folder, trainer.resume())
        settings: SupervisedSettings = config.train
        with RunLog(
            folder,
            job,
            settings.steps,
            config.run,
            trainer.state.step,
            headline=("loss", "validation_loss"),
            limit_seconds=max(0.0, settings.minutes * 60 - trainer.state.seconds),
            in_python=in_python,
        ) as log:
            state = trainer.train(log)
        if config.run.report:
            write_report(folder)
        return SupervisedResult(folder, state)


def print_result(result: SupervisedResult, run: RunSettings) -> None:
    """The best loss and where everything is."""
    state = result.state
    print(f"\nbest validation loss {state.best_loss:.4f} at step {state.best_step} of {state.step}")
    print(f"model   {result.folder / 'policy'}")
    if run.report:
        print(f"report  {result.folder / 'report.html'}")
