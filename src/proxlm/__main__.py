"""The command line: `proxlm JOB [recipe.toml] [--section.key value ...]`.

Exit status: 0 done, 2 an error that the user can fix (one line on stderr), 130 stopped by Ctrl-C, 143 stopped by
SIGTERM, 141 the reader of the output closed it, 75 ended by the watchdog. Every other error is a bug and keeps its
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
from proxlm.text import shown, system_reason

JOB_MODULES = {
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

# The libraries read these when they are imported, so they must be set before a job's module is imported.
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
        if not _output_is_closed():
            raise
        _discard_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        where = f" (writing {shown(str(error.filename), 300)})" if error.filename else ""
        return _fail(f"{system_reason(error)}{where}: free some space, or give another folder")


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
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        module, function = JOB_MODULES[job].split(":")
        getattr(import_module(module), function)(config)
    return 0


def _fail(message: str) -> int:
    print(f"proxlm: error: {message}", file=sys.stderr)
    return 2


def _output_is_closed() -> bool:
    """Whether the reader of standard output closed it; the broken pipe may be one to another process."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _discard_output() -> None:
    """Discard what standard output has buffered, so that Python does not fail on it at exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
