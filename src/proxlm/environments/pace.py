"""How long a rollout stands still for environments, so that no batch depends on the clock.

Logits of a row differ in their last bits with the rows beside it. If a conversation's next turn joined whenever its
environment happens to answer, equal runs would differ by rounding. So the rollout waits for the answers to the turns
that have just ended, unless that would take too long: then turns join as they are answered.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

# Waits shorter than this do not count.
QUICK_SECONDS = 0.02
# How long the other waits of one rollout may take: so many seconds, and this share of the rollout's time.
PATIENT_SECONDS, WAITING_SHARE = 5.0, 0.02
# The same once the environment has been found slow: so many answers in a row took more than this on average.
SLOW_SECONDS = 0.1
SLOW_ANSWERS, SLOW_ANSWER_SECONDS = 4, 0.075


@dataclass
class Pace:
    """What is known of an environment's pace, from one rollout to the next.

    Attributes:
        lockstep: Wait however long it takes.
        slow: The environment was too slow to be waited for, in this rollout or the one before.
    """

    lockstep: bool = False
    slow: bool = False
    _told: bool = field(default=False, repr=False)

    def news(self) -> str:
        """What is to be said about the pace; empty: nothing, or it has been said."""
        if not self.slow or self._told:
            return ""
        self._told = True
        return (
            "the environment answers slowly, so turns join when they are answered, and equal runs are equal but for"
            " rounding; environment.lockstep = true waits for every answer"
        )


class Waits:
    """The waits of one rollout."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.began, self.waited = pace, time.monotonic(), 0.0
        self._late = False
        self._wait_began = self.began
        self._newest: deque[float] = deque(maxlen=SLOW_ANSWERS)

    def begin(self) -> None:
        """A wait begins."""
        self._wait_began = time.monotonic()

    def left(self) -> float:
        """How many more seconds this wait may take; 0: none."""
        if self.pace.lockstep:
            return 1.0  # then it is asked again
        first = SLOW_SECONDS if self.pace.slow else PATIENT_SECONDS
        budget = first + WAITING_SHARE * (self._wait_began - self.began) - self.waited
        window = min(QUICK_SECONDS, budget) if self.pace.slow else budget
        return max(0.0, self._wait_began + window - time.monotonic())

    def end(self, missing: bool) -> None:
        """The wait is over; missing: without some of the answers."""
        took = time.monotonic() - self._wait_began
        if missing or took > QUICK_SECONDS:
            self.waited += took
        if missing:
            self.pace.slow = self._late = True

    def answered(self, seconds: float) -> None:
        """An answer to a turn has come, which took so many seconds of the environment's own."""
        self._newest.append(seconds)
        if len(self._newest) == SLOW_ANSWERS and sum(self._newest) > SLOW_ANSWERS * SLOW_ANSWER_SECONDS:
            self.pace.slow = self._late = True

    def finish(self) -> None:
        """The rollout is complete: where every answer came in time, the next one is patient again."""
        self.pace.slow = self._late
