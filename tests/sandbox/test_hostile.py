"""Each hostile program ends as it must, gets the set score, and leaves everything outside as it was."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, Hostile

import proxlm
from proxlm.config import RewardSettings
from proxlm.rewards import build_reward
from proxlm.sandbox import Limits, isolation, run, run_python
from proxlm.types import Completion

SOURCE = Path(proxlm.__file__).parent
SECRET = "a-secret-of-ours"
RIGHT = "def answer(): return 42"

pytestmark = pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a folder, and of each file what it holds, its mode, owner and time."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if "__pycache__" not in path.parts:
            stat = path.lstat()
            holds = path.read_bytes() if path.is_file() else None
            found[str(path)] = (holds, stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime_ns)
    return found


def processes() -> list[str]:
    """Ids of processes that run this checkout's keeper, or were forked by it; not those of other xdist workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        ours = str(SOURCE.parent).encode() in line and b"proxlm.sandbox.keeper" in line
        if ours and not of_another_worker(int(path.name)):
            found.append(path.name)
    return found


def of_another_worker(process: int) -> bool:
    """Whether the process descends from the controller of pytest-xdist, but not from this worker of it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return False
    while process > 1 and process != os.getpid():
        if process == os.getppid():
            return True
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return False
        process = int(stat.rpartition(")")[2].split()[1])
    return False


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A world to harm; when the test is over nothing of it may have changed, and no signal or packet come."""
    folder, scratch = tmp_path / "outside", tmp_path / "scratch"
    (folder / "empty").mkdir(parents=True)
    scratch.mkdir()
    canary = folder / "canary"
    canary.write_text(SECRET)
    monkeypatch.setattr(run, "_IN_MEMORY", str(scratch))
    monkeypatch.setenv("PROXLM_SECRET", SECRET)
    tcp, udp, unix = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
    pair = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    signals: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGIO, signal.SIGHUP, signal.SIGUSR1)
    old = {kind: signal.signal(kind, lambda number, _: signals.append(number)) for kind in kinds}
    with tcp, udp, unix, pair:
        for one, place in (
            (tcp, ("127.0.0.1", 0)),
            (udp, ("127.0.0.1", 0)),
            (unix, str(tmp_path / "socket")),
        ):
            one.bind(place)
            one.setblocking(False)
        tcp.listen()
        unix.listen()
        before = contents(folder), contents(SOURCE / "sandbox"), os.getpriority(os.PRIO_PROCESS, 0)
        yield {
            "@CANARY@": str(canary), "@FOLDER@": str(folder), "@PARENT@": str(os.getpid()),
            "@TCP@": str(tcp.getsockname()[1]), "@UDP@": str(udp.getsockname()[1]),
            "@UNIX@": str(tmp_path / "socket"), "@SOURCE@": str(SOURCE),
        }  # fmt: skip
        after = contents(folder), contents(SOURCE / "sandbox"), os.getpriority(os.PRIO_PROCESS, 0)
        for listens in (tcp, unix):
            with pytest.raises(BlockingIOError):
                listens.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)
    for kind, handler in old.items():
        signal.signal(kind, handler)
    assert after == before
    assert signals == []
    assert list(scratch.iterdir()) == []
    assert not [p for p in (Path("/tmp/proxlm-hostile"), Path("/dev/shm/proxlm-hostile")) if p.exists()]
    deadline = time.monotonic() + 5  # a killed process is seen for a moment
    while processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes() == []


def filled(source: str, outside: dict[str, str]) -> str:
    for word, value in outside.items():
        source = source.replace(word, value)
    return source


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: h.name)
def test_a_hostile_program_ends_as_it_must_and_changes_nothing(
    hostile: Hostile, outside: dict[str, str]
) -> None:
    source = filled(hostile.source, outside)
    # Time for a busy machine, but where the program is to run out of it.
    seconds = 1.0 if "timeout" in (hostile.alone, hostile.tested) else 10.0
    result = run_python(source, limits=Limits(seconds=seconds, memory=256 << 20))
    assert result.status == hostile.alone, result
    assert SECRET not in result.stdout + result.stderr
    assert len(result.stdout) <= 1 << 16
    assert result.seconds < seconds + 120
    if hostile.says:
        assert result.stdout == hostile.says

    args = {"failure": -1.0, "seconds": seconds, "memory_mb": 256, "workers": 2}
    reward = build_reward(RewardSettings(use="python_tests", args=args))
    fields = {"tests": ["assert answer() == 42"]}
    scores = reward.score([Completion("", text, fields=fields) for text in (source, RIGHT)])
    status = hostile.tested or hostile.alone
    assert scores.total.tolist() == [0.0 if status == "ok" else -1.0, 1.0]
    assert scores.failed == 0
    told = {name: values[0] for name, values in scores.components.items() if name != "passed"}
    assert told == {name: float(name == status) for name in told}


def test_there_are_enough_of_them() -> None:
    assert len({h.name for h in HOSTILE}) == len(HOSTILE) >= 25
