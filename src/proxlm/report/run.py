"""A run's folder as an object: metrics as columns, samples, evaluations, a data frame, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxlm.config.from_run import kept_models
from proxlm.config.paths import home_expanded
from proxlm.config.signature import checked
from proxlm.errors import RunError
from proxlm.evaluation.results import Chosen, Evaluation, chosen_from_json, evaluation_from_json
from proxlm.report.evaluation_files import read_responses
from proxlm.report.run_data import read_run
from proxlm.runlog.saved_settings import RunConfig, model_folder

# What `Run.plot` shows if nothing else is asked for.
_MAIN_METRICS: Mapping[str, Sequence[str]] = {
    "ppo": ("reward", "kl", "entropy"),
    "value": ("value_loss", "explained_variance"),
    "sft": ("loss", "validation_loss"),
    "reward": ("validation_loss", "validation_accuracy"),
    "dpo": ("validation_loss", "validation_accuracy"),
    "distill": ("validation_loss", "validation_agreement"),
    "pretrain": ("loss", "validation_loss"),
    "control": ("episode_return", "entropy"),
}


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it, finished or not; `load_run` reads one.

    Attributes:
        folder: Where the run is.
        job: "ppo", "value", "sft", "reward", "dpo", "distill", "pretrain" or "control".
        config: The settings of config.toml; None if they are of another version.
        metrics: Columns by name, all of one length, a row a step; None where a step lacks a metric or its value was
            not finite. "step" and "time" (seconds since the start) are columns, too.
        samples: Sampled responses with per-token numbers, as the rows of samples.jsonl.
        evaluations: Results on held-out prompts by name: "before" and "after" of a finished PPO run, and "best" of
            the model that `run.keep_best` has kept, with random numbers of its own.
        chosen: By what that model was chosen; None: none was.
    """

    folder: Path
    job: str
    config: RunConfig | None
    metrics: dict[str, list[float | None]]
    samples: list[dict[str, Any]]
    evaluations: dict[str, Evaluation]
    chosen: Chosen | None = None

    def __repr__(self) -> str:
        steps = len(self.metrics.get("step", ()))
        found = list(self.evaluations)
        return f"Run(folder={str(self.folder)!r}, job={self.job!r}, steps={steps}, evaluations={found})"

    @property
    def model(self) -> Path:
        """The folder of the trained model, in Hugging Face format.

        Of control: its policy; of value: the critic; of reward: the reward model.
        """
        return self.folder / model_folder(self.job)

    @property
    def best_model(self) -> Path | None:
        """The folder of the best step's model so far, of `run.keep_best`; None: there is none."""
        kept = kept_models(self.folder)
        return kept[-1] if kept else None

    @property
    def before(self) -> Evaluation | None:
        """The model at the start on held-out prompts; None if there were none."""
        return self.evaluations.get("before")

    @property
    def after(self) -> Evaluation | None:
        """The trained model on the same prompts; None if there were none, or the run has not finished."""
        return self.evaluations.get("after")

    @property
    def best(self) -> Evaluation | None:
        """The best step's model on the same prompts, evaluated again; None if there is none."""
        return self.evaluations.get("best")

    def verify(self) -> list[str]:
        """What is wrong with the folder now, a line for each finding; empty: nothing.

        Inputs, checkpoints, rows and model are read again and compared with what was recorded, as by `proxlm verify`.

        Raises:
            RunError: The folder is not a run's any more.
        """
        from proxlm.report.verify import verify_run

        return verify_run(self.folder)

    def to_pandas(self) -> Any:
        """The metrics as a pandas.DataFrame, a row a step, indexed by step.

        Raises:
            RunError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise RunError('Run.to_pandas needs pandas: pip install "proxlm[pandas]"') from error
        return pandas.DataFrame(self.metrics).set_index("step")

    def plot(self, *names: str) -> Any:
        """A plotly Figure of metrics over steps.

        Args:
            *names: Metrics; none: the main ones of the job.

        Raises:
            RunError: The run has no metric of that name, or plotly is not installed.
        """
        try:
            from plotly import graph_objects
        except ImportError as error:
            raise RunError('Run.plot needs plotly: pip install "proxlm[plot]"') from error

        figure = graph_objects.Figure()
        for name in names or [name for name in _MAIN_METRICS.get(self.job, ()) if name in self.metrics]:
            if name not in self.metrics:
                raise RunError(
                    f'{self.folder}: no metric "{name}"; there are {", ".join(sorted(self.metrics))}'
                )
            figure.add_scatter(x=self.metrics["step"], y=self.metrics[name], name=name, mode="lines")
        figure.update_layout(title=self.folder.name, xaxis_title="step")
        return figure


@checked()
def load_run(folder: str | Path) -> Run:
    """Read a run's folder, of a finished run or of one that is still in progress.

    Raises:
        RunError: It is not a run's folder, or a file in it is damaged; the message names the file and the line.
    """
    path = Path(home_expanded(str(folder)))
    data = read_run(path)
    names = dict.fromkeys(name for row in data.metrics for name in row)
    found = evaluation_from_json(data.evaluation) if data.evaluation is not None else []
    return Run(
        folder=path,
        job=data.job,
        config=data.config,
        metrics={name: [row.get(name) for row in data.metrics] for name in names},
        samples=data.samples,
        evaluations={e.name: replace(e, responses=read_responses(path, e.name)) for e in found},
        chosen=chosen_from_json(data.evaluation) if data.evaluation is not None else None,
    )
