"""A Python interpreter in the sandbox."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from proxlm.environments.tools.tool_error import ToolError
from proxlm.sandbox import Limits, check_isolation, run_python

# Many conversations call at once, and each program is processes of its own.
_AT_ONCE = threading.BoundedSemaphore(2 * (os.cpu_count() or 1))
_LONGEST = 20_000


def python_tool(seconds: float) -> Callable[..., str]:
    """The tool, whose programs run for so many seconds at most. Raises SandboxError where none can be confined."""
    limits = Limits(seconds=seconds, memory=256 << 20, output=16 << 10)
    check_isolation(require_landlock=True)

    def python(code: str) -> str:
        """Run a Python program. Nothing of it is kept for the next call. What it prints is the result.

        Args:
            code: The program.
        """
        if len(code) > _LONGEST:
            raise ToolError(f"the program has more than {_LONGEST} characters")
        with _AT_ONCE:
            result = run_python(code, limits=limits)
        if result.status == "ok":
            return result.stdout.strip() or "(nothing was printed)"
        last = (result.stderr.strip().splitlines() or [""])[-1]
        raise ToolError(f"{result.status}{': ' if last else ''}{last}\n{result.stdout}".strip())

    return python
