"""The command line: `proxlm JOB [recipe.toml] [--section.key value ...]`.

Exit status: 0 done, 1 `proxlm verify` has found something, 2 an error that the user can fix or that the system gave
(one line on stderr; of settings one for each problem), 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 141 the
reader of the output closed it, 75 ended by the watchdog. Every other error is a bug and keeps its traceback.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from proxlm import __version__
from proxlm.config.help import describe, overview
from proxlm.config.parse import load_config
from proxlm.config.recipe import settings_of_recipe
from proxlm.config.recipe_command import RecipeCommand
from proxlm.distributed.environment import rank, world_size
from proxlm.errors import RAISED_ON_RANK_0, ConfigError, RunError, StoppedBySignalError, UserError
from proxlm.runlog.interrupt import SIGNAL_NAMES, StopSignals
from proxlm.runlog.output import discard, open_standard_streams, print_uncaught
from proxlm.system_errors import refused, system_error
from proxlm.text import on_screen

JOB_MODULES = {
    "new": "proxlm.jobs.new:main",
    "check": "proxlm.jobs.check:main",
    "plan": "proxlm.jobs.plan:main",
    "data": "proxlm.jobs.data:main",
    "ppo": "proxlm.jobs.ppo:main",
    "value": "proxlm.jobs.value:main",
    "pretrain": "proxlm.jobs.pretrain:main",
    "tokenizer": "proxlm.jobs.tokenizer:main",
    "probe": "proxlm.jobs.probe:main",
    "sft": "proxlm.jobs.sft:main",
    "reward": "proxlm.jobs.reward:main",
    "classify": "proxlm.jobs.classify:main",
    "dpo": "proxlm.jobs.dpo:main",
    "distill": "proxlm.jobs.distill:main",
    "generate": "proxlm.jobs.generate:main",
    "evaluate": "proxlm.jobs.evaluate:main",
    "compare": "proxlm.jobs.compare:main",
    "search": "proxlm.jobs.search:main",
    "sweep": "proxlm.jobs.sweep:main",
    "folds": "proxlm.jobs.folds:main",
    "compress": "proxlm.jobs.compress:main",
    "export": "proxlm.jobs.export:main",
    "launch": "proxlm.jobs.launch:main",
    "control": "proxlm.jobs.control:main",
    "report": "proxlm.jobs.report:main",
    "doctor": "proxlm.jobs.doctor:main",
    "verify": "proxlm.jobs.verify:main",
    "stop": "proxlm.jobs.stop:main",
    "demo": "proxlm.jobs.demo:main",
}

# The jobs that several processes do together, started by torchrun.
SHARED_JOBS = ("ppo", "value", "pretrain", "sft", "reward", "dpo", "distill")

# Seconds that rank 0 may take to end with its message, and to find what is wrong with settings, data or a model, too.
_LONGEST_END = 60
_LONGEST_SEARCH = 15

# The libraries read these when they are imported, so they must be set before a job's module is imported.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's own) and return the exit status."""
    open_standard_streams()
    if follower := rank() > 0:
        discard(sys.stdout)  # rank 0 alone speaks, and answers signals; the others end with it
    sys.excepthook = print_uncaught
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # ignored, as by trap '' CHLD, it hides how children end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without λ or 中 gets ?, not a traceback
    signals = StopSignals(_stopped, (lambda _line: None) if follower else None)
    try:
        with signals:
            status = _run(sys.argv[1:] if arguments is None else list(arguments))
            print(end="", flush=True)
        return status
    except UserError as error:
        if follower and signals.received is not None:  # rank 0 has ended with the same signal, and says so
            return 128 + signals.received
        if follower and RAISED_ON_RANK_0 in getattr(error, "__notes__", ()):
            return _leave_it_to_rank_0(_LONGEST_END)
        if follower and not isinstance(error, RunError):
            _leave_it_to_rank_0(_LONGEST_SEARCH)
        return _fail(str(error), *(error.more if isinstance(error, ConfigError) else ()))
    except StoppedBySignalError as stopped:
        return _end(str(stopped), 128 + stopped.signal)
    except KeyboardInterrupt:
        if follower:
            return 130
        return _end("interrupted", 130)
    except Exception as error:
        found = system_error(error)
        if found is None or isinstance(found, BrokenPipeError):  # a pipe to another process: a bug
            raise
        return _fail(refused(found))


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(overview(), file=sys.stderr)
        return 2
    job, *options = arguments
    if job in ("-h", "--help"):
        print(overview())
    elif job == "--version":
        print(f"proxlm {__version__}")
    elif "-h" in options or "--help" in options:
        print(describe(job))
    else:
        config = load_config(job, arguments=options)
        if world_size() > 1 and job not in SHARED_JOBS:
            raise ConfigError(
                f"proxlm {job} runs in one process; several, as torchrun has started here, are for"
                f" {', '.join(SHARED_JOBS)}"
            )
        given = [config]
        if isinstance(config, RecipeCommand) and job != "check":  # which says itself what is wrong with one
            given.append(settings_of_recipe(config))  # before torch is imported
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        module, function = JOB_MODULES[job].split(":")
        status = getattr(import_module(module), function)(*given)
        return status if isinstance(status, int) else 0
    return 0


def _stopped(stop: signal.Signals) -> str:
    """What a command says that a signal has ended before it was done; a run says more (`jobs/run_folder.py`)."""
    if stop == signal.SIGPIPE:
        return ""  # whoever closed the output knows
    name = SIGNAL_NAMES[stop]
    return "interrupted" if stop == signal.SIGINT else f"stopped by {name} before it was done; start it again"


def _leave_it_to_rank_0(seconds: float) -> int:
    """Wait until torchrun ends this process, because rank 0 has ended: the first one to end must be that with the
    message, for the others are killed. What rank 0 does not find within these seconds is for this process to say.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)
    return 2


def _fail(*messages: str) -> int:
    return _end("\n".join(f"error: {message}" for message in messages), 2)


def _end(message: str, status: int) -> int:
    """Print the last lines, if there are any and anybody to read them."""
    if message:
        try:
            for line in message.splitlines():
                print(f"proxlm: {on_screen(line)}", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            discard(sys.stderr)  # else Python's own flush at exit would fail
    return status


if __name__ == "__main__":
    sys.exit(main())
