"""Where a step's rollout comes from: sampled when it is needed, or from a queue that is filled beside the updates.

With `ppo.max_staleness` = k the rollout of step j is sampled by the policy that has seen max(0, j − k) updates. The
rule knows steps and nothing of time, so equal runs are equal however fast either side is: while step j learns, a
thread samples the rollouts up to step j + k, in order, each with the copy of the policy that the rule names.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.engine.vllm import VLLMEngine
from proxlm.errors import ConfigError, RunError
from proxlm.models.frozen_copy import frozen_copy
from proxlm.models.language_model import LanguageModel
from proxlm.models.model_types import SHORT_NAMES
from proxlm.threads import SLICE_SECONDS, Worker
from proxlm.train.common.clock import Clock, StepLog
from proxlm.train.common.memory import is_out_of_memory
from proxlm.train.ppo.collect import Collected

# (engine, step, number of the first batch of prompts, clock) → the step's scored rollout.
Collect = Callable[[Engine, int, int, Clock], Collected]
# An engine whose model can be replaced by another copy of it.
CopyEngine = NativeEngine | VLLMEngine
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
        """What a checkpoint must hold besides the policy: the older policies that later rollouts are sampled with."""
        return {}

    def resume(self, checkpoint: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
        """The run continues from a checkpoint after `step` steps, which holds these tensors.

        Args:
            checkpoint: its folder, for messages.
            step: how many steps are done.
            tensors: as `tensors` returned them.

        Raises:
            RunError: They are not those of such a run.
        """

    def wait(self) -> None:
        """Wait until nothing runs in the background, such as a call of the reward."""

    def close(self) -> None:
        """Stop what runs in the background; `take` may be called again."""


class RolloutQueue(Collector):
    """Samples and scores the rollouts of later steps in a thread of its own, one after another, with an engine on
    frozen copies of the policy.

    After step j's rollout has been taken it holds the policies of the versions j − k + 1 to j, which the rollouts of
    the steps j + 1 to j + k are sampled with: at most k copies, and as many in a checkpoint.

    Args:
        policy: what learns.
        max_staleness: k, at least 1.
        steps: of the whole run.
        make_engine: the engine on a copy of the policy.

    Raises:
        ConfigError: a forward pass of this policy changes what the whole process computes.
    """

    def __init__(
        self,
        policy: LanguageModel,
        max_staleness: int,
        steps: int,
        make_engine: Callable[[LanguageModel], CopyEngine],
    ) -> None:
        if policy.bfloat16 and policy.network.config.model_type in SHORT_NAMES.values():
            # Its passes switch oneDNN off for the whole process, which changes bfloat16 products of the other thread.
            raise ConfigError("ppo.max_staleness: a recurrent policy needs model.precision = float32")
        self.policy = policy
        self._ahead, self._steps, self._make_engine = max_staleness, steps, make_engine
        self.copies: dict[int, LanguageModel] = {}  # by version
        self.jobs: deque[_Job] = deque()  # of the next steps, in order
        self._sampler: CopyEngine | None = None
        self._worker: Worker | None = None

    def take(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        """The rollout of a step. Those after it are begun, and the policy may learn."""
        if not self.copies:
            self._keep(step)
        if self.jobs and self.jobs[0].step != step:
            self.close()
        with clock("waiting"):
            found, clock.overlapped = self._from_queue(clock.log) or self._collect_now(
                collect, step, draw, clock.log
            )
        self._keep(step)
        self._fill(collect, step, draw + found.draws)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The copies that sample the next k steps, by version."""
        return {
            f"version-{version}.{name}": tensor
            for version in sorted(self.copies)
            for name, tensor in self._weights(self.copies[version]).items()
        }

    def resume(self, checkpoint: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Take over the copies in the checkpoint: the policies from before each of its last k updates."""
        self.close()
        versions = range(self._version(step), step)
        own = self._weights(self.policy)
        wanted = {f"version-{v}.{name}": p.shape for v in versions for name, p in own.items()}
        if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
            raise RunError(
                f"{checkpoint}: does not hold the policies from before its last {len(versions)} updates, which"
                " ppo.max_staleness needs; remove it, and the one before it is used"
            )
        self.copies = {version: self._copy() for version in versions}
        for version, model in self.copies.items():
            _copy_weights(self._weights(model), {name: tensors[f"version-{version}.{name}"] for name in own})

    def wait(self) -> None:
        """Wait for the rollouts that are being sampled; `take` returns them later."""
        for job in self.jobs:
            job.done.wait()

    def close(self) -> None:
        """Abandon the rollouts that are being sampled."""
        jobs, self.jobs = self.jobs, deque()
        sampler, self._sampler = self._sampler, None
        for job in jobs:
            job.abandoned = True
        if jobs and not jobs[-1].done.wait(LEAVE_SECONDS):
            self._worker = None  # the thread keeps its engine until it notices; another one takes over
        elif sampler is not None:
            sampler.close()

    def _version(self, step: int) -> int:
        """How many updates the policy has seen that samples the rollout of a step."""
        return max(0, step - self._ahead)

    def _keep(self, version: int) -> None:
        """Keep the policy's current weights; the copy that no later rollout needs makes room."""
        if version in self.copies:
            return
        oldest = min(self.copies, default=version)
        model = self.copies.pop(oldest) if len(self.copies) == self._ahead else self._copy()
        _copy_weights(self._weights(model), self._weights(self.policy))
        self.copies[version] = model

    def _copy(self) -> LanguageModel:
        return frozen_copy(self.policy)

    def _weights(self, model: LanguageModel) -> dict[str, Tensor]:
        """What learns of the policy, in it or in a copy."""
        tensors = dict(model.network.named_parameters())
        return {name: tensors[name] for name, _ in self.policy.trainable()}

    def _collect_with(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        """The rollout of a step by the policy that the rule names."""
        version, engine = self._version(step), self._sampler
        new = engine is None
        if engine is None:
            self._sampler = engine = self._make_engine(self.copies[version])
        if new or engine.version != version:
            engine.model = self.copies[version]
            engine.load_weights((), version)
        return collect(engine, step, draw, clock)

    def _fill(self, collect: Collect, step: int, draw: int) -> None:
        """Queue the rollouts up to step + k; draw: number of the first batch of prompts of step + 1."""
        if self._worker is None:
            self._worker = Worker("proxlm-rollouts")
        before = self.jobs[-1] if self.jobs else None
        first = step if before is None else before.step
        for later in range(first + 1, min(step + self._ahead, self._steps - 1) + 1):
            before = _Job(later, partial(self._collect_with, collect), draw if before is None else before)
            self.jobs.append(before)
            self._worker.do(before.run)

    def _from_queue(self, log: StepLog) -> tuple[Collected, dict[str, float]] | None:
        """The thread's rollout and its seconds by phase, or None if there is no rollout. Raises what it raised."""
        if not self.jobs:
            return None
        job = self.jobs[0]
        while not job.done.wait(SLICE_SECONDS):
            log.progress(*job.at)
        self.jobs.popleft()
        for note in job.notes:
            log.note(note)
        if job.found is not None:
            return job.found, job.clock.seconds | job.clock.overlapped
        self.jobs.clear()  # those after it have not begun: see _Job.run
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
        return self._collect_with(collect, step, draw, clock), clock.seconds | clock.overlapped


class _Job:
    """A rollout in progress. It stands in for the run's log, which belongs to the main thread, and keeps notes.

    Args:
        step: Of the rollout.
        collect: (step, draw, clock) → the rollout.
        before: The number of its first batch of prompts, or the job before it, which may draw more than one.
    """

    def __init__(
        self, step: int, collect: Callable[[int, int, Clock], Collected], before: int | _Job
    ) -> None:
        self.step, self._collect, self._before = step, collect, before
        self.clock = Clock(self)
        self.done, self.abandoned = threading.Event(), False
        self.found: Collected | None = None
        self.next_draw: int | None = None  # of the job after this one
        self.error: BaseException | None = None
        self.notes: list[str] = []
        self.at = (0, 0)
        self._threads = torch.get_num_threads()

    def run(self) -> None:
        try:
            before, self._before = self._before, 0
            draw = before if isinstance(before, int) else before.next_draw
            if draw is None or self.abandoned:
                raise AbandonedError
            torch.set_num_threads(self._threads)  # each thread has a number of its own
            with torch.no_grad():
                found = self._collect(self.step, draw, self.clock)
            self.found, self.next_draw = found, draw + found.draws
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


@torch.no_grad()
def _copy_weights(to: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in to.items():
        tensor.copy_(weights[name])
