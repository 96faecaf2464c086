"""`proxlm reward`: train a reward model on comparisons, scores, classes or steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from proxlm.config import RewardConfig
from proxlm.data.chat import carry_template
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import tokenizer_of_new_model
from proxlm.distributed.ranks import Ranks
from proxlm.errors import ConfigError
from proxlm.jobs.judge import HeldOut, print_judgement
from proxlm.jobs.judge_labels import HeldOutLabels
from proxlm.jobs.new_models import check_new_model, new_language_model
from proxlm.jobs.reward_records import RewardRecords
from proxlm.jobs.startup import after_restart, seeded_weights, start_job
from proxlm.jobs.supervised import RecordsTrainer, made_for_run, print_result, tokenizer_to_resume
from proxlm.models.classifier import Classifier, classifier_of_language_model, load_classifier
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.report.run import Run
from proxlm.rewards.reward_model import MEMBER, members_of
from proxlm.runlog.metric_names import (
    LOSS,
    VALIDATION_ACCURACY,
    VALIDATION_CORRELATION,
    VALIDATION_LOSS,
)
from proxlm.runlog.saved_settings import model_folder
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.supervised.completion_tokens import CompletionTokens
from proxlm.train.supervised.criteria import criterion_of
from proxlm.train.supervised.dropout import Dropout
from proxlm.train.supervised.ensemble_objective import EnsembleObjective
from proxlm.train.supervised.loop import SupervisedLoop
from proxlm.train.supervised.reward_objective import RewardObjective


def main(config: RewardConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    run = RewardTrainer(config=after_restart(config)).train()
    print_judgement(run)
    print_result(run)
    use = "reward_ensemble" if members_of(run.model) else "reward_model"
    more = " --reward.args.combine sum" if config.ensemble.boosting else ""
    if config.objective.kind == "steps":
        use = "process_reward_model"
    elif config.objective.kind == "classes":
        more += " --reward.args.label CLASS"
    print(f"use it with --reward.use {use} --reward.args.path {run.model}{more}")


class RewardLoop(SupervisedLoop):
    """Supervised training whose model is a classifier."""

    model_folder: ClassVar[str] = model_folder("reward")
    headline: ClassVar[tuple[str, ...]] = (
        LOSS,
        VALIDATION_LOSS,
        VALIDATION_ACCURACY,
        VALIDATION_CORRELATION,
    )


class RewardTrainer(RecordsTrainer[RewardConfig]):
    """Trains a reward model and saves it as …ForSequenceClassification, or of steps as …ForTokenClassification.

    Settings are checked here; the data and the model when `train` is called. Everything that is not passed comes from
    `config`.

    Args:
        model: What it begins with: a folder, a name on the Hugging Face hub, a transformers model (with `tokenizer`)
            or a `LanguageModel`: a language model, whose trunk gets a new head, or a classifier. A loaded one is
            trained in place. With `config.scratch.type` a new model is made instead.
        train: Records with a prompt and two completions, chosen and rejected (fields: the section `text`), as texts
            or messages; or, as `config.objective.kind` says, a response with scores, a class or labels of its steps
            (fields: the section `labels`). Or the path of a file of these.
        config: The settings.
        tokenizer: The tokenizer of a transformers model.
        validation: Held-out records; None: `config.text.validation_share` of the prompts are set aside.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `model` is nothing that can be a model.
        DataError: `train` or `validation` is nothing that can be records.
    """

    job = "reward"
    _settings = RewardConfig
    _loop = RewardLoop

    def _check(self) -> None:
        config = self.config
        if is_encoder_decoder_type(config.scratch.type):
            raise ConfigError(
                f"scratch.type = {config.scratch.type}: only a decoder can be made new; set model.policy"
            )
        if self.source.in_memory and config.ensemble.size > 1:
            raise ConfigError("ensemble.size: a loaded model is only one to begin with; pass its folder")

    def _train(self, ranks: Ranks) -> Run:
        config = self.config
        skipped = Skipped(config.text.on_bad_record == "skip")
        objective, members, judge = made_for_run(ranks, config.run, lambda: self._objective(skipped))
        try:
            with self._folder(ranks) as folder:
                return self._minimise(folder, objective, skipped, ranks, after=judge)
        finally:
            for member in members:
                objective.criterion.finish(member)

    def _objective(
        self, skipped: Skipped
    ) -> tuple[RewardObjective, list[Classifier], Callable[[Path], None]]:
        """What is to be learnt, the models at their start, and what judges them on held-out records at the end."""
        config = self.config
        if config.scratch.type:
            check_new_model(config.scratch, "scratch")
        records = RewardRecords(config, self._records, skipped)
        members = [self._member(records, i) for i in range(config.ensemble.size)]
        if len(members) > 1 and not (config.ensemble.bagging or config.ensemble.boosting):
            _check_that_they_differ(members)
        for member in members:
            carry_template(member.tokenizer, config.text.chat_template)
        records.order_as(members[0])
        separator = config.labels.separator if records.kind == "steps" else ""
        reading = CompletionTokens(members[0], config.text, skipped, separator)
        training, validation = records.texts(reading)
        held = HeldOut(records) if records.kind == "comparisons" else HeldOutLabels(records)
        held.check()
        criterion = criterion_of(config, records.outputs, members, training)
        networks = [member.network for member in members]
        dropout = Dropout(networks, config.train.dropout, config.run.seed)
        objective = RewardObjective(members[0], training, validation, criterion, dropout)
        if len(members) > 1:
            objective = EnsembleObjective(
                members,
                training,
                validation,
                criterion,
                config.ensemble,
                config.run.seed,
                config.train.micro_batch_tokens,
                dropout,
            )
        return objective, members, lambda folder: held.judge(folder, reading.limit)

    def _member(self, records: RewardRecords, number: int) -> Classifier:
        """A model of an ensemble at its start; the first one is what a run without one begins with."""
        seed = self.config.run.seed
        with seeded_weights(derive_seed(seed, Purpose.MEMBER, number) if number else seed):
            return self._model(records)

    def _model(self, records: RewardRecords) -> Classifier:
        """The classifier at its start."""
        config, outputs, per_token = self.config, len(records.outputs), records.kind == "steps"
        if not config.scratch.type:
            return load_classifier(self.source, outputs, per_token)
        if config.run.resume:
            below = f"/{MEMBER}1" if config.ensemble.size > 1 else ""
            tokenizer = tokenizer_to_resume(config.run, model_folder("reward") + below)
        else:
            texts = records.vocabulary_texts()
            remote = config.model.trust_remote_code
            tokenizer = tokenizer_of_new_model("scratch", config.scratch, texts, remote)
        every = replace(config.model, train_layers=0, freeze=[])  # what learns is up to the classifier
        model = new_language_model(
            config.scratch, tokenizer, every, records.vocabulary_texts, config.run.seed, "scratch"
        )
        return classifier_of_language_model(model, config.model, outputs, per_token)


def _check_that_they_differ(members: Sequence[Classifier]) -> None:
    """Members that learn the same rows in the same order must begin with weights of their own."""
    first = dict(members[0].trainable())
    if all(torch.equal(p, first[name]) for member in members[1:] for name, p in member.trainable()):
        raise ConfigError(
            "ensemble.bagging = false: the members begin with the same weights and learn the same records in the same"
            " order, so they would stay equal; set it to true, or begin with new weights ([scratch], or an encoder,"
            " whose head is new)"
        )
