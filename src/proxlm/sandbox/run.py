"""Running Python programs that a model wrote, each in confined processes of its own, several at a time."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from proxlm.errors import UserError
from proxlm.text import one_line, shown

log = logging.getLogger(__name__)

Status = Literal["ok", "error", "timeout", "memory", "output", "files", "threads", "crashed"]
STATUSES: tuple[Status, ...] = get_args(Status)

# In addition to a program's own seconds: to start, confine, end and clean up on a busy machine.
_GRACE_SECONDS = 300.0
_IN_MEMORY = "/dev/shm"
_NEW_INTERPRETER = ("-s", "-S", "-P", "-B", "-X", "utf8")
_TRY_MOUNT = (
    "import sys; sys.path.insert(0, {path!r}); from proxlm.sandbox.confine import mount_folder; "
    "mount_folder(sys.argv[1], 1 << 20, 9)"
)
_START = "import sys; sys.path.insert(0, {path!r}); from proxlm.sandbox.keeper import main; del sys.path[0]; main()"


class SandboxError(UserError):
    """A program cannot be confined here, so it was not run."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: Wall-clock time, tests included.
        memory: Bytes of address space; the interpreter itself takes about 20 MB.
        output: Bytes of standard output, and of standard error.
        files: Number of files in its folder.
        file_size: Bytes of each file, and of all of them together.
        open_files: Files open at the same time.
        threads: Threads, the main one included.

    Raises:
        ValueError: "NAME = VALUE: what is wrong".
    """

    seconds: float = 5.0
    memory: int = 512 << 20
    output: int = 1 << 16
    files: int = 64
    file_size: int = 4 << 20
    open_files: int = 32
    threads: int = 16

    def __post_init__(self) -> None:
        least = {"memory": 64 << 20, "output": 0, "files": 0, "file_size": 0, "open_files": 8, "threads": 1}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "seconds":
                if not 0 < value <= 86_400:
                    raise ValueError(f"seconds = {value:g}: must be more than 0, and at most a day")
            elif not least[one.name] <= value < 1 << 60:
                raise ValueError(f"{one.name} = {value}: must be at least {least[one.name]}")


@dataclass(frozen=True)
class Program:
    """Python source with its standard input, or with tests, each of which is a piece of Python; they run in order."""

    source: str
    stdin: str = ""
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class SandboxResult:
    """How a program ended.

    Attributes:
        status: "ok", "error" (an exception, an exit status other than 0, or an end before its tests were done),
            "crashed" (by a signal), or the limit that it exceeded.
        stdout: Standard output, cut at the limit.
        stderr: Standard error, cut at the limit.
        exit_code: The exit status; −(signal) if a signal ended it, None if the sandbox did.
        seconds: How long it ran.
        tests: For each test that was run, "" if it passed, else what was wrong.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Isolation:
    """What this system offers for confining programs.

    Attributes:
        problem: Why no program can be run, or "".
        landlock: The version of Landlock; 0: none.
        mounts: Whether a program gets a file system of its own for its folder, whose size the kernel limits.
    """

    problem: str
    landlock: int
    mounts: bool = False


@cache
def isolation() -> Isolation:
    """What this system offers for confining programs; found out once."""
    if not sys.platform.startswith("linux"):
        return Isolation(f"the sandbox needs Linux (seccomp), this is {sys.platform}", 0)
    from proxlm.sandbox.confine import landlock_version, seccomp_available

    if not seccomp_available():
        return Isolation("the sandbox needs a kernel with seccomp filters on x86_64 or aarch64", 0)
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return Isolation(f"the sandbox needs pidfd_open, Linux 5.3 or newer: {error}", 0)
    return Isolation("", landlock_version(), _own_mounts())


def _own_mounts() -> bool:
    """Whether a process may have mounts of its own; tried in one, because that is not to be undone."""
    code = _TRY_MOUNT.format(path=_source_folder())
    with TemporaryDirectory(prefix="proxlm-sandbox-", dir=_memory_folder()) as folder:
        command = [sys.executable, *_NEW_INTERPRETER, "-c", code, folder]
        return not subprocess.run(command, env={}, capture_output=True, check=False).returncode


def check_isolation(require_landlock: bool) -> None:
    """Raise SandboxError unless programs can be confined; log a warning if they can be confined only partly."""
    found = isolation()
    if found.problem:
        raise SandboxError(found.problem)
    if not found.landlock:
        missing = "no Landlock in this kernel (Linux 5.13 with it in its list of security modules)"
        if require_landlock:
            raise SandboxError(
                f"{missing}: programs could read every file that you can; require_landlock = false runs them anyway"
            )
        _note(f"sandbox: {missing}: programs can read every file that you can, and write none")
    elif not found.mounts:
        _note(
            "sandbox: no mount namespaces here: deleted files that a program still maps are counted every 20 ms, "
            "and can take more memory than its limits in between"
        )


