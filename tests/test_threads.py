"""Workers: one thread for all jobs, in order, which ends with the last one who holds it."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager

from proxlm.threads import Worker

LONG = 30.0  # seconds after which what hangs has failed


def done(worker: Worker) -> threading.Thread:
    """Wait until the worker has done what it was given; returns its thread."""
    found: list[threading.Thread] = []
    ended = threading.Event()
    worker.do(lambda: found.append(threading.current_thread()))
    worker.do(ended.set)
    assert ended.wait(LONG)
    return found[0]


def test_jobs_come_one_after_another_in_one_named_daemon_thread():
    worker, seen, inside = Worker("of a test"), [], []

    def job(number):
        inside.append(number)
        assert len(inside) == 1
        seen.append((number, threading.get_ident()))
        inside.clear()

    for number in range(50):
        worker.do(lambda number=number: job(number))
    thread = done(worker)
    assert seen == [(number, thread.ident) for number in range(50)]
    assert (thread.name, thread.daemon) == ("of a test", True)
    assert thread is not threading.main_thread()


def test_a_worker_that_nobody_holds_does_what_it_was_given_and_ends():
    worker, gate, seen = Worker("of a test"), threading.Event(), []
    thread = done(worker)
    worker.do(lambda: seen.append(gate.wait(LONG)))
    worker.do(lambda: seen.append("last"))
    del worker
    gate.set()
    thread.join(LONG)
    assert not thread.is_alive()
    assert seen == [True, "last"]


def test_a_job_may_hold_its_own_worker_until_it_has_been_done():
    """As where a worker puts itself back among the free ones."""
    free: list[Worker] = []
    worker = Worker("of a test")
    thread = done(worker)
    ended = threading.Event()
    worker.do(lambda worker=worker: free.append(worker))
    worker.do(ended.set)
    del worker
    assert ended.wait(LONG)
    assert thread is done(free[0])
    free.clear()
    thread.join(LONG)
    assert not thread.is_alive()


def test_what_a_job_held_is_let_go_when_it_is_done():
    class Rollout:
        pass

    worker, rollout = Worker("of a test"), Rollout()
    held = weakref.ref(rollout)
    worker.do(lambda rollout=rollout: None)
    del rollout
    done(worker)
    assert held() is None


def test_a_job_that_hangs_does_not_keep_the_process_alive():
    program = (
        "import threading\n"
        "from proxlm.threads import Worker\n"
        "worker, began = Worker('hangs'), threading.Event()\n"
        "worker.do(lambda: (began.set(), threading.Event().wait()))\n"
        "print(began.wait(30))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_a_worker_that_is_given_up_ends_with_its_context():
    begun, stopped, seen = threading.Event(), threading.Event(), []

    @contextmanager
    def inside():
        seen.append(threading.get_ident())
        try:
            yield
        finally:
            seen.append("closed")

    def hang():
        begun.set()
        try:
            while True:
                pass
        finally:
            stopped.set()

    worker = Worker("of a test", inside())
    thread = done(worker)
    worker.do(hang)
    assert begun.wait(LONG)
    worker.give_up()
    assert stopped.wait(LONG)
    thread.join(LONG)
    assert not thread.is_alive()
    assert seen == [thread.ident, "closed"]
    worker.give_up()  # nothing is left to end
