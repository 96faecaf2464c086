"""Whether a run's folder is what the run wrote, and its inputs are what it read: every finding in a line.

Everything is read again, so it takes as long as reading the checkpoints and the inputs once. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from proxlm.checkpoint import (
    best_folder,
    changed_rows,
    check_settings,
    checkpoint_problem,
    checkpoints,
    damage_of,
    folder_name,
    leftovers,
    read_manifest,
    read_state,
)
from proxlm.checkpoint.manifest import file_record, read_json_object
from proxlm.config import ControlConfig, PPOConfig
from proxlm.config.from_run import BEST, kept_models
from proxlm.control.loop import ControlState, ppo_steps
from proxlm.data.inputs import FILE_NAME, inputs_of, read_inputs
from proxlm.errors import RunError
from proxlm.report.evaluation_files import NAME as EVALUATION
from proxlm.report.evaluation_files import changed_evaluations
from proxlm.report.run_data import Row, read_evaluation, read_metrics, read_samples
from proxlm.runlog.lock import is_held
from proxlm.runlog.metric_names import STEP
from proxlm.runlog.rows import METRICS, SAMPLES, steps_of
from proxlm.runlog.saved_settings import RunConfig, model_folder, read_saved_settings
from proxlm.text import system_reason
from proxlm.train.common.run_loop import LoopState
from proxlm.train.ppo.state import PPOState
from proxlm.train.supervised.loop import SupervisedState

T = TypeVar("T")
_STATES: dict[str, type[LoopState]] = {
    "ppo": PPOState,
    "value": PPOState,
    "sft": SupervisedState,
    "reward": SupervisedState,
    "dpo": SupervisedState,
    "distill": SupervisedState,
    "pretrain": SupervisedState,
    "control": ControlState,
}


def verify_run(folder: Path) -> list[str]:
    """What is wrong with a run, a line for each finding; empty: nothing.

    The inputs against the hashes in inputs.json, every checkpoint against its manifest, its name, the ranges of its
    state and the run's settings, the rows against the checkpoints' counts, evaluation.json, the published model
    against its checkpoint, and what a crash has left. Of a run that is in progress, leftovers and the newest rows are
    not judged.

    Raises:
        RunError: The folder is not a run's.
    """
    saved = read_saved_settings(folder)
    return _Verification(folder, saved.job, saved.config, saved.problem).findings()


class _Verification:
    """The checks of one run's folder, and what they have found."""

    def __init__(self, folder: Path, job: str, config: RunConfig | None, problem: str) -> None:
        self.folder, self.job, self.config = folder, job, config
        self.running = is_held(folder)
        self.found: list[str] = [problem] if problem else []
        self.states: dict[Path, dict[str, Any]] = {}  # of whole checkpoints, oldest first

    def findings(self) -> list[str]:
        self._checkpoints()
        self._inputs()
        self._rows()
        self._evaluation()
        self._policy()
        self._best()
        if not self.running:
            for place in (self.folder, self.folder / "checkpoints", self.folder / BEST):
                self._add(
                    f"{left}: left by a run that was killed; a resume removes it" for left in leftovers(place)
                )
        return self.found

    def _add(self, lines: Iterable[str]) -> None:
        self.found += lines

    def _try(self, check: Callable[[], T]) -> T | None:
        """What the check returns; what it raises becomes a finding."""
        try:
            return check()
        except RunError as error:
            self.found.append(str(error))
        except OSError as error:
            self.found.append(f"{error.filename or self.folder}: cannot be read: {system_reason(error)}")
        return None

    def _checkpoints(self) -> None:
        every = checkpoints(self.folder)
        if not every and not self.running:
            self.found.append(f"{self.folder}: no complete checkpoint")
        for folder in every:
            problem = checkpoint_problem(folder)
            if problem is None:
                self.states[folder] = read_json_object(folder / "state.json")
                self._try(partial(self._state, folder, self.states[folder]))
            elif folder.exists():  # a run in progress may have deleted it meanwhile
                self.found.append(f"{folder}: {problem}")

    def _state(self, folder: Path, saved: dict[str, Any]) -> None:
        if self.job in _STATES:
            read_state(_STATES[self.job], folder, saved)
        self._add(f"{folder}: {change}" for change in changed_rows(folder, saved))
        if self.config is not None:
            check_settings(folder, saved.get("settings"), self.config)

    def _inputs(self) -> None:
        recorded = self._try(lambda: read_inputs(self.folder))
        if recorded is None:
            if not (self.folder / FILE_NAME).exists():
                self.found.append(f"{self.folder / FILE_NAME}: missing: the run's inputs cannot be compared")
            return
        if self.config is not None:
            # Records that a Python caller passed cannot be looked at here, nor is a file meant that has their label.
            on_disk = recorded.on_disk()
            passed = recorded.files.keys() - on_disk.files.keys()
            now = inputs_of(self.config).without(passed)
            self._add(now.changes(self.folder, on_disk.digests()))
        newest = next(reversed(self.states), None)
        if newest is not None:
            then = self.states[newest].get("inputs")
            if then is not None and then != recorded.digests():
                self.found.append(
                    f"{self.folder / FILE_NAME}: not the inputs that {newest.name} was made with"
                )

    def _rows(self) -> None:
        metrics, samples = self.folder / METRICS, self.folder / SAMPLES
        if metrics.exists():
            self._try(lambda: read_metrics(metrics))
            steps = self._try(lambda: list(steps_of(metrics, several=False))) or []
            missing = sorted(set(range(1, max(steps, default=0) + 1)) - set(steps))
            if missing:
                self.found.append(f"{metrics}: no row of {STEP} {missing[0]}")
        elif self.states:
            self.found.append(f"{metrics}: missing")
        if samples.exists():
            self._try(lambda: read_samples(samples))
            self._try(lambda: list(steps_of(samples, several=True)))

    def _evaluation(self) -> None:
        path = self.folder / EVALUATION
        if path.exists():
            content: Row | None = self._try(lambda: read_evaluation(path))
            if content is not None and not self.running:
                self._add(self._try(lambda: changed_evaluations(self.folder, content)) or [])
        elif (
            self.states
            and self.job in ("ppo", "value")
            and isinstance(self.config, PPOConfig)
            and self.config.data.eval_count
        ):
            self.found.append(f"{path}: missing")

    def _best(self) -> None:
        """The kept models: whole, and those that the checkpoints name."""
        keeps = self.config is not None and bool(self.config.best_metric())
        named = {state.get("best_step", 0) for state in self.states.values()} - {0} if keeps else set()
        there = kept_models(self.folder)
        for folder in there:
            if (problem := damage_of(folder)) is not None and folder.exists():
                self.found.append(problem)
        if self.running:
            return
        wanted = {best_folder(self.folder, step) for step in named}
        self._add(f"{folder}: missing" for folder in sorted(wanted - {*there}))
        if self.states:
            self._add(
                f"{folder}: no checkpoint names it as the best; a resume removes it"
                for folder in there
                if folder not in wanted
            )

    def _policy(self) -> None:
        """Compare the published model with the checkpoint that it is the model of, if that is still there."""
        source = self._source_of_policy()
        if source is None:
            return
        model = model_folder(self.job)
        policy = self.folder / model
        if not policy.is_dir():
            self.found.append(
                f"{policy}: missing: the run was stopped after its last step; a resume finishes it"
            )
            return
        wanted = {
            name.removeprefix(f"{model}/"): record
            for name, record in read_manifest(source).items()
            if name.startswith(f"{model}/")
        }
        for name, record in wanted.items():
            path = policy / name
            if not path.is_file():
                self.found.append(f"{path}: missing")
            elif self._try(partial(file_record, path)) not in (record, None):
                self.found.append(f"{path}: not what {source.name} holds")
        for path in sorted(policy.rglob("*")):
            if not path.is_dir() and path.relative_to(policy).as_posix() not in wanted:
                self.found.append(f"{path}: not written by the run")

    def _source_of_policy(self) -> Path | None:
        """The whole checkpoint whose model policy/ must be; None: unknown."""
        newest = next(reversed(self.states), None)
        if newest is None or self.running or self.config is None:
            return None
        state = self.states[newest]
        if isinstance(self.config, PPOConfig):
            return newest if state["step"] >= self.config.ppo.steps else None
        if isinstance(self.config, ControlConfig):
            return newest if state["step"] >= ppo_steps(self.config) else None
        # The best validation's, which may be newer than the newest checkpoint if there are more rows.
        best = self.folder / "checkpoints" / folder_name(int(state.get("best_step", 0)))
        return best if best in self.states and self._last_row() == state["step"] else None

    def _last_row(self) -> int:
        """The step of the last row of metrics.jsonl; 0: there is none, or none that can be read."""
        try:
            return max(steps_of(self.folder / METRICS, several=False), default=0)
        except RunError:
            return 0
