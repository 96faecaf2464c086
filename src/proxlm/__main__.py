"""The command line: `proxlm JOB [recipe.toml] [--section.key value ...]`.

Exit status: 0 done, 2 something the user can mend (one line on stderr), 130 stopped by Ctrl-C, 143 stopped by
SIGTERM, 141 the reader of the output is gone, 75 ended by the watchdog. Everything else is a bug, and keeps its
traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from proxlm import __version__
from proxlm.config.help import describe, overview
from proxlm.config.parse import load_config
from proxlm.errors import StoppedBySignalError, UserError

APPS = {
    "ppo": "proxlm.jobs.ppo:main",
    "pretrain": "proxlm.jobs.pretrain:main",
    "sft": "proxlm.jobs.sft:main",
    "generate": "proxlm.jobs.generate:main",
    "evaluate": "proxlm.jobs.evaluate:main",
    "control": "proxlm.jobs.control:main",
    "report": "proxlm.jobs.report:main",
    "doctor": "proxlm.jobs.doctor:main",
    "demo": "proxlm.jobs.demo:main",
}

# Read by the libraries when they are imported, so they must stand before an app is.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's own) and return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without λ or 中 gets ?, not a traceback
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        print(end="", flush=True)
        return status
    except UserError as error:
        return _fail(str(error))
    except StoppedBySignalError as stopped:
        print(f"proxlm: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("proxlm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        _discard_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        where = f" (writing {error.filename})" if error.filename else ""
        return _fail(f"{error.strerror}{where}: free some space, or give another folder")


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(overview(), file=sys.stderr)
        return 2
    job, *rest = arguments
    if job in ("-h", "--help"):
        print(overview())
    elif job == "--version":
        print(f"proxlm {__version__}")
    elif "-h" in rest or "--help" in rest:
        print(describe(job))
    else:
        config = load_config(job, arguments=rest)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        module, function = APPS[job].split(":")
        getattr(import_module(module), function)(config)
    return 0


def _fail(message: str) -> int:
    print(f"proxlm: error: {message}", file=sys.stderr)
    return 2


def _reader_is_gone() -> bool:
    """Whether it was standard output that broke, not a pipe to some other process."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _discard_output() -> None:
    """Let what standard output still holds go nowhere, so that Python does not fail on it at exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
