"""Calls of environments: one thread for each, a time limit, and what becomes of a call that is over it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time

import pytest

from proxlm.environments.pool import Calls

LONG = 30.0  # seconds after which what hangs has failed


@pytest.fixture
def calls():
    made = Calls(timeout=LONG)
    yield made
    made.close()


def heard(calls):
    """All outcomes of what is going on, as (key, value, error)."""
    found = []
    while calls:
        found += calls.ended(1.0)
    return sorted(found)


def test_each_environment_has_one_thread_for_all_its_calls(calls):
    threads = {0: set(), 1: set()}
    for _ in range(3):
        for key in threads:
            calls.start(key, threading.current_thread)
        for key, thread, _ in heard(calls):
            threads[key].add(thread)
    assert [len(found) for found in threads.values()] == [1, 1]
    assert threads[0] != threads[1]
    calls.close()
    for thread in (*threads[0], *threads[1]):
        thread.join(LONG)
        assert not thread.is_alive()


def test_what_reset_opens_may_be_bound_to_its_thread(calls):
    """sqlite3 refuses a connection that another thread has opened."""
    calls.start(0, sqlite3.connect, ":memory:")
    ((_, connection, _),) = heard(calls)
    calls.start(0, lambda: connection.execute("select 6 * 7").fetchone())
    assert heard(calls) == [(0, (42,), None)]
    calls.start(0, connection.close)
    assert heard(calls) == [(0, None, None)]


def test_an_endless_loop_is_ended_at_the_time_limit():
    calls, stopped = Calls(timeout=0.2), threading.Event()

    def hang():
        try:
            while True:
                pass
        finally:
            stopped.set()

    calls.start(7, hang)
    calls.start(8, lambda: "in time")
    late, quick = sorted(heard(calls))
    assert quick == (8, "in time", None)
    assert (late.key, str(late.error)) == (7, "no answer within 0.2 seconds")
    assert stopped.wait(LONG)
    calls.start(7, lambda: "anew")
    assert heard(calls) == [(7, "anew", None)]
    calls.close()


def test_coroutines_share_a_loop_and_are_cancelled_at_the_end():
    calls, seen = Calls(timeout=0.2), []

    async def loop():
        return id(asyncio.get_running_loop())

    async def hang():
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    for key in (0, 1):
        calls.start(key, loop)
    assert len({value for _, value, _ in heard(calls)}) == 1
    calls.start(2, hang)
    assert isinstance(heard(calls)[0].error, TimeoutError)
    began = time.monotonic()
    calls.close()
    assert seen == ["cancelled"]
    assert time.monotonic() - began < LONG / 2
