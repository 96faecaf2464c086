"""A sandbox for programs that a model wrote: confined processes with limits on everything they use."""

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
