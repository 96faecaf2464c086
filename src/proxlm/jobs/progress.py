"""How far a job is, on one line of the terminal."""

from __future__ import annotations

import sys

from proxlm.runlog.output import terminal_of
from proxlm.types import Progress


def progress_line(what: str) -> Progress:
    """Shows "what done/total" on standard error, in place, where that is a terminal."""

    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done != shown and sys.stderr.isatty():
            shown, end = done, "\r\033[K" if done == total else ""
            print(f"\r{what} {done}/{total}", end=end, file=terminal_of(sys.stderr), flush=True)

    return show
