"""A process for checks that may hang: each way to end it costs one question, from any thread."""

import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxlm.errors import RewardError
from proxlm.sandbox.verifier import Verifier
from proxlm.threads import Worker

CHECKS = """
import os, re, signal, sys
held = []

def check(word):
    if word == "hang": 
        while True: pass
    if word == "hang in C": re.fullmatch("(a+)+b", "a" * 60)
    if word == "exit": os._exit(3)
    if word == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if word == "memory": held.append(bytearray(10**9))
    if word == "raise": raise ValueError("no")
    if word == "write": open("here", "w", buffering=1).write("x\\n")
    if word == "environment": return dict(os.environ)
    return [word, os.getpid()]
"""


@pytest.fixture
def verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verifier:
    (tmp_path / "own_checks.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Verifier("own_checks", 0.5, 256)


def test_every_way_to_fail_costs_its_question_alone(verifier: Verifier) -> None:
    failed = {
        "hang": "took longer than 0.5 s; its process was ended",
        "hang in C": "took longer than 0.5 s; its process was ended",
        "exit": "ended its process (status 3)",
        "kill": "ended its process (SIGKILL)",
        "memory": "needed too much memory",
        "raise": "no",
    }
    first = verifier.check({"word": "fine"})
    assert first[0] == "fine"
    assert first[1] != os.getpid()
    for word, message in failed.items():
        with pytest.raises(RewardError) as raised:
            verifier.check({"word": word})
        assert str(raised.value) == message, word
        assert verifier.check({"word": "fine"})[0] == "fine", word
    assert verifier.starts == 6  # all but the one that raised


def test_it_sees_no_variables_and_writes_no_files(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    assert "MY_KEY" not in verifier.check({"word": "environment"})
    with pytest.raises(RewardError):
        verifier.check({"word": "write"})
    assert not (tmp_path / "here").exists() or not (tmp_path / "here").read_text()


def test_threads_share_it_and_get_their_own_replies(verifier: Verifier) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: verifier.check({"word": str(n)}), range(200)))
    assert [word for word, _ in replies] == [str(n) for n in range(200)]
    # The thread that started it has ended, and it is still the same process.
    assert verifier.check({"word": "x"})[1] == replies[0][1]
    assert verifier.starts == 1


def test_a_thread_that_is_given_up_leaves_no_reply_behind(verifier: Verifier) -> None:
    slow = Verifier("own_checks", 60.0, 256)
    worker, asked, left = Worker("given-up"), threading.Event(), threading.Event()

    def job() -> None:
        try:
            slow.check({"word": "first"})
            asked.set()
            slow.check({"word": "hang"})
        finally:
            left.set()

    worker.do(job)
    assert asked.wait(60)
    time.sleep(0.1)
    worker.give_up()
    assert left.wait(60)
    assert slow.check({"word": "next"})[0] == "next"
    assert slow.starts == 2


def test_a_process_that_ended_between_two_questions_is_started_again(verifier: Verifier) -> None:
    _, pid = verifier.check({"word": "x"})
    os.kill(pid, signal.SIGKILL)
    verifier._process.wait()  # type: ignore[union-attr]
    assert verifier.check({"word": "y"})[0] == "y"


def test_it_ends_with_its_owner(verifier: Verifier, tmp_path: Path) -> None:
    own = Verifier("own_checks", 0.5, 256)
    _, pid = own.check({"word": "x"})
    del own
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_wrong_limits_and_a_module_that_cannot_be_loaded() -> None:
    for arguments, message in [((0.0, 256), "seconds = 0"), ((float("nan"), 256), "seconds = nan"),
                               ((1.0, 63), "memory_mb = 63")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{message}"):
            Verifier("own_checks", *arguments)
    with pytest.raises(RewardError, match="did not start: No module named 'no_such_checks'"):
        Verifier("no_such_checks", 1.0, 256).check({})
