"""What ends a command before it is done: SIGTERM, SIGHUP, Ctrl-C, and an output that nobody takes any more.

There is one mechanism for every phase. Each part of a command that promises something else when it is stopped is a
`StopSignals` context, and the innermost one answers: the whole command (`__main__.py`), a run in its folder
(`jobs/run_folder.py`), and the loop of its steps (`RunLog`), which alone finishes what it is at and saves it.
"""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self, TextIO, cast

from proxlm.distributed.environment import machines, world_size
from proxlm.errors import StoppedBySignalError
from proxlm.runlog.output import GuardedStream
from proxlm.runlog.state import RunState

# SIGPIPE stands for an output that cannot be written; the signal itself, which Python ignores, is never handled.
SIGNAL_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
    signal.SIGPIPE: "a closed output",
}
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Message = Callable[[signal.Signals], str]

# The contexts that are entered, outermost first. Signals belong to the process, and so does this.
_entered: list[StopSignals] = []


class StopSignals:
    """Answers the signals that arrive while this context is the innermost one.

    With `report` the first signal is only remembered (`received`), and a second Ctrl-C raises KeyboardInterrupt. A
    Ctrl-C after which this context ends well is the next one's to report: it lets its block do what belongs to the
    end of a run, and raises StoppedBySignalError then.
    Without `report`, the first one raises StoppedBySignalError at once. A signal that was ignored when the process
    started, as SIGHUP is under nohup, stays ignored, except Ctrl-C by a context with `report`.

    The outermost context also guards standard output and error: an output that is closed or full counts as a signal
    where something can be saved, and nothing is lost but what could not be shown.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        message: what StoppedBySignalError says.
        report: called with a line from inside the signal handler, so it must not print through Python's own streams.
    """

    def __init__(self, message: Message, report: Callable[[str], None] | None = None) -> None:
        self.message, self.report = message, report
        self.received: signal.Signals | None = None
        self._at_the_end: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._streams: tuple[TextIO, TextIO] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if _entered:
            _entered[-1].stop_if_received()
        else:
            self._take_over()
        _entered.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self not in _entered:
            return
        _entered.remove(self)
        if self._streams is not None:
            self._give_back()
        if self.received is None or isinstance(error, KeyboardInterrupt):
            if self._at_the_end is not None and error is None:
                raise StoppedBySignalError(self.message(self._at_the_end), self._at_the_end)
            return
        if self.report is None:
            # The exception was swallowed on its way, or another one took its place.
            raise StoppedBySignalError(self.message(self.received), self.received)
        if error is None and _entered:
            if self.received == signal.SIGINT and _entered[-1].report is None:
                _entered[-1]._at_the_end = self.received
            else:
                _entered[-1].receive(self.received)  # it came after the last step was saved

    def stop_if_received(self) -> None:
        """Raise StoppedBySignalError if a signal has come and its exception was swallowed on its way."""
        if self.received is not None and self.report is None:
            raise StoppedBySignalError(self.message(self.received), self.received)

    def receive(self, number: signal.Signals) -> None:
        """Answer a signal. Raises what the class says."""
        second = _is_second_ctrl_c(number, self.received)
        first, self.received = self.received is None, self.received or number
        if self.report is not None:
            if first:
                name = SIGNAL_NAMES[number]
                after = ", then the end of the run" if number == signal.SIGINT else ""
                self.report(
                    f"{name}: finishing this step and saving it{after}; press Ctrl-C again to stop at once"
                )
            elif second:
                raise KeyboardInterrupt
        # A second signal must not break off what the first one's exception cleans up; Ctrl-C may.
        elif (first or second) and threading.current_thread() is threading.main_thread():
            raise StoppedBySignalError(self.message(number), number)

    def _take_over(self) -> None:
        for number in HANDLED:
            self._before[number] = signal.getsignal(number)
            if number == signal.SIGINT or self._before[number] != signal.SIG_IGN:
                signal.signal(number, self._handle)
        self._streams = sys.stdout, sys.stderr
        sys.stdout = cast(TextIO, GuardedStream(sys.stdout, _output_lost))
        sys.stderr = cast(TextIO, GuardedStream(sys.stderr))

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        assert self._streams is not None
        sys.stdout, sys.stderr = self._streams
        self._streams = None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        innermost = _entered[-1]
        if innermost.report is None and self._before[signal.Signals(number)] == signal.SIG_IGN:
            return
        innermost.receive(signal.Signals(number))


def _is_second_ctrl_c(number: signal.Signals, before: signal.Signals | None) -> bool:
    """Whether a signal that comes after another one stops at once.

    Torchrun's agent passes a second Ctrl-C on to its processes as SIGTERM. SIGINT twice may be one Ctrl-C, which a
    terminal or a scheduler has sent to them as well as to the agent.
    """
    if world_size() > 1:
        return number == signal.SIGTERM and before == signal.SIGINT
    return number == signal.SIGINT and before is not None


def _output_lost(error: OSError) -> None:
    """Standard output cannot be written: a run's loop ends after its step; anything else ends at once."""
    if error.errno == errno.EIO:
        return  # the terminal is gone, and SIGHUP has said so unless the run is to outlive it
    if not _entered:
        raise error
    innermost = _entered[-1]
    if innermost.report is None and error.errno != errno.EPIPE:
        raise error
    innermost.receive(signal.SIGPIPE)


def stopped_message(stop: signal.Signals, state: RunState, folder: Path, in_python: bool) -> str:
    """What is printed when a signal has ended a run's loop: after which step, and how to resume.

    Args:
        in_python: only the same call in Python can resume the run.
    """
    how = _how_to_go_on(state.job, folder, in_python)
    return f"stopped by {SIGNAL_NAMES[stop]} after step {state.step} of {state.total_steps}, saved; {how}"


def stopped_outside_message(stop: signal.Signals, job: str, folder: Path, in_python: bool) -> str:
    """The same for a signal before or after the loop, while the policy is evaluated or published for example."""
    steps = sorted(p.name for p in (folder / "checkpoints").glob("step-*") if p.is_dir())
    name = SIGNAL_NAMES[stop]
    if not steps:
        return f"stopped by {name} before a step was saved; start again with another run.folder than {folder}"
    step = int(steps[-1].removeprefix("step-")) if steps[-1][5:].isdecimal() else steps[-1]
    return f"stopped by {name} after step {step}, saved; {_how_to_go_on(job, folder, in_python)}"


def _how_to_go_on(job: str, folder: Path, in_python: bool) -> str:
    recipe = shlex.quote(str(folder / "config.toml"))
    if in_python:
        return "go on with: the same call and run.resume = true"
    if machines() > 1:
        return "go on with: the same commands and --run.resume true"
    if world_size() > 1:
        return f"go on with: proxlm launch {job} {recipe} --workers {world_size()} --set run.resume=true"
    return f"go on with: proxlm {job} {recipe} --resume"
