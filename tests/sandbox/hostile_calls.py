"""Programs that go round the sandbox's limits by single system calls and odd mappings, with what each must print.

Each prints what it got, line by line; `no` stands for every refusal.
"""

from __future__ import annotations

HEAD = """
import ctypes, errno, mmap, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.syscall.restype = ctypes.c_long
ANYWHERE = ctypes.c_void_p(-1).value
def page(): return libc.mmap(None, 4096, 3, 0x22, -1, 0)
def mapped(flags, fd=-1, size=4096, prot=3):
    return "no" if libc.mmap(None, size, prot, flags, fd, 0) == ANYWHERE else "mapped"
def called(*arguments):
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if libc.syscall(*wide) >= 0: return "done"
    return "no" if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS) else errno.errorcode[ctypes.get_errno()]
def tried(act):
    try: return act() or "done"
    except (OSError, ValueError, MemoryError): return "no"
"""
RESIDENT = """
import mmap
B, kept = b"x" * (16 << 20), []
for n in range(64):
    m = mmap.mmap(-1, 16 << 20{flags})
    m.write(B)
    m.resize(4096)
    kept.append(m)
print("holds", 16 * len(kept))
"""
PINNED = """
block = b"x" * (4 << 20)
for n in range(200):
    {make}
    os.write(fd, block)
    print(mapped({flags}, fd)) if n < 1 else mapped({flags}, fd)
    os.close(fd)
    {drop}
print("holds", 4 * 200, file=sys.stderr)
"""

MEMORY = {
    # Shared pages that no address keeps; the first line of the answer, and the status.
    "shared anonymous memory, cut": (RESIDENT.format(flags=""), "error", ""),
    "shared anonymous memory, by flags": (RESIDENT.format(flags=", flags=1 | 32"), "error", ""),
    "deleted files that stay mapped": (
        PINNED.format(make="fd = os.open('f', 0o102)", flags=1, drop="os.unlink('f')"), "error", "mapped\n"),
    "deleted files that stay mapped privately": (
        PINNED.format(make="fd = os.open('f', 0o102)", flags=2, drop="os.unlink('f')"), "error", "mapped\n"),
    "files without a name that stay mapped": (
        PINNED.format(make="fd = os.open('.', os.O_TMPFILE | os.O_RDWR)", flags=1, drop=""), "error", "mapped\n"),
    "files that others are renamed to": (
        PINNED.format(make="fd = os.open('f', 0o102)", flags=1, drop="os.rename('f', 'g')"), "error", "mapped\n"),
    "files written through their mapping": (
        "for n in range(200):\n    with open('f', 'w+b') as f:\n        f.truncate(4 << 20)\n"
        "        m = mmap.mmap(f.fileno(), 4 << 20)\n        for i in range(0, 4 << 20, 4096): m[i] = 1\n"
        "        os.unlink('f')\n        globals()[f'm{n}'] = m\n"
        "print('holds', 800)", "crashed", ""),
    "deleted files that stay open": (
        "for n in range(20):\n    fd = os.open('f', 0o102)\n    os.write(fd, b'x' * (4 << 20))\n    os.unlink('f')\n"
        "print('holds', 80)", "error", ""),
    "private memory, more than there is": ("print(mapped(0x22, size=1 << 40), mapped(0x4022, size=1 << 40))", "ok",
                                           "no no\n"),
    "a stack that grows": ("print(mapped(0x122, size=1 << 30))", "ok", "no\n"),
}  # fmt: skip

