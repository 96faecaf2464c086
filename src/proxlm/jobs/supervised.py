"""What pretraining and supervised fine-tuning share: the run's folder, training, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from proxlm.checkpoint import newest_checkpoint
from proxlm.config import PretrainConfig, RunSettings, SFTConfig, SupervisedSettings, TextSettings
from proxlm.config.early_stopping import is_lowest_best
from proxlm.config.mixture import shares_of, source_names
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import load_tokenizer
from proxlm.distributed.ranks import ONE_PROCESS, Ranks, made_on_all
from proxlm.engine.agreement import check_engine
from proxlm.errors import DataError
from proxlm.jobs.run_folder import begin_run, check_run_folder, run_folder
from proxlm.models.agreement import check_gradients
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.report.page import write_report
from proxlm.report.run import Run, load_run
from proxlm.runlog.folder import folder_to_resume
from proxlm.runlog.metric_names import AVERAGE, VALIDATION_LOSS
from proxlm.runlog.run_log import RunLog
from proxlm.train.common.callbacks import Callbacks
from proxlm.train.common.schedules import warmup_note
from proxlm.train.supervised.batches import Mixture
from proxlm.train.supervised.dropout import Dropout
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.loop import SupervisedConfig, SupervisedLoop
from proxlm.train.supervised.objective import LanguageModelObjective, Objective

T = TypeVar("T")


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
    for examples in (training, validation):
        model.check_tokens("the records", examples.tokens)
    check_engine(model)  # what is trained here is generated from later
    check_gradients(model)
    dropout = Dropout([model.network], config.train.dropout, config.run.seed)
    return LanguageModelObjective(model, training, validation, config.loss, validation_sources, dropout)


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


def run_supervised(
    job: str,
    config: SupervisedConfig,
    objective: Objective,
    network: Any,
    skipped: Skipped,
    callbacks: Callbacks,
    in_python: bool = False,
    sources: Mapping[str, Source | ModelSource] | None = None,
    loop_type: type[SupervisedLoop] = SupervisedLoop,
    after: Callable[[Path], None] = lambda _folder: None,
    mixture: Mixture | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Run:
    """Minimise an objective, in the run's folder, and write the report.

    Args: see `train_in_folder`.

    Raises:
        UserError: See `SupervisedLoop.train`.
    """
    with run_folder(config, job, in_python, ranks) as folder:
        return train_in_folder(
            folder,
            job,
            config,
            objective,
            network,
            skipped,
            callbacks,
            in_python,
            sources,
            loop_type,
            after,
            mixture,
            ranks,
        )


def train_in_folder(
    folder: Path,
    job: str,
    config: SupervisedConfig,
    objective: Objective,
    network: Any,
    skipped: Skipped,
    callbacks: Callbacks,
    in_python: bool = False,
    sources: Mapping[str, Source | ModelSource] | None = None,
    loop_type: type[SupervisedLoop] = SupervisedLoop,
    after: Callable[[Path], None] = lambda _folder: None,
    mixture: Mixture | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Run:
    """Minimise an objective in a run's folder that is open, and write the report.

    Args:
        folder: The run's folder.
        job: The command's name.
        config: Its settings.
        objective: The model, its data and its loss.
        network: The model, for the number of its parameters.
        skipped: The records that were left out, for the run's folder.
        callbacks: Called at the events of the loop.
        in_python: See `RunLog`.
        sources: See `begin_run`.
        loop_type: Its loop.
        after: Called with the run's folder when the loop has ended, before the report is written.
        mixture: The sources of the training rows; None: there is one.
        ranks: The processes that train together; only rank 0 uses the folder, the callbacks and `after`.

    Raises:
        UserError: See `SupervisedLoop.train`.
    """
    loop = loop_type(objective, config, folder, mixture, ranks)
    if ranks.rank > 0:
        run: Run = loop.follow()
        return run
    loop.callbacks = callbacks.fresh()

    def lead() -> Run:
        _announce(config, objective, network, skipped)
        skipped.save(folder)
        begin_run(config, loop, sources)
        loop.synchronise()
        with RunLog(
            folder,
            job,
            config.train.steps,
            config.run,
            loop.state.step,
            headline=loop.headline,
            limit_seconds=max(0.0, config.train.minutes * 60 - loop.state.seconds),
            in_python=in_python,
            on_phase=ranks.phase,
        ) as log:
            loop.train(log)
        after(folder)
        if config.run.report:
            write_report(folder)
        return load_run(folder)

    return ranks.broadcast(lead)


def _announce(config: SupervisedConfig, objective: Objective, network: Any, skipped: Skipped) -> None:
    """Print how large the model and the data are."""
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
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
