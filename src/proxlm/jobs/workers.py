"""Processes that work on the same folder at the same time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from proxlm.errors import RunError, StoppedBySignalError, UserError


def run_workers(work: Callable[[Any], None], config: Any, count: int) -> None:
    """Run `work(config)` in new processes until all have ended. What each prints is in worker-N.log of config.folder.

    Raises:
        RunError: All of them ended with an error; what one of several could not do is left for the caller.
    """
    context = get_context("spawn")
    logs = [Path(config.folder) / f"worker-{i + 1}.log" for i in range(count)]
    processes = [context.Process(target=_run, args=(work, config, log)) for log in logs]
    print(f"{count} workers; what they print is in {logs[0].parent}/worker-N.log", flush=True)
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
    failed = [i for i, process in enumerate(processes) if process.exitcode]
    if len(failed) == count:
        raise RunError(f"all {count} workers ended with an error; see {logs[failed[0]]}")
    for i in failed:
        print(f"note: worker {i + 1} ended with status {processes[i].exitcode}; see {logs[i]}", flush=True)


def _run(work: Callable[[Any], None], config: Any, log: Path) -> None:
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            work(config)
        except UserError as error:
            print(f"proxlm: error: {error}", flush=True)
            sys.exit(2)
        except StoppedBySignalError as stopped:
            print(f"proxlm: {stopped}", flush=True)
            sys.exit(128 + stopped.signal)
