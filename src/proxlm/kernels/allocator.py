"""The C library's allocator, told what a training process does with memory."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes.
MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> bool:
    """Large freed blocks stay with the process, for the next step needs them again.

    By default glibc gives such blocks back to the system at once, and every step the system clears as many pages
    anew. The peak is the same. Returns whether it was done: other C libraries have no such setting.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows has no library without a name
        return False
    done = [set_option(M_MMAP_THRESHOLD, MMAP_THRESHOLD), set_option(M_TRIM_THRESHOLD, 2**31 - 1)]
    return all(done)
