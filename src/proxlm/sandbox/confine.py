"""Confining this process, permanently and before it runs an untrusted program.

Three features of the Linux kernel, which need no privileges and bind the superuser too: resource limits, Landlock
(which files may be opened, https://docs.kernel.org/userspace-api/landlock.html) and a seccomp filter (which system
calls are allowed, https://docs.kernel.org/userspace-api/seccomp_filter.html).
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Sequence
from contextlib import suppress
from errno import ENOSYS as NO_SUCH_CALL
from errno import EPERM
from typing import Any

from proxlm.sandbox.syscalls import (
    ALWAYS,
    CLONE3,
    CONDITIONAL,
    LANDLOCK_ADD,
    LANDLOCK_CREATE,
    LANDLOCK_RESTRICT,
    MACHINES,
    WITH_FOLDER,
    Condition,
    conditions,
)

_SET_DEATH_SIGNAL, _GET_SECCOMP, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 1, 21, 22, 38
_FILTER = 2
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Landlock's rights to files.
_WRITE, _READ, _LIST, _REMOVE, _MAKE, _CUT = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
# By Landlock's version: how many rights it knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}

_CAPGET = {"x86_64": 125, "aarch64": 90}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES_VERSION, _READ_ANY_FILE = 0x20080522, 1 << 2
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_PRIVATE_MOUNTS = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
_PLAIN_FILES = 2 | 4 | 8  # MS_NOSUID | MS_NODEV | MS_NOEXEC
_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def landlock_version() -> int:
    """The kernel's version of Landlock; 0: none."""
    return max(0, _syscall(LANDLOCK_CREATE, None, 0, 1))


def seccomp_available() -> bool:
    """Whether this kernel supports seccomp filters and the filter here supports the machine."""
    return os.uname().machine in MACHINES and _prctl(_GET_SECCOMP, 0) >= 0


def mount_folder(folder: str, size: int, files: int) -> None:
    """Give this process, which must have only one thread, and its children a file system in memory of their own.

    It takes the place of `folder`, for them alone, and is gone when the last of them is. The kernel enforces what it
    may hold, and counts files that were deleted but are still open or mapped.

    Args:
        folder: An empty folder.
        size: Bytes of all files together; each file takes whole pages.
        files: Number of files.

    Raises:
        OSError: This process may have no mounts of its own.
    """
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_MOUNTS) < 0:  # only the superuser may do this without a user namespace
        _checked(_libc.unshare(_NEW_MOUNTS | _NEW_USER), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_PRIVATE_MOUNTS), None), "mount /")
    options = f"size={size},nr_inodes={files + 1},mode=700".encode()  # its own root is one of them
    flags = ctypes.c_ulong(_PLAIN_FILES)
    _checked(_libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, options), "mount tmpfs")


def unmount_folder(folder: str) -> None:
    """Undo mount_folder."""
    _checked(_libc.umount2(os.fsencode(folder), _DETACH), "umount")


def die_with_parent(parent: int) -> None:
    """Have this process killed when the thread that forked it ends; parent: the process id of that thread."""
    _prctl(_SET_DEATH_SIGNAL, 9)
    if os.getppid() != parent:
        os._exit(1)


def limit_resources(seconds: float, memory: int, file_size: int, open_files: int) -> None:
    """Set limits that the kernel enforces.

    Args:
        seconds: CPU time.
        memory: Bytes of address space.
        file_size: Bytes of a file.
        open_files: Files open at the same time.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, this process is killed first
    cpu = int(seconds) + 2  # later than the wall-clock limit, in case no process is left to enforce that
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_AS, memory),
    ):
        highest = resource.getrlimit(kind)[1]
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(kind, (value, value))


def confine(readable: Sequence[str], folder: str | None) -> None:
    """Restrict this process, which must have only one thread, permanently.

    Args:
        readable: Files and folders that may be read.
        folder: The folder that may also be written to; None if the kernel has no Landlock: then everything may be
            read, and nothing written.

    Raises:
        OSError: The kernel refused.
    """
    _checked(_prctl(_NO_NEW_PRIVILEGES, 1), "no_new_privs")
    if folder is not None:
        _restrict_files(readable, folder)
    _drop_capabilities()
    code = _filter(os.uname().machine, folder is not None)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    _checked(_prctl(_SET_SECCOMP, _FILTER, program), "seccomp")


def _drop_capabilities() -> None:
    """Give up what the superuser may do more than others, but reading a library that belongs to another user."""
    machine = os.uname().machine
    header = struct.pack("Ii", _CAPABILITIES_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    _checked(_syscall(_CAPGET[machine], header, ctypes.addressof(data)), "capget")
    effective, permitted = (one & _READ_ANY_FILE for one in struct.unpack_from("II", data.raw))
    kept = struct.pack("6I", effective, permitted, 0, 0, 0, 0)
    _checked(_syscall(_CAPSET[machine], header, kept), "capset")


def _restrict_files(readable: Sequence[str], folder: str) -> None:
    version = landlock_version()
    handled = (1 << _RIGHTS.get(version, 16)) - 1
    rules = _checked(_syscall(LANDLOCK_CREATE, struct.pack("Q", handled), 8, 0), "landlock_create_ruleset")
    write = _WRITE | _REMOVE | _MAKE | _CUT
    for path, rights in [*((path, 0) for path in readable), (os.devnull, _WRITE), (folder, write)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rights |= _READ | _LIST if os.path.isdir(path) else _READ
        rule = struct.pack("=Qi", rights & handled, descriptor)
        _checked(_syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"landlock_add_rule for {path}")
        os.close(descriptor)
    _checked(_syscall(LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")
    os.close(rules)


def _filter(machine: str, folder: bool) -> bytes:
    """The seccomp filter as a program of struct sock_filter: 16-bit code, two 8-bit jumps, a 32-bit constant."""
    architecture, column = MACHINES[machine]
    code = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, 1, CLONE3[column]),
        (_RETURN, 0, 0, _ERRNO | NO_SUCH_CALL),
    ]
    plain = ALWAYS | WITH_FOLDER if folder else ALWAYS
    for numbers in plain.values():
        if numbers[column] >= 0:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for name, numbers in CONDITIONAL.items():
        if numbers[column] >= 0:
            checks = [line for one in conditions(name, folder) for line in _check(one)]
            checks.append((_RETURN, 0, 0, _ALLOW))
            code += [(_EQUAL, 0, len(checks), numbers[column]), *checks]
    code.append((_RETURN, 0, 0, _ERRNO | EPERM))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def _check(condition: Condition) -> list[tuple[int, int, int, int]]:
    """Lines that refuse the call unless the condition holds."""
    offset = 16 + 8 * condition.argument + (4 if condition.high else 0)
    count = len(condition.allowed)
    return [
        (_LOAD, 0, 0, offset),
        (_AND, 0, 0, condition.mask),
        *((_EQUAL, count - i, 0, value) for i, value in enumerate(condition.allowed)),
        (_RETURN, 0, 0, _ERRNO | EPERM),
    ]


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *_wide(arguments)))


def _prctl(option: int, *arguments: int | bytes | None) -> int:
    wide = _wide(arguments)
    return int(_libc.prctl(option, *wide, *[ctypes.c_long(0)] * (4 - len(wide))))


def _wide(arguments: Sequence[int | bytes | None]) -> list[Any]:
    """Numbers as 64 bits; both functions are variadic, so ctypes would pass them as 32 bits."""
    return [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
