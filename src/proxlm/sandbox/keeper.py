"""The keeper: a process that runs untrusted programs one after another, each in processes of its own.

    run ── keeper: never reads a program
             └─ watcher, one for each program: reads it, enforces its limits, ends it, replies
                  ├─ the program, confined
                  └─ its tests, confined; they are sent only after the program has its process

So a program finds neither its tests nor anything of an earlier program in its own memory.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import shutil
import signal
import site
import sys
import traceback
from collections.abc import Callable
from typing import Any

from proxlm.sandbox.confine import confine, die_with_parent, limit_resources, mount_folder
from proxlm.sandbox.inside import run_program, run_tests, take_streams
from proxlm.sandbox.watch import READY, Watched, watch
from proxlm.sandbox.wire import Peer, read_frame, write_frame

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache",
           "/dev/urandom")  # fmt: skip
_SPARE = 64


def main() -> None:
    """Serve on standard input and output until the input ends, then remove the folder in which this was started.

    Normally the run ends this process before that, and removes the folder itself.
    """
    site.setquit()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # ignored, as a parent may hand it down, it hides how children end
    gc.freeze()  # a collection in a fork would copy every page
    poll = select.poll()
    poll.register(0, select.POLLIN)
    failed = False
    while not failed and poll.poll()[0][1] & select.POLLIN:
        keeper = os.getpid()
        watcher = os.fork()
        if watcher == 0:
            die_with_parent(keeper)
            _or_exit(_serve_one)
        failed = os.waitpid(watcher, 0)[1] != 0
    if any(events & select.POLLHUP for _, events in poll.poll(0)):
        shutil.rmtree(os.getcwd(), ignore_errors=True)


def _serve_one() -> int:
    job = read_frame(0)
    folder = os.path.join(job["folder"], str(os.getpid()))
    os.mkdir(folder, 0o700)
    if job["mounts"]:
        # Room for a little more than the limits, so that the watcher sees them exceeded. Files take whole pages.
        files = job["files"] + _SPARE
        mount_folder(folder, job["file_size"] + files * resource.getpagesize(), files)
    os.chdir(folder)
    # A program may open only its own folder; without Landlock, which enforces this, it has none.
    own = folder if job["landlock"] else None
    pipes = {name: os.pipe() for name in ("ready", "output", "error", "report", "asked", "answered")}

    def start(body: Callable[[], int], streams: dict[int, int]) -> int:
        """Fork a process that confines itself, reports that it is confined, and then runs `body`."""
        watcher = os.getpid()
        child = os.fork()
        if child == 0:
            die_with_parent(watcher)
            take_streams({**streams, 5: pipes["ready"][1]})
            _or_exit(lambda: _confined(job, own, body))
        return child

    def program() -> int:
        # Descriptor 5 is closed by now; besides the three standard streams only the line to the tests is open.
        return run_program(job["source"], Peer(3, 4, open=True) if job["tested"] else None)

    line = {3: pipes["asked"][0], 4: pipes["answered"][1]} if job["tested"] else {}
    process = start(program, {0: _file(job["stdin"]), 1: pipes["output"][1], 2: pipes["error"][1], **line})
    judge = None
    if job["tested"]:
        tests = read_frame(0)

        def judged() -> int:
            run_tests(tests, Peer(3, 4, open=False), 6)
            return 0

        nothing = os.open(os.devnull, os.O_RDWR)
        streams = {0: nothing, 1: nothing, 2: nothing, 3: pipes["answered"][0], 4: pipes["asked"][1]}
        judge = start(judged, {**streams, 6: pipes["report"][1]})
    for name in ("ready", "output", "error", "report", "answered"):
        os.close(pipes[name][1])
    for name in ("asked", "answered"):
        os.close(pipes[name][0])
    os.close(pipes["asked"][1])
    ready, output, error, report = (pipes[name][0] for name in ("ready", "output", "error", "report"))
    write_frame(1, watch(Watched(process, judge, folder, job["mounts"], ready, output, error, report), job))
    return 0


def _confined(job: dict[str, Any], folder: str | None, body: Callable[[], int]) -> int:
    try:
        limit_resources(job["seconds"], job["memory"], job["file_size"], job["open_files"])
        confine([*sys.path, *_SYSTEM], folder)
    except Exception as error:
        os.write(5, f"{type(error).__name__}: {error}".encode())
        return 1
    os.write(5, READY)
    os.close(5)
    for name in [name for name in sys.modules if name.split(".")[0] == "proxlm"]:
        del sys.modules[name]  # so that a program sees the modules of a new interpreter
    return body()


def _file(text: str) -> int:
    """The descriptor of an in-memory file with the text, positioned at its beginning."""
    descriptor = os.memfd_create("stdin")
    left = text.encode("utf-8", "surrogatepass")
    while left:
        left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _or_exit(body: Callable[[], int]) -> None:
    """End this process with the status that `body` returns, whatever happens: a child must not go on as keeper."""
    status = 1
    try:
        status = body()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