@cache
def _note(text: str) -> None:
    log.warning(text)


def run_python(source: str, *, stdin: str = "", limits: Limits | None = None) -> SandboxResult:
    """Run one program. See run_programs."""
    return run_programs([Program(source, stdin)], limits=limits)[0]


def run_programs(
    programs: Sequence[Program],
    *,
    limits: Limits | None = None,
    workers: int = 0,
    require_landlock: bool = True,
) -> list[SandboxResult]:
    """Run programs, each confined.

    Args:
        programs: The programs.
        limits: What each may use.
        workers: How many run at the same time; 0: one per CPU.
        require_landlock: Raise SandboxError on a kernel without Landlock, where programs could read every file.

    Returns:
        A result for each program, in their order, whatever a program does.

    Raises:
        SandboxError: This system cannot confine programs.
    """
    check_isolation(require_landlock)
    limits = limits or Limits()
    results: dict[int, SandboxResult] = {}
    queue = iter(enumerate(programs))
    with TemporaryDirectory(prefix="proxlm-sandbox-", dir=_memory_folder()) as folder:
        keepers: list[_Keeper] = []
        try:
            for _ in range(min(workers or len(os.sched_getaffinity(0)), len(programs))):
                keepers.append(_Keeper(folder, limits))
                keepers[-1].take(queue)
            while busy := [keeper for keeper in keepers if keeper.number is not None]:
                for keeper in _ready(busy):
                    results[keeper.number or 0] = keeper.result()
                    keeper.take(queue)
        finally:
            for keeper in keepers:
                keeper.close()
    return [results[number] for number in range(len(programs))]


class _Keeper:
    """A keeper process (keeper.py) and the program that it is running."""

    def __init__(self, folder: str, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self.number: int | None = None
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        self._log = Path(self._folder) / f"keeper-{id(self)}.log"
        with self._log.open("wb") as errors:
            # No environment variable of ours reaches a program; the hash seed makes the order of sets reproducible.
            self.process = subprocess.Popen(
                [sys.executable, *_NEW_INTERPRETER, "-c", _START.format(path=_source_folder())],
                env={"PYTHONHASHSEED": "0"},
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def take(self, queue: Iterator[tuple[int, Program]]) -> None:
        """Give it the next program, if there is one."""
        from proxlm.sandbox.wire import write_frame

        self.number, program = next(queue, (None, None))
        if program is None:
            return
        self.deadline = time.monotonic() + self._limits.seconds + _GRACE_SECONDS
        job = asdict(self._limits) | {
            "source": program.source,
            "stdin": program.stdin,
            "tested": bool(program.tests),
            "landlock": isolation().landlock > 0,
            "mounts": isolation().landlock > 0 and isolation().mounts,
            "folder": self._folder,
        }
        assert self.process.stdin is not None
        try:
            write_frame(self.process.stdin.fileno(), job)
            if program.tests:
                write_frame(self.process.stdin.fileno(), program.tests)
        except BrokenPipeError:
            return  # result() sees the same end

    def result(self) -> SandboxResult:
        """The result of its program; a keeper that died or does not answer is replaced."""
        from proxlm.sandbox.wire import read_frame

        try:
            if time.monotonic() >= self.deadline:
                raise EOFError
            answer: dict[str, Any] = read_frame(self.fileno(), 1 << 62)
        except EOFError:
            self.close()
            reason = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            log.warning(
                "sandbox: a keeper process ended, its program counts as crashed: %s",
                shown(one_line(reason), 2000),
            )
            self._start()
            return SandboxResult("crashed", stderr=reason)
        if answer["status"] == "unconfined":
            raise SandboxError(f"the kernel refused to confine a program: {answer['stderr']}")
        return SandboxResult(**{**answer, "tests": tuple(answer["tests"])})

    def close(self) -> None:
        """End it; a program that is still running is killed too."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def _ready(busy: list[_Keeper]) -> list[_Keeper]:
    """Wait for keepers that have answered, ended or are overdue, and return them."""
    poll = select.poll()
    for keeper in busy:
        poll.register(keeper, select.POLLIN)
    while True:
        readable = {descriptor for descriptor, _ in poll.poll(500)}
        now = time.monotonic()
        if done := [keeper for keeper in busy if keeper.fileno() in readable or now >= keeper.deadline]:
            return done


def _memory_folder() -> str | None:
    """A folder in memory, where files do not wait for a busy disk; None: use the usual temporary folder."""
    return _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None


def _source_folder() -> str:
    return str(Path(__file__).parents[2])
