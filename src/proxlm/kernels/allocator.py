"""glibc's memory allocator, set up for a training process. Only `startup.py` calls this."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest value that glibc accepts.
MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> bool:
    """Let the process keep large blocks that it frees, for the next step needs them again.

    By default glibc returns such blocks to the system at once, and the system clears as many pages in every step. The
    peak is the same.

    Returns:
        Whether the allocator was changed; other C libraries have no such setting.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows has no library without a name
        return False
    done = [set_option(M_MMAP_THRESHOLD, MMAP_THRESHOLD), set_option(M_TRIM_THRESHOLD, 2**31 - 1)]
    return all(done)
