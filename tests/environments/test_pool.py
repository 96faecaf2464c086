"""Calls of environments: one thread each, a time limit, and what happens to a call that exceeds it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time

import pytest

from proxlm.environments.pool import EnvironmentPool

LONG = 30.0  # seconds after which what hangs has failed


@pytest.fixture
def pool():
    made = EnvironmentPool(timeout=LONG)
    yield made
    made.close()


def results(pool):
    """The results of all running calls, as (key, value, error)."""
    found = []
    while pool:
        found += pool.finished(1.0)
    return sorted(found)


def test_each_environment_has_one_thread_for_all_its_calls(pool):
    threads = {0: set(), 1: set()}
    for _ in range(3):
        for key in threads:
            pool.start(key, threading.current_thread)
        for key, thread, _ in results(pool):
            threads[key].add(thread)
    assert [len(found) for found in threads.values()] == [1, 1]
    assert threads[0] != threads[1]
    pool.close()
    for thread in (*threads[0], *threads[1]):
        thread.join(LONG)
        assert not thread.is_alive()


def test_what_reset_opens_may_be_bound_to_its_thread(pool):
    """sqlite3 refuses a connection that another thread has opened."""
    pool.start(0, sqlite3.connect, ":memory:")
    ((_, connection, _),) = results(pool)
    pool.start(0, lambda: connection.execute("select 6 * 7").fetchone())
    assert results(pool) == [(0, (42,), None)]
    pool.start(0, connection.close)
    assert results(pool) == [(0, None, None)]


def test_an_endless_loop_is_ended_at_the_time_limit():
    pool, stopped = EnvironmentPool(timeout=2.0), threading.Event()

    def hang():
        try:
            while True:
                pass
        finally:
            stopped.set()

    pool.start(7, hang)
    pool.start(8, lambda: "in time")
    late, quick = sorted(results(pool))
    assert quick == (8, "in time", None)
    assert (late.key, str(late.error)) == (7, "no answer within 2 seconds")
    assert stopped.wait(LONG)
    pool.start(7, lambda: "anew")
    assert results(pool) == [(7, "anew", None)]
    pool.close()


def test_coroutines_share_a_loop_and_are_cancelled_at_the_end():
    pool, seen = EnvironmentPool(timeout=2.0), []

    async def loop():
        return id(asyncio.get_running_loop())

    async def hang():
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    for key in (0, 1):
        pool.start(key, loop)
    assert len({value for _, value, _ in results(pool)}) == 1
    pool.start(2, hang)
    assert isinstance(results(pool)[0].error, TimeoutError)
    began = time.monotonic()
    pool.close()
    assert seen == ["cancelled"]
    assert time.monotonic() - began < LONG / 2
