"""`proxlm pretrain`: a new tokenizer and a new language model from plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.config import PretrainConfig, settings_or_default, validate
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.signature import checked
from proxlm.data.documents import DocumentParts
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import tokenizer_of_new_model
from proxlm.distributed.ranks import Ranks
from proxlm.errors import ConfigError
from proxlm.jobs.model_limits import check_block
from proxlm.jobs.new_models import check_new_model, new_language_model
from proxlm.jobs.pretrain_text import PretrainText
from proxlm.jobs.startup import after_restart, seeded_weights, start_job
from proxlm.jobs.supervised import (
    SupervisedTrainer,
    language_model_objective,
    made_for_run,
    mixture_of,
    print_result,
    tokenizer_to_resume,
)
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.models.source import ModelSource
from proxlm.report.run import Run
from proxlm.train.common.callbacks import Callback, Callbacks
from proxlm.train.supervised.batches import Mixture
from proxlm.train.supervised.objective import LanguageModelObjective


def main(config: PretrainConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    print_result(PretrainTrainer(config=after_restart(config)).train())


class PretrainTrainer(SupervisedTrainer[PretrainConfig]):
    """Trains a new language model on plain text, or continues to train one.

    A new model has a new tokenizer, which is trained on the same text, or the ready one of `new.tokenizer`. Settings
    are checked here; the text is read when `train` is called. Everything that is not passed comes from `config`.

    Args:
        texts: Documents; or the path of a file or a folder of these.
        config: The settings.
        model: Continue to train this model: a folder, a name on the Hugging Face hub, a transformers model (with
            `tokenizer`) or a `LanguageModel`. A loaded model is trained in place. None: `config.model.policy`, or a
            new model if that is empty.
        tokenizer: The tokenizer of a transformers model.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `model` is nothing that can be a model.
    """

    job = "pretrain"

    @checked("config", "callbacks")
    def __init__(
        self,
        texts: Iterable[str] | str | Path | None = None,
        config: PretrainConfig | None = None,
        *,
        model: Any = None,
        tokenizer: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = settings_or_default(PretrainConfig, config)
        self.source = ModelSource(config.model, model, tokenizer)
        self._texts = None if texts is None or isinstance(texts, str | Path) else texts
        if isinstance(texts, str | Path):
            config = replace(config, text=replace(config.text, train=[str(texts)]))
        elif texts is not None:
            config = replace(config, text=replace(config.text, train=[IN_MEMORY]))
        config = replace(config, model=self.source.settings)
        self.config = validate(config, {"text.train": "texts"})
        if self._texts is not None and config.text.tokens:
            raise ConfigError("text.tokens: texts passed from Python have no file to compare; leave it out")
        self._callbacks = Callbacks(callbacks)
        self._in_python = self._texts is not None or self.source.in_memory

    def _train(self, ranks: Ranks) -> Run:
        config = self.config
        skipped = Skipped(config.text.on_bad_record == "skip")

        def made() -> tuple[LanguageModelObjective, Mixture | None]:
            objective = self.objective(skipped)
            return objective, mixture_of(config.text, objective.training)

        objective, mixture = made_for_run(ranks, config.run, made)
        with self._folder(ranks) as folder:
            return self._minimise(folder, objective, skipped, ranks, mixture)

    def objective(self, skipped: Skipped) -> LanguageModelObjective:
        """The model and the blocks that it learns; skipped: receives what is left out. Within `source.lent()`."""
        config = self.config
        self._check_kind()
        text = PretrainText(config, self._texts, skipped)
        tokenizer = self._tokenizer(text)
        blocks, held_out = text.examples(tokenizer)
        with seeded_weights(config.run.seed):
            if config.model.policy:
                model = self.source.load()
            else:
                model = new_language_model(
                    config.new,
                    tokenizer,
                    config.model,
                    lambda: DocumentParts(*text.documents[0]),
                    config.run.seed,
                )
        return language_model_objective(config, model, blocks, held_out, text.validation_names)

    def _check_kind(self) -> None:
        """Raise ConfigError for an encoder–decoder: plain text has no prompt for its encoder."""
        advice = "is an encoder–decoder, which learns from pairs: proxlm sft, with scratch.type for a new one"
        if self.config.model.policy:
            if self.source.encoder_decoder:
                raise ConfigError(f'model.policy = "{self.config.model.policy}": {advice}')
        elif is_encoder_decoder_type(self.config.new.type):
            raise ConfigError(f'new.type = "{self.config.new.type}": {advice}')
        else:
            check_new_model(self.config.new)

    def _tokenizer(self, text: PretrainText) -> Any:
        """The tokenizer of the run to resume, or of the model to continue from, or a new one."""
        config = self.config
        if config.run.resume:
            return tokenizer_to_resume(config.run)
        if config.model.policy:
            check_block("train.block", config.train.block, self.source)
            return self.source.tokenizer
        parts = DocumentParts(*text.documents[0])
        return tokenizer_of_new_model("new", config.new, parts, config.model.trust_remote_code)
