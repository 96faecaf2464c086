"""The allocator keeps what a step has freed, where the C library has a setting for it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from proxlm.kernels.allocator import keep_freed_memory

# How much of 80 MB the process still holds when they are freed, in MB.
PROGRAM = """
import sys
from pathlib import Path
import torch
from proxlm.kernels.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6
before = resident()
blocks = [torch.ones(5 * 10**6) for _ in range(4)]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or platform.libc_ver()[0] != "glibc",
    reason="only glibc has these settings",
)
def test_what_is_freed_stays() -> None:
    assert keep_freed_memory()
    found = {}
    for what in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True
        )
        found[what] = int(done.stdout)
    assert found["default"] < 40 < 75 < found["keep"]


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
