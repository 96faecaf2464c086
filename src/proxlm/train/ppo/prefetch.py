"""Where a step's rollout comes from: sampled when it is needed, or prefetched while the update before it runs.

Prefetching is one-step off-policy: while step k learns, an engine on a copy of the policy from before that update
samples the responses of step k + 1. So the first step is on-policy and every later one is one update stale, however
fast either side is.
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

from proxlm.config import RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.errors import ConfigError
from proxlm.models.language_model import LanguageModel
from proxlm.models.model_types import SHORT_NAMES
from proxlm.threads import SLICE_SECONDS, Worker
from proxlm.train.common.clock import Clock, StepLog
from proxlm.train.common.memory import is_out_of_memory
from proxlm.train.ppo.collect import Collected

# (engine, step, number of the first batch of prompts, clock) → the step's scored rollout.
Collect = Callable[[Engine, int, int, Clock], Collected]
# How long to wait for an abandoned job: it notices at its next token, or when its reward is done.
LEAVE_SECONDS = 2.0


class Collector:
    """Each step's scored rollout, sampled with the policy's current weights.

    Args:
        policy: what learns.
        engine: on the policy.
    """

    def __init__(self, policy: LanguageModel, engine: Engine) -> None:
        self.policy, self.engine = policy, engine

    def take(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        """The rollout of a step.

        Args:
            collect: samples and scores it.
            step: number of the step.
            draw: number of its first batch of prompts.
            clock: times the phases.
        """
        self.engine.load_weights(self.policy.trainable(), step)
        return collect(self.engine, step, draw, clock)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the policy, to be copied back on a resume."""
        return {}

    def resume(self, step: int) -> None:
        """The run continues from the checkpoint after `step` steps."""

    def wait(self) -> None:
        """Wait until nothing runs in the background, such as a call of the reward."""

    def close(self) -> None:
        """Stop what runs in the background; `take` may be called again."""


class Prefetcher(Collector):
    """Samples and scores the next step's rollout in a thread of its own, with an engine on a frozen copy of the
    policy.

    Args:
        policy: what learns.
        settings: of the engine.
        steps: of the whole run.

    Raises:
        ConfigError: a forward pass of this policy changes what the whole process computes.
    """

    engine: NativeEngine

    def __init__(self, policy: LanguageModel, settings: RolloutSettings, steps: int) -> None:
        if policy.bfloat16 and policy.network.config.model_type in SHORT_NAMES.values():
            # Its passes switch oneDNN off for the whole process, which changes bfloat16 products of the other thread.
            raise ConfigError("ppo.prefetch: a recurrent policy needs model.precision = float32")
        super().__init__(policy, NativeEngine(frozen_copy(policy), settings))
        self._settings, self._steps = settings, steps
        self._loaded = False  # whether the copy has been refreshed, or read from a checkpoint
        self.in_flight: _Job | None = None
        self._worker: Worker | None = None

    def take(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        """The rollout of a step. The next one is started, and the policy may learn."""
        if not self._loaded:
            self._refresh(step)
        if self.in_flight is not None and self.in_flight.step != step:
            self.close()
        with clock("waiting"):
            found, clock.overlapped = self._prefetched(clock.log) or self._collect_now(
                collect, step, draw, clock.log
            )
        self._refresh(step)
        if step + 1 < self._steps:
            self._start(collect, step + 1, draw + found.draws)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The copy that samples the next step, which is older than the policy."""
        copies = dict(self.engine.model.network.named_parameters())
        return {f"prefetch.{name}": copies[name] for name, _ in self.policy.trainable()}

    def resume(self, step: int) -> None:
        """The copy in the checkpoint is the policy from before its last update."""
        self.close()
        self.engine.load_weights([], step - 1)
        self._loaded = True

    def wait(self) -> None:
        """Wait for the rollout that is being sampled; `take` returns it later."""
        if self.in_flight is not None:
            self.in_flight.done.wait()

    def close(self) -> None:
        """Abandon the rollout that is being sampled."""
        job, self.in_flight = self.in_flight, None
        if job is not None:
            job.abandoned = True
            if not job.done.wait(LEAVE_SECONDS):
                # The thread keeps its engine until it notices; another one takes over the copy.
                self._worker, version = None, self.engine.version
                self.engine = NativeEngine(self.engine.model, self._settings)
                self.engine.load_weights([], version)

    def _refresh(self, version: int) -> None:
        """Copy the policy's current weights to the engine."""
        self.engine.load_weights(self.policy.trainable(), version)
        self._loaded = True

    def _start(self, collect: Collect, step: int, draw: int) -> None:
        if self._worker is None:
            self._worker = Worker("proxlm-prefetch")
        self.in_flight = _Job(step, partial(collect, self.engine, step, draw))
        self._worker.do(self.in_flight.run)

    def _prefetched(self, log: StepLog) -> tuple[Collected, dict[str, float]] | None:
        """The thread's rollout and its seconds by phase, or None if there is no rollout. Raises what it raised."""
        job = self.in_flight
        if job is None:
            return None
        while not job.done.wait(SLICE_SECONDS):
            log.progress(*job.at)
        self.in_flight = None
        for note in job.notes:
            log.note(note)
        if job.found is not None:
            return job.found, job.clock.seconds | job.clock.overlapped
        assert job.error is not None
        if not is_out_of_memory(job.error):
            raise job.error
        log.note("out of memory while responses were generated beside an update; they are generated alone")
        job.error = None
        gc.collect()
        return None

    def _collect_now(
        self, collect: Collect, step: int, draw: int, log: StepLog
    ) -> tuple[Collected, dict[str, float]]:
        """The same in this thread: in the first step, and in the first one after a resume."""
        clock = Clock(log)
        return collect(self.engine, step, draw, clock), clock.seconds | clock.overlapped


class _Job:
    """A rollout in progress. It stands in for the run's log, which belongs to the main thread, and keeps notes."""

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
        except BaseException as error:  # sys.exit() in a reward must not end the thread silently
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
    """Ends a rollout that is no longer needed."""


def frozen_copy(policy: LanguageModel) -> LanguageModel:
    """A copy of a policy: network, adapters and tokenizer. Frozen weights, such as the base below adapters, are
    shared.

    Adapters and tokenizers change state while they are used, so two threads cannot share them.
    """
    shared: dict[int, Any] = {id(p): p for p in policy.network.parameters() if not p.requires_grad}
    network, adapters = copy.deepcopy((policy.network, policy.adapters), shared)
    for p in network.parameters():
        p.requires_grad_(False)
    return replace(policy, network=network, adapters=adapters, tokenizer=copy.deepcopy(policy.tokenizer))
