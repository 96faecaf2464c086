"""The system calls of a confined program: their numbers by name, and limits on their arguments."""

from __future__ import annotations

import os
from dataclasses import dataclass

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine → (its name in seccomp, column in NUMBERS)."""

_NONE = -1  # the machine has no such call

# All other calls are refused: processes, programs, sockets, signals to others, rights, owners, times,
# mounts, tracing, System V memory, io_uring and whatever a later kernel adds.
ALWAYS = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "sendfile": (40, 71),
    "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "brk": (12, 214),
    "fstat": (5, 80), "stat": (4, _NONE), "lstat": (6, _NONE), "newfstatat": (262, 79),
    "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, _NONE),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, _NONE), "readlinkat": (267, 78),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "getdents64": (217, 61), "dup": (32, 23),
    "dup2": (33, _NONE), "dup3": (292, 24), "pipe": (22, _NONE), "pipe2": (293, 59), "poll": (7, _NONE),
    "ppoll": (271, 73), "select": (23, _NONE), "pselect6": (270, 72), "epoll_create": (213, _NONE),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, _NONE), "epoll_pwait": (281, 22),
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, _NONE), "times": (100, 153),
    "getrusage": (98, 165), "getrandom": (318, 278), "getpid": (39, 172), "gettid": (186, 178),
    "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158),
    "getpgrp": (111, _NONE), "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160),
    "sysinfo": (99, 179), "getrlimit": (97, 163), "umask": (95, 166), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "pause": (34, _NONE), "alarm": (37, _NONE), "setitimer": (38, 103), "getitimer": (36, 102),
    "restart_syscall": (219, 128), "wait4": (61, 260), "waitid": (247, 95), "exit": (60, 93),
    "exit_group": (231, 94), "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204),
    "getpeername": (52, 205), "getsockopt": (55, 209),
}  # fmt: skip

# Only if Landlock restricts them to the program's own folder.
WITH_FOLDER = {
    "ftruncate": (77, 46), "unlink": (87, _NONE), "unlinkat": (263, 35), "rename": (82, _NONE),
    "renameat": (264, 38), "fsync": (74, 82), "fdatasync": (75, 83),
}  # fmt: skip

CONDITIONAL = {
    "open": (2, _NONE), "openat": (257, 56), "kill": (62, 129), "tgkill": (234, 131), "clone": (56, 220),
    "prctl": (157, 167), "fcntl": (72, 25), "ioctl": (16, 29), "prlimit64": (302, 261),
    "socketpair": (53, 199), "sendto": (44, 206), "mmap": (9, 222), "madvise": (28, 233),
    "renameat2": (316, 276),
}  # fmt: skip

CLONE3 = (435, 435)
"""Fails with ENOSYS; C libraries then start a thread with clone, whose flags a filter can read."""

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every machine

# The flags of glibc's and musl's pthread_create; the one bit in which they differ has no effect.
_THREAD_FLAGS, _DETACHED = 0x3D0F00, 0x400000
_ACCESS, _CREATE, _TRUNCATE, _TEMPORARY = 3, 0x40, 0x200, 0x400000
_SHARED, _PRIVATE, _ANONYMOUS, _MAPPING_TYPE, _HUGE_PAGES = 1, 2, 0x20, 0x0F, 0x40000
# NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, GUARD_INSTALL,
# GUARD_REMOVE: what C libraries use. HWPOISON and SOFT_OFFLINE take pages of the machine out of use; MERGEABLE ones
# tell by time what others hold.
_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 102, 103)


@dataclass(frozen=True)
class Condition:
    """argument & mask must be one of `allowed`.

    Attributes:
        argument: Number of the argument, from 0.
        allowed: Values.
        mask: The bits that count.
        high: Whether the upper 32 bits of the argument are meant instead of the lower ones.
    """

    argument: int
    allowed: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    high: bool = False


def conditions(name: str, folder: bool) -> list[Condition]:
    """The conditions, all of which must hold, of a call in CONDITIONAL. folder: whether one may be written to."""
    own = Condition(0, (os.getpid(),))
    if folder:
        # Before its third version, Landlock allowed opening for reading to truncate a file.
        flags = Condition(2, (0, 1, 2, 3, _TRUNCATE | 1, _TRUNCATE | 2), _ACCESS | _TRUNCATE)
    else:
        flags = Condition(2, (0,), _ACCESS | _CREATE | _TRUNCATE | _TEMPORARY)
    # The limit of memory counts addresses, but pages of a shared mapping stay when its addresses are given up.
    # Those of a file are counted as the file's; without Landlock it may be /dev/zero, whose pages are no file's.
    mappings = (_PRIVATE, _PRIVATE | _ANONYMOUS, _SHARED) if folder else (_PRIVATE, _PRIVATE | _ANONYMOUS)
    return {
        "openat": [flags],
        "open": [Condition(1, flags.allowed, flags.mask)],
        "kill": [own],
        "tgkill": [own],
        "clone": [Condition(0, (_THREAD_FLAGS,), 0xFFFFFFFF ^ _DETACHED)],
        "prctl": [Condition(0, (15, 16))],  # a thread's name
        # Copies, flags and locks; F_SETOWN and F_SETSIG would send signals to others.
        "fcntl": [Condition(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030))],
        # TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX
        "ioctl": [Condition(1, (0x5401, 0x5413, 0x5421, 0x5450, 0x5451))],
        "prlimit64": [Condition(0, (0,)), Condition(2, (0,)), Condition(2, (0,), high=True)],
        # asyncio wakes its loop through a pair of sockets; a message with an address could leave the pair.
        "socketpair": [Condition(0, (1,))],
        "sendto": [Condition(4, (0,)), Condition(4, (0,), high=True)],
        "mmap": [Condition(3, mappings, _MAPPING_TYPE | _ANONYMOUS | _HUGE_PAGES)],
        "madvise": [Condition(2, _ADVICE)],
        # Not WHITEOUT, which leaves a device node, nor EXCHANGE.
        "renameat2": [Condition(4, (0, 1) if folder else ())],
    }[name]
