"""The allocator keeps what a step has freed, where the C library can be told so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from proxlm.models.allocator import keep_freed_memory

# Counts the pages that the system had to clear for four blocks of 20 MB which come and go.
PROGRAM = """
import resource, sys
import torch
from proxlm.models.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.zeros(5 << 20) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_pages_are_cleared_once() -> None:
    assert keep_freed_memory()
    found = {}
    for what in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True
        )
        found[what] = int(done.stdout)
    pages_of_one_block = (20 << 20) // 4096
    assert found["keep"] < pages_of_one_block < 20 * pages_of_one_block < found["default"]


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
