"""What the trainers of pretrain, sft, reward, dpo and distill share: arguments, the run's folder, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from proxlm.checkpoint import newest_checkpoint
from proxlm.config import (
    DistillConfig,
    DPOConfig,
    PretrainConfig,
    RewardConfig,
    RunSettings,
    SFTConfig,
    SupervisedSettings,
    TextSettings,
    settings_or_default,
    validate,
)
from proxlm.config.early_stopping import is_lowest_best
from proxlm.config.mixture import shares_of, source_names
from proxlm.config.signature import checked
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import load_tokenizer
from proxlm.distributed.launch import joined_ranks
from proxlm.distributed.ranks import Ranks, made_on_all
from proxlm.engine.agreement import check_engine
from proxlm.errors import DataError
from proxlm.jobs.in_memory import GivenRecords
from proxlm.jobs.run_folder import begin_run, check_run_folder, run_folder
from proxlm.models.agreement import check_gradients
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.report.page import write_report
from proxlm.report.run import Run, load_run
from proxlm.runlog.folder import folder_to_resume
from proxlm.runlog.metric_names import AVERAGE, VALIDATION_LOSS
from proxlm.runlog.run_log import RunLog
from proxlm.train.common.callbacks import Callback, Callbacks
from proxlm.train.common.schedules import warmup_note
from proxlm.train.supervised.batches import Mixture
from proxlm.train.supervised.dropout import Dropout
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.loop import SupervisedConfig, SupervisedLoop
from proxlm.train.supervised.objective import LanguageModelObjective, Objective

T = TypeVar("T")
C = TypeVar("C", PretrainConfig, SFTConfig, RewardConfig, DPOConfig, DistillConfig)


def language_model_objective(
    config: PretrainConfig | SFTConfig,
    model: LanguageModel,
    training: Examples,
    validation: Examples,
    validation_sources: Sequence[str] = (),
) -> LanguageModelObjective:
    """What a model and examples are to learn, once model and tokens were checked.

    Args:
        config: The job's settings.
        model: Trained in place.
        training: The examples to learn.
        validation: The examples that choose the best weights.
        validation_sources: The names of the sources of `validation`, of a mixture.

    Raises:
        ModelError: The model cannot be trained, or not generated from.
        ConfigError: It is not known where its type has dropout.
    """
    check_to_train(model, training, validation)
    dropout = Dropout([model.network], config.train.dropout, config.run.seed)
    return LanguageModelObjective(model, training, validation, config.loss, validation_sources, dropout)


def check_to_train(model: LanguageModel, *parts: Examples, what: str = "the records") -> None:
    """Raise ModelError if a model cannot be trained on examples, called `what`, or not generated from."""
    for part in parts:
        model.check_tokens(what, part.tokens)
    check_engine(model)  # what is trained here is generated from later
    check_gradients(model)


def mixture_of(text: TextSettings, training: Examples) -> Mixture | None:
    """The sources of the training rows with their shares of the tokens; None: there is no mixture.

    Raises:
        DataError: A source has no row to learn.
    """
    if training.sources is None:
        return None
    names = source_names(text.train)
    tokens = [int(training.lengths[training.sources == i].sum()) for i in range(len(names))]
    if 0 in tokens:
        raise DataError(f"text.train: {names[tokens.index(0)]} has no record to learn from; leave it out")
    shares = shares_of(text, tokens)
    print(
        "mixture: "
        + ", ".join(
            f"{name} {share:.1%} of the tokens learnt, {count:,} there"
            for name, share, count in zip(names, shares, tokens, strict=True)
        ),
        flush=True,
    )
    return Mixture(tuple(names), training.sources, tuple(shares))


def made_for_run(ranks: Ranks, run: RunSettings, make: Callable[[], T]) -> T:
    """What `make`, which must not communicate, returns on each rank, once rank 0 has looked at the run's folder.

    Raises:
        UserError: See `check_run_folder` and `made_on_all`.
    """

    def made() -> T:
        if ranks.rank == 0:
            check_run_folder(run)
        return make()

    return made_on_all(ranks, made)


class SupervisedTrainer(Generic[C]):
    """A job that trains one model on examples.

    Attributes:
        config: Its settings, checked.
        source: The model.
    """

    job: ClassVar[str]
    _loop: ClassVar[type[SupervisedLoop]] = SupervisedLoop

    config: C
    source: ModelSource
    _callbacks: Callbacks
    _in_python: bool

    def train(self) -> Run:
        """Train, keep the weights with the best validation loss, and write model and report to the run's folder.

        Raises:
            UserError: The data or a model cannot be used, or the run cannot continue.
            StoppedBySignalError: A signal has ended the run; its newest step is saved.
        """
        with self.source.lent(), joined_ranks(self.config.distributed.timeout) as ranks:
            return self._train(ranks)

    def _train(self, ranks: Ranks) -> Run:
        raise NotImplementedError

    def _sources(self) -> Mapping[str, Source | ModelSource | None]:
        """What a Python caller may have passed instead of a setting's files, by the setting's key."""
        return {}

    def _folder(self, ranks: Ranks) -> AbstractContextManager[Path]:
        """The run's folder, open; see `run_folder`."""
        return run_folder(self.config, self.job, self._in_python, ranks)

    def _minimise(
        self,
        folder: Path,
        objective: Objective,
        skipped: Skipped,
        ranks: Ranks,
        mixture: Mixture | None = None,
        after: Callable[[Path], None] = lambda _folder: None,
    ) -> Run:
        """Minimise an objective in a run's folder that is open, and write the report.

        Args:
            folder: The run's folder.
            objective: The model, its data and its loss.
            skipped: The records that were left out, for the run's folder.
            ranks: The processes that train together; only rank 0 uses the folder, the callbacks and `after`.
            mixture: The sources of the training rows; None: there is one.
            after: Called with the run's folder when the loop has ended, before the report is written.

        Raises:
            UserError: See `SupervisedLoop.train`.
        """
        config = self.config
        loop = self._loop(objective, config, folder, mixture, ranks)
        if ranks.rank > 0:
            run: Run = loop.follow()
            return run
        loop.callbacks = self._callbacks.fresh()

        def lead() -> Run:
            _announce(config, objective, skipped)
            skipped.save(folder)
            begin_run(config, loop, self._sources())
            loop.synchronise()
            with RunLog(
                folder,
                self.job,
                config.train.steps,
                config.run,
                loop.state.step,
                headline=loop.headline,
                limit_seconds=max(0.0, config.train.minutes * 60 - loop.state.seconds),
                in_python=self._in_python,
                on_phase=ranks.phase,
            ) as log:
                loop.train(log)
            after(folder)
            if config.run.report:
                write_report(folder)
            return load_run(folder)

        return ranks.broadcast(lead)


