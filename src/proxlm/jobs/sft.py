"""`proxlm sft`: fine-tune a model on prompts with responses, or on conversations; or train a new one on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from proxlm.config import SFTConfig
from proxlm.config.mixture import is_mixture, source_names
from proxlm.data.chat import carry_template
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import SFTExample, record_texts, sft_examples
from proxlm.data.text import split_validation
from proxlm.data.tokenizer import tokenizer_of_new_model
from proxlm.distributed.ranks import Ranks
from proxlm.errors import DataError
from proxlm.jobs.in_memory import GivenRecords
from proxlm.jobs.new_models import check_new_model, new_or_loaded
from proxlm.jobs.startup import after_restart, start_job
from proxlm.jobs.supervised import (
    RecordsTrainer,
    language_model_objective,
    made_for_run,
    mixture_of,
    print_result,
    tokenizer_to_resume,
)
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.report.run import Run
from proxlm.train.supervised.batches import Mixture
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.objective import LanguageModelObjective


def main(config: SFTConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    print_result(SFTTrainer(config=after_restart(config)).train())


class SFTTrainer(RecordsTrainer[SFTConfig]):
    """Fine-tunes a language model on prompts with responses, or on conversations: only the responses have a loss.

    Settings are checked here; the data and the model when `train` is called. Everything that is not passed comes from
    `config`.

    Args:
        model: A folder, a name on the Hugging Face hub, a transformers model (with `tokenizer`) or a `LanguageModel`.
            A loaded model is trained in place. With `config.scratch.type` a new model is made instead.
        train: Records with a prompt and a response, or with messages (fields: the section `text`); chats alone (lists
            of messages) are records, too. Or paths of files of these.
        config: The settings.
        tokenizer: The tokenizer of a transformers model.
        validation: Held-out records; None: `config.text.validation_share` of `train` are set aside.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `model` is nothing that can be a model.
        DataError: `train` or `validation` is nothing that can be records.
    """

    job = "sft"
    _settings = SFTConfig

    @property
    def _mixed(self) -> bool:
        return is_mixture(self.config.text)

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
        """The model and the examples that it learns; skipped: receives what is left out. Within `source.lent()`."""
        config = self.config
        if config.scratch.type:
            check_new_model(config.scratch, "scratch")
        tokenizer = self._tokenizer(skipped)
        limit, two_sides = self._limit()
        eos = [] if config.scratch.type else self.source.eos

        def examples(sources: Sequence[Source]) -> Examples:
            def of(source: Source) -> Iterator[SFTExample | None]:
                return sft_examples(config.text, [source], tokenizer, limit, two_sides, skipped, eos)

            return Examples.from_sources(map(of, sources), self._mixed)

        training, validation = in_parts(
            self._records, examples, lambda every: self._split(every.sources, len(every))
        )
        model = new_or_loaded(config, self.source, tokenizer, partial(self._training_texts, skipped))
        carry_template(model.tokenizer, config.text.chat_template)
        names = source_names(config.text.validation or config.text.train) if self._mixed else []
        return language_model_objective(config, model, training, validation, names)

    def _split(self, sources: Tensor | None, count: int) -> tuple[list[int], list[int]]:
        """Which of the records are for training and for validation; of a mixture a share of each source.

        sources: the number of each record's source; None: there is one.
        """
        share, seed = self.config.text.validation_share, self.config.run.seed
        if sources is None:
            return split_validation(range(count), share, seed)
        parts = [
            split_validation(torch.nonzero(sources == i)[:, 0].tolist(), share, seed)
            for i in range(len(self._records.training))
        ]
        return [row for train, _ in parts for row in train], [row for _, held in parts for row in held]

    def _tokenizer(self, skipped: Skipped) -> Any:
        """The model's; for a new model that of the run to resume, or one trained on the training records."""
        config = self.config
        if not config.scratch.type:
            return self.source.tokenizer
        if config.run.resume:
            return tokenizer_to_resume(config.run)
        two_sides = is_encoder_decoder_type(config.scratch.type)
        texts = self._training_texts(skipped)
        remote = config.model.trust_remote_code
        return tokenizer_of_new_model("scratch", config.scratch, texts, remote, two_sides)

    def _training_texts(self, skipped: Skipped) -> Iterator[str]:
        """The texts of the records that are not held out."""
        text, held_out = self.config.text, set[int]()
        if not self._records.validation:
            # The split depends on the number of records alone, so it is the one that the examples get.
            counts = [
                sum(1 for _ in record_texts(text, [source], skipped)) for source in self._records.training
            ]
            numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            held_out.update(self._split(numbers if self._mixed else None, len(numbers))[1])
        for i, record in enumerate(record_texts(text, self._records.training, skipped)):
            if i not in held_out:
                yield from record

    def _limit(self) -> tuple[int, bool]:
        """The longest example in tokens, and whether that is for each side of an encoder–decoder."""
        scratch = self.config.scratch
        if scratch.type:
            return scratch.context, is_encoder_decoder_type(scratch.type)
        return self.source.context or 2**31, self.source.encoder_decoder


def in_parts(
    records: GivenRecords,
    examples: Callable[[Sequence[Source]], Examples],
    split: Callable[[Examples], Sequence[Sequence[int]]],
) -> tuple[Examples, Examples]:
    """The examples to train on and those to validate on.

    Args:
        records: Where they are.
        examples: Reads sources.
        split: The rows of both parts, where no records are given to validate on.

    Raises:
        DataError: All are also in the validation.
    """
    every = examples(records.training)
    if not records.validation:
        training, validation = map(every.select, split(every))
        return training, validation
    held_out = examples(records.validation)
    validation = held_out.select(range(len(held_out)))
    return every.select(_not_held_out(every, validation)), validation


def _not_held_out(every: Examples, validation: Examples) -> list[int]:
    """The rows to train on: those that are not in the validation, too. Says how many are."""
    rows = every.rows_without(validation)
    if every and not rows:
        raise DataError(
            "text.train: every example is also in text.validation; give other files to validate on"
        )
    if repeated := len(every) - len(rows):
        print(f"text.train: {repeated:,} examples are left out: they are also in text.validation", flush=True)
    return rows
