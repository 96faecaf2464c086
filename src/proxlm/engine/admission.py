"""How many waiting requests join the running batch, and when."""

from __future__ import annotations

# Reading new prompts costs about as much as one step of the whole batch. So requests join a running batch when they
# are this share of it, or when some have waited for so many steps.
JOIN_SHARE, JOIN_STEPS = 1 / 8, 4


class Admission:
    """Decides, before each step, how many requests are admitted.

    Args:
        batch_size: most requests that run at once.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._patience = JOIN_STEPS

    def count(self, waiting: int, running: int, can_join: bool) -> int:
        """How many of the waiting requests to admit now.

        Args:
            waiting: requests in the queue.
            running: requests in the batch.
            can_join: whether rows may join a batch that is running; else a batch is admitted when the last one is
                done.
        """
        count = min(waiting, self.batch_size - running)
        if count < 1:
            return 0
        if running:
            if not can_join:
                return 0
            self._patience -= 1
            if count < JOIN_SHARE * running and self._patience > 0:
                return 0
        self._patience = JOIN_STEPS
        return count
