"""Programs that a model wrote, run where they can harm nothing: confined processes with limits on all they use."""

from proxlm.sandbox.run import (
    STATUSES,
    Isolation,
    Limits,
    Program,
    SandboxError,
    SandboxResult,
    Status,
    check_isolation,
    isolation,
    run_programs,
    run_python,
)

__all__ = [
    "STATUSES",
    "Isolation",
    "Limits",
    "Program",
    "SandboxError",
    "SandboxResult",
    "Status",
    "check_isolation",
    "isolation",
    "run_programs",
    "run_python",
]
