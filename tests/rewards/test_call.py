import asyncio
import gc
import subprocess
import sys
import threading

import pytest

from proxlm.rewards.call import Outcome, TimedCaller


def test_the_value_of_a_sync_and_of_an_async_function() -> None:
    async def later() -> int:
        await asyncio.sleep(0)
        return 7

    caller = TimedCaller()
    assert caller.call(lambda: 7, 5) == Outcome(7)
    assert caller.call(later, 5) == Outcome(7)


def test_an_async_function_works_where_a_loop_already_runs() -> None:
    async def later() -> int:
        await asyncio.sleep(0)
        return 7

    async def main() -> Outcome:
        return TimedCaller().call(later, 5)

    assert asyncio.run(main()) == Outcome(7)


def test_a_sync_function_may_run_its_own_loop() -> None:
    async def later() -> int:
        return 7

    assert TimedCaller().call(lambda: asyncio.run(later()), 5) == Outcome(7)


def test_the_loop_and_the_thread_stay_the_same_from_call_to_call() -> None:
    async def where() -> tuple[int, int]:
        return id(asyncio.get_running_loop()), threading.get_ident()

    caller = TimedCaller()
    assert caller.call(where, 5).value == caller.call(where, 5).value


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), TimeoutError("mine")]
)
def test_whatever_a_function_raises_comes_back(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    caller = TimedCaller()
    assert caller.call(fail, 5) == Outcome(error=error)
    if isinstance(error, Exception):
        assert caller.call(fail_later, 5) == Outcome(error=error)
    assert caller.call(lambda: 1, 5) == Outcome(1)


@pytest.mark.parametrize("seconds", [1e9, 1e300])
def test_a_limit_beyond_what_the_system_can_wait_is_no_limit(seconds: float) -> None:
    assert TimedCaller().call(lambda: 1, seconds) == Outcome(1)


def test_a_hanging_sync_function_is_given_up_and_its_loop_ended() -> None:
    stopped = threading.Event()

    def hang() -> None:
        try:
            while True:
                pass
        finally:
            stopped.set()

    caller = TimedCaller()
    assert caller.call(hang, 0.1) == Outcome(timed_out=True)
    assert stopped.wait(10)
    assert caller.call(lambda: 1, 5) == Outcome(1)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_hanging_async_function_is_cancelled(stubborn: bool) -> None:
    seen = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.set()
            if stubborn:
                raise ValueError("never looked at") from None
            raise

    caller = TimedCaller()
    assert caller.call(hang, 0.1) == Outcome(timed_out=True)
    assert seen.wait(10)
    assert caller.call(lambda: 1, 5) == Outcome(1)


def test_an_async_function_that_blocks_its_loop_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    threads: list[threading.Thread] = []

    async def hang() -> None:
        threads.append(threading.current_thread())
        release.wait(60)

    caller = TimedCaller()
    assert caller.call(hang, 0.1) == Outcome(timed_out=True)
    assert caller.call(lambda: 1, 5) == Outcome(1)
    release.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
    gc.collect()
    assert not caplog.records  # asyncio says of what nobody looks at that it was never retrieved


def test_an_async_function_that_cancels_itself_has_failed() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    outcome = TimedCaller().call(cancel, 5)
    assert isinstance(outcome.error, asyncio.CancelledError)


def test_the_thread_ends_with_its_caller() -> None:
    caller = TimedCaller()
    thread = caller.call(threading.current_thread, 5).value
    assert thread.is_alive()
    assert thread.daemon
    del caller
    thread.join(10)
    assert not thread.is_alive()


def test_a_hanging_function_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading\n"
        "from proxlm.rewards.call import TimedCaller\n"
        "print(TimedCaller().call(threading.Event().wait, 0.1).timed_out)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True\n"
    assert done.stderr == ""