# name → expressions, each of which must be refused.
CALLS = {
    "every kind of shared mapping": [
        "mapped(0x21)", "mapped(0x23)", "mapped(0x01)", "mapped(0x21 | 0x4000)", "mapped(0x21, prot=1)",
        "mapped(0x28)", "mapped(1, os.open('/dev/null', 0))", "mapped(1, os.open('/dev/urandom', 0), prot=1)"],
    "/dev/zero, whose shared pages are anonymous": [
        "tried(lambda: os.open('/dev/zero', os.O_RDONLY))", "tried(lambda: os.open('/dev/zero', os.O_RDWR))"],
    "huge pages of the machine": ["mapped(0x40022, size=2 << 20)", "mapped(0x40021, size=2 << 20)"],
    "memory files": ["called(319, b'x', 0)", "called(319, b'x', 3)", "called(447, 0)"],
    "System V memory, queues and semaphores": [
        "called(29, 0, 1 << 20, 0o1600)", "called(68, 0, 0o1600)", "called(64, 0, 5, 0o1600)",
        "called(240, b'/x', 0o102, 0o600, 0)"],
    "pages taken out of use": [
        "called(28, page(), 4096, 100)", "called(28, page(), 4096, 101)", "called(440, -1, 0, 0, 100, 0)"],
    "pages shared with others, removed, or kept from a fork": [
        f"called(28, page(), 4096, {advice})" for advice in (9, 10, 11, 12, 13, 18, 19, 999)],
    "locked memory": ["called(149, page(), 4096)", "called(151, 3)", "called(325, page(), 4096, 0)"],
    "pages of other processes": [
        "called(310, os.getppid(), bytes(16), 1, bytes(16), 1, 0)",
        "called(311, os.getppid(), bytes(16), 1, bytes(16), 1, 0)", "called(279, os.getppid(), 0, 0, 0, 0, 0)",
        "called(312, os.getpid(), os.getppid(), 0, 0, 0)", "called(438, 3, 0, 0)"],
    "a device node by renaming": [
        "(open('f', 'w').close(), called(316, -100, b'f', -100, b'g', 4))[1]",
        "(open('f', 'w').close(), open('g', 'w').close(), called(316, -100, b'f', -100, b'g', 2))[2]",
        "(open('f', 'w').close(), called(316, -100, b'f', -100, b'g', 5))[1]"],
    "device nodes, pipes and sockets as files": [
        "tried(lambda: os.mknod('n', 0o20600, os.makedev(1, 1)))", "tried(lambda: os.mknod('n', 0o60600, 0x800))",
        "tried(lambda: os.mknod('n', 0o100600))", "tried(lambda: os.mknod('n', 0o140600))",
        "tried(lambda: os.mkfifo('n'))"],
    "devices of the machine": [
        f"tried(lambda: open('/dev/{name}', 'rb').read(1))" for name in ("mem", "kmsg", "vda", "tty", "fuse", "shm")],
    "names for files without one": [
        "(lambda fd: called(265, -100, b'/proc/self/fd/%d' % fd, -100, b'n', 0x400))(os.open('.', 0o20200002))",
        "(lambda fd: called(265, fd, b'', -100, b'n', 0x1000))(os.open('.', 0o20200002))"],
    "files by handle": ["called(303, -100, b'.', bytes(64), bytes(8), 0)", "called(304, -100, bytes(64), 0)"],
    "another root, another place for mounts": [
        "called(161, b'.')", "called(155, b'.', b'.')", "called(165, b'none', b'.', b'tmpfs', 0, 0)",
        "called(166, b'.', 2)", "called(428, -100, b'.', 1)", "called(429, 3, b'', -100, b'.', 4)",
        "called(430, b'tmpfs', 0)", "called(442, -100, b'.', 0, bytes(32), 32)", "called(272, 0x20000)",
        "called(272, 0x10000000)", "called(308, 3, 0)"],
    "its rights back": [
        "tried(lambda: os.setuid(0) or os.setresuid(0, 0, 0))", "called(126, bytes(8), b'\\xff' * 24)",
        "called(157, 8, 1)", "called(157, 24, 21)", "called(157, 47, 2, 21)", "called(157, 38, 0)"],
    "more than its limits": [
        "tried(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))",
        "tried(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30)))",
        "called(160, 9, b'\\xff' * 16)"],
    "larger pipes": ["(lambda p: called(72, p[1], 1031, 1 << 20))(os.pipe())"],
    "leases, notices and seals on files": [
        "called(72, os.open(os.__file__, 0), 1024, 0)", "called(72, os.open('.', 0), 1026, 2)",
        "called(72, 0, 1033, 15)"],
    "descriptors of others by a socket": [
        "called(46, 0, bytes(56), 0)", "called(47, 0, bytes(56), 0)", "called(434, os.getppid(), 0)"],
    "kernel interfaces": [
        f"called({number}, 0, 0, 0, 0, 0)"
        for number in (298, 321, 323, 425, 248, 250, 175, 313, 246, 320, 169, 167, 179, 253, 300, 203, 317, 444, 446)
    ],
    "another 32-bit interface": [
        "called(0x40000000 | 56, 17, 0, 0, 0, 0)", "called(0x40000000 | 9, 0, 4096, 3, 0x21, -1, 0)"],
    "time and names of the machine": [
        "called(164, bytes(16), 0)", "called(227, 0, bytes(16))", "called(170, b'x', 1)"],
    "terminals": ["called(16, 0, 0x5412, b'x')", "called(16, 1, 0x5412, b'x')", "called(16, 2, 0x541C, b'x')"],
    "links out of its folder": [
        "tried(lambda: os.symlink('/etc', 'l'))", "tried(lambda: os.link('/etc/hostname', 'l'))",
        "tried(lambda: os.rename('/etc/hostname', 'l'))",
        "tried(lambda: os.open('/proc/self/root/etc/hostname', 0))"],
    "its keeper's own doors": [
        "tried(lambda: os.readlink(f'/proc/{os.getppid()}/root') and open(f'/proc/{os.getppid()}/maps').read())",
        "tried(lambda: open(f'/proc/{os.getppid()}/fd/1', 'wb').write(b'x'))",
        "tried(lambda: os.listdir(f'/proc/{os.getppid()}/fd'))", "tried(lambda: os.listdir('/dev/shm'))"],
}  # fmt: skip
