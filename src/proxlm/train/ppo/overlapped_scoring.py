"""Overlapped scoring: a thread scores finished responses while others are generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from proxlm.config import RewardSettings
from proxlm.engine.generate import Generate
from proxlm.errors import RewardError
from proxlm.rl.ragged import offsets_of
from proxlm.text import listed
from proxlm.threads import SLICE_SECONDS, Worker
from proxlm.train.common.clock import Clock
from proxlm.types import Progress, Rollout, Scores

if TYPE_CHECKING:
    from proxlm.train.ppo.collect import RewardOfRollout


def overlapping(
    generate: Callable[..., Rollout], reward: RewardOfRollout, config: RewardSettings, clock: Clock
) -> tuple[Generate, RewardOfRollout]:
    """Wrap generate and reward, so that with config.overlap the reward starts while responses are generated.

    The two functions are to be called one after the other. Groups are of `overlap` responses each, in the order in
    which prompts are queued for the engine: by their length, then as they are in the batch. Neither when responses
    finish nor rollout.batch_size changes a group. Groups are scored one at a time, in this order. What the reward
    raises is raised by whichever of the two functions runs: at the next token, or while the last groups are scored.

    Args:
        generate: samples a rollout; it must take a `listener`.
        reward: scores a rollout.
        config: the section [reward].
        clock: receives the time of scoring beside generation.
    """
    if not config.overlap:
        return generate, reward
    both = _Overlap(generate, reward, config, clock)
    return both.generate, both.reward


class _Overlap:
    """The two wrapped functions and what they share: the groups of the newest rollout."""

    def __init__(
        self, generate: Callable[..., Rollout], reward: RewardOfRollout, config: RewardSettings, clock: Clock
    ) -> None:
        self._generate, self._reward, self._config, self._clock = generate, reward, config, clock

    def generate(self, *arguments: Any, **settings: Any) -> Rollout:
        """A rollout; its first groups are scored by the time it is finished."""
        self._groups = groups = _Groups(self._reward, self._config.overlap)
        with groups:
            rollout = self._generate(*arguments, listener=groups, **settings)
        seconds = self._clock.overlapped
        seconds["score_overlapped"] = seconds.get("score_overlapped", 0.0) + groups.seconds()
        return rollout

    def reward(self, rollout: Rollout) -> Scores:
        """The scores of the newest rollout, in its order, once the last group is scored."""
        scored = self._groups.wait(self._clock.log.progress)
        order = torch.tensor([row for rows, _ in scored for row in rows])
        lengths = rollout.sequences.response_lengths[order]
        tokens = [int(part.sum()) for part in lengths.split([len(rows) for rows, _ in scored])]
        parts = _alike([scores for _, scores in scored], self._config)
        return Scores.join(parts, tokens).select(order.argsort(), offsets_of(lengths))


class _Groups:
    """The groups of one rollout: a `RolloutListener`, and a context that lasts as long as the generation.

    If generation fails, groups that have not started are dropped.
    """

    def __init__(self, reward: RewardOfRollout, size: int) -> None:
        self.size = size
        self._reward, self._worker = reward, _free_worker()
        self._rows: list[list[int]] = []
        self._scores: list[Scores] = []
        self._error: BaseException | None = None
        self._dropped = False
        self._changed = threading.Condition()
        # Of finished calls; when the running call began, or 0.
        self._seconds, self._began = 0.0, 0.0

    def __enter__(self) -> None:
        """Nothing to do: work starts with the first group."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._dropped = kind is not None
        # The worker is free again after its queue; one that hangs never is.
        self._worker.do(partial(IDLE_WORKERS.append, self._worker))

    def on_group(self, rows: list[int], part: Rollout) -> None:
        """Queue a group for scoring."""
        self._rows.append(rows)
        self._worker.do(partial(self._score, part))

    def on_token(self) -> None:
        """End the generation if the reward has failed."""
        if self._error is not None:
            raise self._error

    def seconds(self) -> float:
        """How long the reward has run until now."""
        with self._changed:
            return self._seconds + (time.perf_counter() - self._began if self._began else 0.0)

    def wait(self, on_progress: Progress) -> list[tuple[list[int], Scores]]:
        """All groups, rows and scores. Raises what the reward raised."""
        rows = [0]
        for group in self._rows:
            rows.append(rows[-1] + len(group))
        reported = -1
        try:
            with self._changed:
                while (done := len(self._scores)) < len(self._rows) and self._error is None:
                    if done != reported:
                        on_progress(rows[done], rows[-1])
                        reported = done
                    # In slices, because a signal that is delivered to another thread does not end this wait.
                    self._changed.wait(SLICE_SECONDS)
        except BaseException:
            self._dropped = True
            raise
        self.on_token()
        return list(zip(self._rows, self._scores, strict=True))

    def _score(self, part: Rollout) -> None:
        """In the thread: score one group, unless it is no longer needed."""
        if self._dropped or self._error is not None:
            return
        with self._changed:
            self._began = time.perf_counter()
        scores = error = None
        try:
            scores = self._reward(part)
        except BaseException as caught:  # sys.exit() in a reward too must reach the run
            error = caught
        with self._changed:
            self._seconds, self._began = self._seconds + time.perf_counter() - self._began, 0.0
            self._error = error
            if scores is not None:
                self._scores.append(scores)
            self._changed.notify()


# Idle workers, for the next step of any run of this process.
IDLE_WORKERS: list[Worker] = []


def _free_worker() -> Worker:
    try:
        return IDLE_WORKERS.pop()
    except IndexError:
        return Worker("proxlm-overlap")


def _alike(parts: list[Scores], config: RewardSettings) -> list[Scores]:
    """The scores of the groups, all with the same components.

    A group that failed altogether has no components if no earlier call had named them: it gets error_score in each,
    as single failed responses do.

    Raises:
        RewardError: the reward returned different components for different groups.
    """
    names = list(parts[-1].components)  # a component that one call has named is known in all later ones
    for part in parts:
        if set(part.components) != set(names) and part.failed < len(part.total):
            raise RewardError(
                f"the reward returned the components {listed(part.components)} for some responses and"
                f" {listed(names)} for others (reward.overlap = {config.overlap}); every call must return the same"
            )
    return [
        replace(
            part,
            components={n: part.components.get(n, [config.error_score] * len(part.total)) for n in names},
        )
        for part in parts
    ]
