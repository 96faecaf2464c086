"""Programs that mean harm, with how each must end: alone, and as the solution of a test.

Words in @ are put in by the test: a file and a folder outside, the id of the process that asked, ports and a socket
on which it listens, and a folder of this project's source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """alone, tested: the status of the program by itself, and with a test; says: what it prints, if it matters."""

    name: str
    source: str
    alone: str
    tested: str = ""
    says: str = ""


def tries(*attempts: str) -> str:
    """A program that makes each attempt and prints, for each, "refused" or what it got."""
    lines = ["import ctypes, os, signal, socket, sys", "libc = ctypes.CDLL(None, use_errno=True)"]
    for attempt in attempts:
        lines += ["try:", f"    print({attempt})", "except OSError:", "    print('refused')"]
    return "\n".join(lines)


def refused(count: int) -> str:
    return "refused\n" * count


WRITE = "open({!r}, {!r})"
PROCESSES = [
    Hostile("fork bomb", "import os\nwhile True: os.fork()", "error"),
    Hostile(
        "fork bomb that ignores errors",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "timeout",
    ),
    Hostile(
        "daemon",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)",
        "error",
    ),
    Hostile(
        "processes by other ways",
        tries(
            "os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 600 &'], {})",
            "os.execv('/bin/sh', ['sh', '-c', 'sleep 600'])",
            "os.forkpty()",
            "__import__('subprocess').Popen(['sleep', '600'])",
            "os.setsid()",
            "os.unshare(0) if hasattr(os, 'unshare') else [][0]",
        ).replace("except OSError", "except (OSError, IndexError)"),
        "ok",
        says=refused(6),
    ),
    Hostile(
        "raw clone, clone3, vfork, setns, ptrace",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for call in ((56, 17, 0, 0, 0, 0), (56, 0x10000011, 0, 0, 0, 0), (435, 0, 88), "
        "(58,), (308, 0, 0), (101, 16, 1)):\n"
        "    print(libc.syscall(*call), ctypes.get_errno())\n",
        "ok",
        says="-1 1\n-1 1\n-1 38\n-1 1\n-1 1\n-1 1\n",
    ),
    Hostile("zombies", "import os\nfor _ in range(1000):\n    if os.fork() == 0: os._exit(0)", "error"),
    Hostile(
        "endless threads",
        "import threading\nthreading.stack_size(1 << 15)\n"
        "while True: threading.Thread(target=threading.Event().wait).start()",
        "threads",
    ),
    Hostile(
        "a thread that never ends",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()",
        "timeout",
        tested="ok",
    ),
    Hostile("stops itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    Hostile("kills itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "crashed"),
]

SIGNALS = [
    Hostile(
        "signals to all and to us",
        tries(
            "os.kill(-1, signal.SIGKILL)",
            "os.kill(0, signal.SIGKILL)",
            "os.kill(@PARENT@, signal.SIGKILL)",
            "os.kill(os.getppid(), signal.SIGKILL)",
            "os.killpg(os.getpgrp(), signal.SIGKILL)",
            "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)",
        ),
        "ok",
        says=refused(6),
    ),
    Hostile(
        "a signal by way of a pipe's owner",
        "import fcntl, os\nreads, writes = os.pipe()\nfcntl.fcntl(reads, 8, @PARENT@)",
        "error",
    ),
    Hostile(
        "limits and priorities of others",
        tries(
            "__import__('resource').prlimit(@PARENT@, 7, (0, 0))",
            "__import__('resource').setrlimit(7, (9, 9))",
            "os.setpriority(os.PRIO_PROCESS, @PARENT@, 19)",
            "os.sched_setaffinity(@PARENT@, {0})",
        ).replace("except OSError", "except (OSError, ValueError)"),
        "ok",
        says=refused(4),
    ),
    Hostile(
        "deaf to every signal",
        "import signal\nfor one in signal.valid_signals():\n    try: signal.signal(one, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        "timeout",
    ),
]

MEMORY_AND_TIME = [
    Hostile("memory bomb", "x = bytearray(1 << 40)", "memory"),
    Hostile("memory by doubling", "x = b'x'\nwhile True: x += x", "memory"),
    Hostile("many small objects", "x = []\nwhile True: x.append(bytes(9999))", "memory"),
    Hostile(
        "memory outside the address space",
        tries("os.memfd_create('x')", "libc.syscall(29, 0, 1 << 40, 0o1600) < 0 and os.memfd_create('y')"),
        "ok",
        says=refused(2),
    ),
    Hostile("endless loop", "while True: pass", "timeout"),
    Hostile("sleep", "import time\ntime.sleep(10**6)", "timeout"),
    Hostile("waits for input", "import sys\nsys.stdin.read()\ninput()", "error"),
    Hostile("regular expression without end", "import re\nre.match('(a*)*b', 'a' * 60)", "timeout"),
    Hostile("huge power", "x = 9 ** 9 ** 9", "timeout"),
    Hostile(
        "zip bomb",
        "import zlib\nz = zlib.compress(bytes(1 << 24))\nx = [zlib.decompress(z) for _ in z]",
        "memory",
    ),
]  # fmt: skip

OUTPUT = [
    Hostile("endless output", "while True: print('spam')", "output"),
    Hostile("endless errors", "import sys\nwhile True: sys.stderr.write('spam')", "output"),
    Hostile("one huge line", "print('x' * (1 << 25))", "output"),
    Hostile(
        "output on every descriptor",
        "import os\nfor place in range(200):\n    try: os.write(place, b'passed ' * 20000)\n    except OSError: pass",
        "output",
    ),
    Hostile("closes its streams", "import os\nfor place in (0, 1, 2): os.close(place)\nos._exit(0)", "ok", "error"),
    Hostile("closes all, and waits", "import os, time\nos.closerange(0, 99)\ntime.sleep(99)", "timeout", "error"),
    Hostile("all descriptors", "import os\nwhile True: os.dup(0)", "error"),
]  # fmt: skip

FILES = [
    Hostile("giant file", "with open('x', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "error"),
    Hostile("giant file with a hole", "with open('x', 'wb') as f:\n    f.truncate(1 << 40)", "error"),
    Hostile("thousands of files", "for i in range(10**6): open(str(i), 'w').close()", "files"),
    Hostile("many files of some size", "for i in range(60): open(str(i), 'wb').write(bytes(1 << 20))", "files"),
    Hostile(
        "deletes what is outside",
        tries(
            "os.remove('@CANARY@')",
            "os.rename('@CANARY@', 'mine')",
            "os.rename('@CANARY@', '@FOLDER@/other')",
            "os.rmdir('@FOLDER@/empty')",
            "os.truncate('@CANARY@', 0)",
            "os.chmod('@CANARY@', 0)",
            "os.chown('@CANARY@', 1, 1)",
            "os.utime('@CANARY@', (0, 0))",
            "os.setxattr('@CANARY@', 'user.x', b'x')",
            "os.link('@CANARY@', 'mine')",
            "os.mkdir('@FOLDER@/new')",
            "os.mkfifo('@FOLDER@/pipe')",
        ),
        "ok",
        says=refused(12),
    ),
    Hostile(
        "writes outside",
        tries(
            *(WRITE.format("@CANARY@", mode) for mode in ("w", "a", "r+", "x")),
            "os.open('@CANARY@', os.O_RDONLY | os.O_TRUNC)",
            "os.open('@CANARY@', 3 | os.O_TRUNC)",
            "os.open('@FOLDER@', os.O_RDWR | os.O_TMPFILE)",
            WRITE.format("@FOLDER@/new", "w"),
            WRITE.format("/tmp/proxlm-hostile", "w"),
            WRITE.format("/dev/shm/proxlm-hostile", "w"),
            WRITE.format("../mine", "w"),
        ),
        "ok",
        says=refused(11),
    ),
    Hostile("removes the tree", "import shutil\nshutil.rmtree('@FOLDER@')", "error"),
    Hostile(
        "writes into its keeper, the library and its process",
        tries(
            WRITE.format("@SOURCE@/sandbox/keeper.py", "a"),
            WRITE.format("@SOURCE@/sandbox/hostile_new.py", "w"),
            "open(os.__file__, 'a')",
            "open(f'/proc/{os.getppid()}/mem', 'r+b')",
            "open('/proc/self/oom_score_adj', 'w')",
            "open('/proc/self/mem', 'r+b')",
        ),
        "ok",
        says=refused(6),
    ),
    Hostile("links in its folder", "import os\nos.symlink('@FOLDER@', 'link')", "error"),
    Hostile("folders within folders", "import os\nwhile True:\n    os.mkdir('x')\n    os.chdir('x')", "error"),
    Hostile(
        "a module in its folder",
        "import sys\nopen('json.py', 'w').write('raise SystemExit(7)')\nimport csv, json\nprint(json.loads('1'))",
        "ok",
        says="1\n",
    ),
    Hostile("mounts", tries("libc.mount(b'x', b'@FOLDER@', b'tmpfs', 0, 0) == 0 or open('/')"), "ok", "", refused(1)),
]  # fmt: skip

READING = [
    Hostile("environment", "import os\nprint(dict(os.environ), os.getenvb(b'PROXLM_SECRET'))", "ok", "", "{} None\n"),
    Hostile(
        "environment of others, and files",
        tries(
            "open('/proc/@PARENT@/environ').read()",
            "open(f'/proc/{os.getppid()}/environ').read()",
            "open(f'/proc/{os.getppid()}/fd/0').read()",
            "open('/proc/self/environ').read()",
            "open('@CANARY@').read()",
            "os.listdir('@FOLDER@')",
            "open('/etc/passwd').read()",
            "os.listdir('..')",
        ),
        "ok",
        says=refused(8),
    ),
    Hostile(
        "the environment it was started with",
        "import ctypes\nf = ctypes.CDLL(None).getenv\nf.restype = ctypes.c_char_p\nprint(f(b'PROXLM_SECRET'))",
        "ok",
        says="None\n",
    ),
]  # fmt: skip

NETWORK = [
    Hostile("TCP", "import socket\nsocket.create_connection(('127.0.0.1', @TCP@)).send(b'secret')", "error"),
    Hostile("UDP", "import socket\nsocket.socket(type=2).sendto(b'x', ('127.0.0.1', @UDP@))", "error"),
    Hostile("names", "import socket\nprint(socket.getaddrinfo('example.org', 80))", "error"),
    Hostile("Unix socket", "import socket\nsocket.socket(socket.AF_UNIX).connect('@UNIX@')", "error"),
    Hostile(
        "a socket of a pair, sent elsewhere",
        "import socket\na, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.sendto(b'x', '@UNIX@')",
        "error",
    ),
    Hostile(
        "sockets by io_uring",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syscall(425, 8, bytes(120)))",
        "ok",
        says="-1\n",
    ),
]  # fmt: skip

CRASHES = [
    Hostile("deep recursion", "def f(): return f()\nf()", "error"),
    Hostile(
        "a stack without limit",
        "import sys\nsys.setrecursionlimit(1 << 30)\n"
        "class A:\n    def __getattr__(s, n): return getattr(s, n)\nA().x",
        "crashed",
    ),
    Hostile("native crash", "import ctypes\nctypes.string_at(0)", "crashed"),
    Hostile("abort", "import os\nos.abort()", "crashed"),
    Hostile("a broken interpreter", "import builtins, sys\nsys.modules.clear()\nvars(builtins).clear()", "error"),
    Hostile("no program", "def f(:\n", "error"),
    Hostile("null bytes and lone surrogates", "x = '\0'\ny = '\ud800'", "error"),
    Hostile("nested beyond the parser", "x = " + "(" * 10**5, "error"),
]  # fmt: skip

GROUPS = [PROCESSES, SIGNALS, MEMORY_AND_TIME, OUTPUT, FILES, READING, NETWORK, CRASHES]
HOSTILE = [one for group in GROUPS for one in group]
