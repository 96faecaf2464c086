"""Where a step's rollout comes from: made when it is asked for, or ahead, while the update before it runs.

Ahead means one step: while step k learns, a copy of the policy from before that writes the responses of step k + 1.
So the first step is on-policy and every later one is one update stale, however quick either side is.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from proxlm.errors import ConfigError
from proxlm.models.language_model import LanguageModel
from proxlm.models.model_types import SHORT_NAMES
from proxlm.threads import SLICE_SECONDS, Worker
from proxlm.train.common.clock import Clock, StepLog
from proxlm.train.common.memory import is_out_of_memory
from proxlm.train.ppo.collect import Collected

# (policy, step, number of the first batch of prompts, version of the policy, clock) → the step's scored rollout.
Collect = Callable[[LanguageModel, int, int, int, Clock], Collected]
# What a job that is no longer wanted has to notice it: a token of all responses, or a reward that goes on.
LEAVE_SECONDS = 2.0


class Collector:
    """Each step's scored rollout, sampled by the policy as it is."""

    def __init__(self, policy: LanguageModel) -> None:
        self.policy = policy

    def take(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        """The rollout of step number `step`; draw: the number of its first batch of prompts."""
        return collect(self.policy, step, draw, step, clock)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the policy, to be copied back on a resume."""
        return {}

    def go_on_from(self, step: int) -> None:
        """The run goes on from the checkpoint after `step` steps."""

    def close(self) -> None:
        """Nothing is wanted for now; `take` may be called again."""


class Prefetcher(Collector):
    """Makes the next step's rollout in a thread of its own. `steps`: of the whole run.

    Raises ConfigError for a policy whose passes change what the whole process computes.
    """

    def __init__(self, policy: LanguageModel, steps: int) -> None:
        super().__init__(policy)
        if policy.bfloat16 and policy.network.config.model_type in SHORT_NAMES.values():
            # Its passes switch oneDNN off for the whole process, which changes bfloat16 products of the other thread.
            raise ConfigError("ppo.prefetch: a recurrent policy needs model.precision = float32")
        self._steps = steps
        self.snapshot = frozen_copy(policy)
        twins = dict(self.snapshot.network.named_parameters())
        self._learning = [(name, p, twins[name]) for name, p in policy.trainable()]
        self.version: int | None = None  # of the snapshot: how many updates it has seen
        self._job: _Job | None = None
        self._worker: Worker | None = None

    def take(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        """The rollout of `step`. From here on the next one is being made, and the policy may learn."""
        if self.version is None:
            self._refresh(step)
        if self._job is not None and self._job.step != step:
            self.close()
        with clock("waiting"):
            found, clock.beside = self._made(clock.log) or self._make(collect, step, draw, clock.log)
        self._refresh(step)
        if step + 1 < self._steps:
            self._begin(collect, step + 1, draw + found.draws)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The copy that samples the next step, which is older than the policy."""
        return {f"prefetch.{name}": twin for name, _, twin in self._learning}

    def go_on_from(self, step: int) -> None:
        self.close()
        self.version = step - 1

    def close(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.abandoned = True
            if not job.done.wait(LEAVE_SECONDS):
                self._worker = None  # it is left behind

    @torch.no_grad()
    def _refresh(self, version: int) -> None:
        """The snapshot becomes the policy as it is."""
        for _, p, twin in self._learning:
            twin.copy_(p)
        self.version = version

    def _begin(self, collect: Collect, step: int, draw: int) -> None:
        if self._worker is None:
            self._worker = Worker("proxlm-prefetch")
        assert self.version is not None
        self._job = _Job(step, partial(collect, self.snapshot, step, draw, self.version))
        self._worker.do(self._job.run)

    def _made(self, log: StepLog) -> tuple[Collected, dict[str, float]] | None:
        """What the thread has made, and its seconds by phase; None if there is nothing. Raises what it raised."""
        job = self._job
        if job is None:
            return None
        while not job.done.wait(SLICE_SECONDS):
            log.progress(*job.at)
        self._job = None
        for note in job.notes:
            log.note(note)
        if job.found is not None:
            return job.found, job.clock.seconds | job.clock.beside
        assert job.error is not None
        if not is_out_of_memory(job.error):
            raise job.error
        log.note("out of memory while responses were written beside an update; they are written alone")
        job.error = None
        gc.collect()
        return None

    def _make(
        self, collect: Collect, step: int, draw: int, log: StepLog
    ) -> tuple[Collected, dict[str, float]]:
        """The same here and now: in the first step, and in the first one after a resume."""
        assert self.version is not None
        clock = Clock(log)
        return collect(self.snapshot, step, draw, self.version, clock), clock.seconds | clock.beside


class _Job:
    """One rollout being made. It is told what else the run's log would be, which belongs to the main thread."""

    def __init__(self, step: int, collect: Callable[[Clock], Collected]) -> None:
        self.step, self._collect = step, collect
        self.clock = Clock(self)
        self.done, self.abandoned = threading.Event(), False
        self.found: Collected | None = None
        self.error: BaseException | None = None
        self.notes: list[str] = []
        self.at = (0, 0)
        self._threads = torch.get_num_threads()

    def run(self) -> None:
        try:
            torch.set_num_threads(self._threads)  # each thread has a number of its own
            with torch.no_grad():
                self.found = self._collect(self.clock)
        except BaseException as error:  # sys.exit() in a reward must not end the thread unheard
            self.error = error
        finally:
            self.done.set()

    def phase(self, name: str) -> None:  # noqa: ARG002
        self.progress(0, 0)

    def progress(self, done: int, total: int) -> None:
        if self.abandoned:
            raise AbandonedError
        self.at = (done, total)

    def note(self, text: str) -> None:
        self.notes.append(text)


class AbandonedError(Exception):
    """Ends a rollout that nobody waits for."""


def frozen_copy(policy: LanguageModel) -> LanguageModel:
    """A policy of its own: network, adapters and tokenizer. What never learns, as the base below adapters, is shared.

    Adapters are switched and tokenizers set while they are used, so two threads cannot have the same ones.
    """
    shared: dict[int, Any] = {id(p): p for p in policy.network.parameters() if not p.requires_grad}
    network, adapters = copy.deepcopy((policy.network, policy.adapters), shared)
    for p in network.parameters():
        p.requires_grad_(False)
    return replace(policy, network=network, adapters=adapters, tokenizer=copy.deepcopy(policy.tokenizer))
