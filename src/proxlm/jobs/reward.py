"""`proxlm reward`: train a reward model on preferences, or on other labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from proxlm.config import RewardConfig, settings_or_default, validate
from proxlm.config.signature import checked
from proxlm.data.chat import carry_template
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.preferences import Comparison, comparisons, split_by_prompt
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError
from proxlm.jobs.in_memory import record_sources
from proxlm.jobs.judge import HeldOut, print_judgement
from proxlm.jobs.run_folder import check_run_folder
from proxlm.jobs.startup import seeded_weights, start_job
from proxlm.jobs.supervised import print_result, run_supervised, tokenizer_to_resume
from proxlm.models.classifier import Classifier, classifier_of_language_model, load_classifier
from proxlm.models.load import build_language_model
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.models.source import ModelSource
from proxlm.report.run import Run
from proxlm.rewards.reward_ensemble import MEMBER, members_of
from proxlm.runlog.metric_names import LOSS, VALIDATION_ACCURACY, VALIDATION_LOSS
from proxlm.runlog.saved_settings import model_folder
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.callbacks import Callback, Callbacks
from proxlm.train.supervised.comparison_tokens import ComparisonTokens
from proxlm.train.supervised.ensemble_objective import EnsembleObjective
from proxlm.train.supervised.labelled_texts import LabelledTexts
from proxlm.train.supervised.loop import SupervisedLoop
from proxlm.train.supervised.reward_objective import RewardObjective


def main(config: RewardConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    run = RewardTrainer(config=config).train()
    print_judgement(run)
    print_result(run)
    use = "reward_ensemble" if members_of(run.model) else "reward_model"
    print(f"use it with --reward.use {use} --reward.args.path {run.model}")


class RewardLoop(SupervisedLoop):
    """Supervised training whose model is a classifier."""

    model_folder: ClassVar[str] = model_folder("reward")
    headline: ClassVar[tuple[str, ...]] = (LOSS, VALIDATION_LOSS, VALIDATION_ACCURACY)


class RewardTrainer:
    """Trains a reward model on preferences and saves it as …ForSequenceClassification.

    Settings are checked here; the data and the model when `train` is called. Everything that is not passed comes from
    `config`.

    Args:
        model: What it begins with: a folder, a name on the Hugging Face hub, a transformers model (with `tokenizer`)
            or a `LanguageModel`: a language model, whose trunk gets a new head, or a classifier. A loaded one is
            trained in place. With `config.scratch.type` a new model is made instead.
        train: Records with a prompt and two completions, chosen and rejected (fields: the section `text`), as texts
            or messages. Or the path of a file of these.
        config: The settings.
        tokenizer: The tokenizer of a transformers model.
        validation: Held-out records; None: `config.text.validation_share` of the prompts are set aside.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `model` is nothing that can be a model.
        DataError: `train` or `validation` is nothing that can be records.
    """

    @checked("train", "config", "validation", "callbacks")
    def __init__(
        self,
        model: Any = None,
        train: Iterable[Any] | str | Path | None = None,
        config: RewardConfig | None = None,
        *,
        tokenizer: Any = None,
        validation: Iterable[Any] | str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = settings_or_default(RewardConfig, config)
        self.source = ModelSource(config.model, model, tokenizer)
        text = config.text
        self._training = record_sources(train, text.train, "train", text.chosen_field)
        self._validation = record_sources(validation, text.validation, "validation", text.chosen_field)
        text = replace(
            text, train=list(map(str, self._training)), validation=list(map(str, self._validation))
        )
        config = replace(config, model=self.source.settings, text=text)
        self.config = validate(config, {"model.policy": "model", "text.train": "train"})
        if is_encoder_decoder_type(config.scratch.type):
            raise ConfigError(
                f"scratch.type = {config.scratch.type}: only a decoder can be made new; set model.policy"
            )
        if self.source.in_memory and config.ensemble.size > 1:
            raise ConfigError("ensemble.size: a loaded model is only one to begin with; pass its folder")
        self._callbacks = Callbacks(callbacks)
        in_memory = [isinstance(source, InMemoryRecords) for source in (*self._training, *self._validation)]
        self._in_python = any(in_memory) or self.source.in_memory

    def train(self) -> Run:
        """Train, keep the weights with the best validation loss, and write model and report to the run's folder.

        Raises:
            UserError: The data or the model cannot be used, or the run cannot continue.
            StoppedBySignalError: A signal has ended the run; its newest step is saved.
        """
        with self.source.lent():
            return self._train()

    def _train(self) -> Run:
        config = self.config
        check_run_folder(config.run)
        skipped = Skipped(config.text.on_bad_record == "skip")
        members = [self._member(skipped, i) for i in range(config.ensemble.size)]
        model = members[0]
        for member in members:
            carry_template(member.tokenizer, config.text.chat_template)
        reading = ComparisonTokens(model, config.text, skipped)
        groups, places = list[str](), list[str]()
        every = LabelledTexts.of(_noted(reading.read(self._training), groups, places), 2)
        if self._validation:
            rows, places = list(range(len(every))), []
            held_out = LabelledTexts.of(_noted(reading.read(self._validation), [], places), 2)
            training, validation = every.select(rows), held_out.select(list(range(len(held_out))))
        else:
            parts = self.split(groups)
            training, validation = map(every.select, parts)
            places = [places[i] for i in parts[1]]
        held = HeldOut(config, self._training, self._validation, places)
        held.check()
        objective = RewardObjective(model, training, validation, config.objective)
        if len(members) > 1:
            seed, average = config.run.seed, config.ensemble.save == "average"
            objective = EnsembleObjective(
                members,
                training,
                validation,
                config.objective,
                seed if config.ensemble.bagging else None,
                average,
            )
        sources: dict[str, Source | ModelSource] = {
            f"text.train[{i}]": source for i, source in enumerate(self._training)
        }
        sources |= {f"text.validation[{i}]": source for i, source in enumerate(self._validation)}
        return run_supervised(
            "reward",
            config,
            objective,
            model.network,
            skipped,
            self._callbacks,
            self._in_python,
            sources,
            RewardLoop,
            after=lambda folder: held.judge(folder, reading.limit),
        )

    def split(self, groups: Sequence[str]) -> tuple[list[int], list[int]]:
        """Which of the comparisons are for training and for validation."""
        return split_by_prompt(groups, self.config.text.validation_share, self.config.run.seed)

    def _member(self, skipped: Skipped, number: int) -> Classifier:
        """A model of an ensemble at its start; the first one is what a run without one begins with."""
        seed = self.config.run.seed
        with seeded_weights(derive_seed(seed, Purpose.MEMBER, number) if number else seed):
            return self._model(skipped)

    def _model(self, skipped: Skipped) -> Classifier:
        """The classifier at its start."""
        config = self.config
        if not config.scratch.type:
            return load_classifier(self.source)
        tokenizer = self._new_tokenizer(skipped)
        return classifier_of_language_model(
            build_language_model(config.scratch, tokenizer, config.model, "scratch"), config.model
        )

    def _new_tokenizer(self, skipped: Skipped) -> Any:
        """That of the run to resume, or one trained on the texts that are not held out."""
        config = self.config
        if config.run.resume:
            below = f"/{MEMBER}1" if config.ensemble.size > 1 else ""
            return tokenizer_to_resume(config.run, model_folder("reward") + below)
        held_out: set[int] = set()
        groups = list[str]()
        if not self._validation:
            groups = [found.group for _, found in comparisons(config.text, self._training, skipped)]
            held_out.update(self.split(groups)[1])
        found = enumerate(comparisons(config.text, self._training, skipped))
        texts = (
            part
            for i, (_, comparison) in found
            if i not in held_out
            for part in (comparison.chosen.prompt, *(side.text for side in comparison.sides))
        )
        return train_tokenizer(texts, config.scratch.vocabulary, config.scratch.context)


def _noted(
    found: Iterator[tuple[Comparison, list[list[int]]]], groups: list[str], places: list[str]
) -> Iterator[tuple[list[list[int]], tuple[float]]]:
    """The texts and the margin of each comparison, whose group and place are noted."""
    for comparison, texts in found:
        places.append(comparison.where)
        groups.append(comparison.group)
        yield texts, (comparison.margin,)