class RecordsTrainer(SupervisedTrainer[C]):
    """One that trains on records. What the arguments are, each trainer says."""

    _settings: type[C]

    @checked("train", "config", "validation", "callbacks")
    def __init__(
        self,
        model: Any = None,
        train: Iterable[Any] | str | Path | None = None,
        config: C | None = None,
        *,
        tokenizer: Any = None,
        validation: Iterable[Any] | str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = settings_or_default(self._settings, config)
        self.source = ModelSource(config.model, model, tokenizer)
        self._records = GivenRecords.of(train, validation, config.text)
        self._callbacks = Callbacks(callbacks)
        self._in_python = self._records.in_memory or self.source.in_memory
        config = replace(config, model=self.source.settings, text=self._records.named_in(config.text))
        self.config = validate(config, {"model.policy": "model", "text.train": "train"})
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for settings that do not fit what was passed."""

    def _sources(self) -> Mapping[str, Source | ModelSource | None]:
        return self._records.by_setting()


def _announce(config: SupervisedConfig, objective: Objective, skipped: Skipped) -> None:
    """Print how large the model and the data are."""
    parameters = sum(p.numel() for p in objective.model.network.parameters()) / 1e6
    tokens, validation_tokens = (
        int(lengths.sum()) for lengths in (objective.lengths, objective.validation_lengths)
    )
    left_out = f" ({skipped.report()})" if len(skipped) else ""
    print(
        f"{parameters:.2f}M parameters; {tokens:,} tokens to train on, {validation_tokens:,} to validate on"
        f"{left_out}",
        flush=True,
    )
    if note := warmup_note("optim", config.optim, config.train.steps):
        print(f"note: {note}", flush=True)


def best_validation(run: Run) -> tuple[str, float, int]:
    """The metric by which the model was kept, its best value, of plain or averaged weights, and the row of that."""
    metric = getattr(run.config, "train", SupervisedSettings()).early_stopping_metric
    found = [
        (value, row)
        for name in (metric, AVERAGE(metric))
        for row, value in enumerate(run.metrics.get(name, ()))
        if value is not None and run.metrics[VALIDATION_LOSS][row] is not None
    ]
    best, row = (min if is_lowest_best(metric) else max)(found, key=lambda one: one[0])
    return metric, best, row


def tokenizer_to_resume(run: RunSettings, folder: str = "policy") -> Any:
    """The tokenizer of the run to resume; the text that it was trained on may have changed since.

    folder: Of the model in a checkpoint.
    """
    # Damaged checkpoints are reported when the weights are read.
    checkpoint = newest_checkpoint(folder_to_resume(run.folder), on_damaged=lambda _line: None)
    return load_tokenizer(str(checkpoint / folder))


def print_result(run: Run) -> None:
    """Print the best loss, or other metric to stop by, and where everything is."""
    metric, best, row = best_validation(run)
    steps = run.metrics["step"]
    print(f"\nbest {metric.replace('_', ' ')} {best:.4f} at step {steps[row]:.0f} of {steps[-1]:.0f}")
    print(f"model   {run.model}")
    if (run.folder / "report.html").exists():
        print(f"report  {run.folder / 'report.html'}")
