"""Writing a checkpoint in a thread, beside the steps after it (`run.asynchronous_save`)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from proxlm.threads import SLICE_SECONDS, Worker

# How long to wait for a writer that is given up: it notices when the file it is writing is written.
LEAVE_SECONDS = 2.0


class BackgroundSave:
    """Writes one checkpoint at a time in a thread. What goes wrong there is raised by `finish`, in the main thread.

    Attributes:
        step: Of the checkpoint that was begun last.
    """

    def __init__(self) -> None:
        self.step = 0
        self._copies: dict[str, Tensor] = {}
        self._worker: Worker | None = None
        self._written: Future[Path] | None = None  # of the checkpoint that was begun and not finished

    @torch.no_grad()
    def copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, in main memory, where the next save's will be put in their place.

        Args:
            tensors: By name. The dict is emptied on the way, so that what it alone holds is freed.
        """
        copies, self._copies = self._copies, {}
        for name in list(tensors):
            tensor, copy = tensors.pop(name), copies.pop(name, None)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._copies[name] = copy.copy_(tensor)
        return self._copies

    def begin(self, step: int, write: Callable[[], Path]) -> None:
        """Call write(), which returns the checkpoint's folder, in the thread. The one before must be finished."""
        worker = self._worker = self._worker or Worker("proxlm-checkpoint")
        self.step, self._written = step, Future()
        worker.do(partial(_write, write, self._written))

    @property
    def in_progress(self) -> bool:
        """Whether a checkpoint was begun and not finished."""
        return self._written is not None

    @property
    def ready(self) -> bool:
        """Whether `finish` would not wait."""
        return self._written is not None and self._written.done()

    def finish(self) -> Path:
        """Wait for the checkpoint that was begun; its folder. Raises what writing it has raised."""
        assert self._written is not None
        try:
            while not wait([self._written], SLICE_SECONDS).done:
                pass
        except BaseException:
            self.give_up()
            raise
        written, self._written = self._written, None
        return written.result()

    def give_up(self) -> None:
        """Leave the checkpoint that is being written, if one is, and remove its incomplete folder.

        One that the thread has not begun is left as it is, and removed before the next is written.
        """
        written, self._written = self._written, None
        worker, self._worker = self._worker, None
        if written is not None and worker is not None and not written.cancel():
            worker.give_up()
            wait([written], LEAVE_SECONDS)


def _write(write: Callable[[], Path], written: Future[Path]) -> None:
    try:
        if written.set_running_or_notify_cancel():  # not given up before it has begun
            written.set_result(write())
    except BaseException as error:  # whatever it is, it ends the run, in the main thread
        written.set_exception(error)
