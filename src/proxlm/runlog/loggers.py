"""Where a run's numbers go besides its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from proxlm.config import RunSettings
from proxlm.errors import RunError
from proxlm.runlog.folder import write_atomic
from proxlm.text import headline, system_reason


class Loggers:
    """The loggers that a run's settings ask for; a context manager.

    Args:
        folder: the run's folder.
        run: the [run] section of its settings.
        start_step: the step of the checkpoint that the run is resumed from; 0: a new run.

    Raises:
        RunError: on entering, a logger cannot be opened.
    """

    def __init__(self, folder: Path, run: RunSettings, start_step: int) -> None:
        self.folder, self.run, self.start_step = folder, run, start_step
        self._open: list[TensorBoard | WeightsAndBiases] = []

    def __enter__(self) -> Self:
        try:
            if self.run.wandb:
                self._open.append(WeightsAndBiases(self.folder, self.run.wandb))
            if self.run.tensorboard:
                self._open.append(TensorBoard(self.folder, self.start_step))
        except RunError:
            self._close(failed=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(failed=kind is not None)

    def _close(self, failed: bool) -> None:
        for logger in self._open:
            logger.close(failed)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send one step's finite numbers to all of them."""
        for logger in self._open:
            logger.log(step, values)


class TensorBoard:
    """Events in the run's tensorboard/. Steps after `start_step`, of a run that is resumed, are dropped."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / "tensorboard"
        try:
            self._writer = SummaryWriter(str(self.folder), purge_step=start_step + 1 if start_step else None)
        except OSError as error:
            raise self._problem(error) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's finite numbers. Raises RunError."""
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise self._problem(error) from error

    def close(self, failed: bool) -> None:
        """Bring the events to the disk. Raises RunError, unless the run has failed already."""
        try:
            self._writer.close()
        except OSError as error:
            if not failed:
                raise self._problem(error) from error

    def _problem(self, error: OSError) -> RunError:
        return RunError(f"{self.folder}: cannot be written: {system_reason(error)}")


class WeightsAndBiases:
    """A run of `project` at Weights & Biases; the same one again when the folder's run is resumed."""

    def __init__(self, folder: Path, project: str) -> None:
        import wandb

        settings, id_file = folder / "config.toml", folder / "wandb.id"
        if not id_file.exists():
            write_atomic(id_file, uuid.uuid4().hex)
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                dir=str(folder),
                config=tomllib.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {},
            )
        except Exception as error:  # its own kinds, for no login and no network among others
            advice = "log in, set WANDB_MODE=offline, or leave it empty"
            raise RunError(f"run.wandb = {project}: {headline(error)}; {advice}") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send one step's finite numbers."""
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        """Say how the run ended."""
        self._run.finish(exit_code=int(failed))


def check_loggers(run: RunSettings) -> None:
    """Raise RunError if the package of a logger that is asked for is not installed."""
    asked = {"wandb": (run.wandb, "leave it empty"), "tensorboard": (run.tensorboard, "leave it out")}
    for name, (value, otherwise) in asked.items():
        if value and importlib.util.find_spec(name) is None:
            advice = f"pip install proxlm[{name}], or {otherwise}"
            raise RunError(f"run.{name} is set, and the package {name} is not installed: {advice}")
