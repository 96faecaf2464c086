"""A sign of life of each rank, in the store that they share: how a rank that hangs is found and named."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

# Seconds between two signs, and how many of them a rank may miss.
_INTERVAL, _MISSED = 5.0, 3


class Heartbeat:
    """Says from a thread of its own that this rank lives, and in which phase it is: when that changes, and every few
    seconds.

    A process that is stopped, or whose machine is lost, gives no sign; one that waits or computes does.

    Args:
        store: A store of torch.distributed, of all ranks.
        rank: This one's number.
        size: How many there are.
        timeout: Seconds that a rank waits for the others; signs are more frequent where that is short.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        # The main thread may wait for a key on the connection of the store that was given.
        self._store, self.rank, self.size = store.clone(), rank, size
        self._interval = min(_INTERVAL, timeout / 10)
        self._phase, self._since, self._count = "the start", time.monotonic(), 0
        self._end, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """This rank begins something else."""
        self._phase, self._since = phase, time.monotonic()
        self._news.set()  # said at once: a process that is stopped now says nothing more

    def close(self) -> None:
        """No more signs."""
        self._end.set()
        self._news.set()
        self._thread.join(2 * self._interval)

    def others(self) -> str:
        """The ranks that give no sign, and where they were; of ranks that all do, where each is. It takes seconds."""
        before = self._read()
        time.sleep(_MISSED * self._interval)
        now = self._read()
        silent = [rank for rank in now if now[rank][0] == before[rank][0]]
        places = {
            rank: f"last phase: {phase}, for {seconds:.0f} s" for rank, (_, phase, seconds) in now.items()
        }
        if silent:
            return "; ".join(f"rank {rank} gives no sign of life ({places[rank]})" for rank in silent)
        return "all ranks live: " + "; ".join(f"rank {rank}: {place}" for rank, place in places.items())

    def _read(self) -> dict[int, tuple[int, str, float]]:
        """The newest sign of each other rank: its number, the phase and seconds in it."""
        found: dict[int, tuple[int, str, float]] = {}
        for rank in range(self.size):
            if rank != self.rank:
                known = self._store.check([f"alive/{rank}"])
                number, phase, seconds = json.loads(self._store.get(f"alive/{rank}")) if known else (0, "", 0)
                found[rank] = (int(number), str(phase) or "the start", float(seconds))
        return found

    def _run(self) -> None:
        while True:
            self._news.clear()
            if self._end.is_set():
                return
            self._count += 1
            sign: list[Any] = [self._count, self._phase, time.monotonic() - self._since]
            try:
                self._store.set(f"alive/{self.rank}", json.dumps(sign))
            except RuntimeError:  # the store is gone, and with it the run
                return
            self._news.wait(self._interval)
