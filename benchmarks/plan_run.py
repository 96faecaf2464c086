"""One run whose memory and seconds are compared with the plan's: one JSON line. `plan_estimates.py` calls it.

    python benchmarks/plan_run.py JOB '{"model.critic": "shared", ...}' '{"prompt": 16, ...}' [--memory]

With --memory the bytes of all tensors are counted: those of the networks and of the optimisers' state one by one, and
above these what torch's CPU allocator gives and takes back, as torch's profiler records it; nothing of Python, of the
libraries or of fragmentation. Without it the phases of each step are timed. Under torchrun the ranks train together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PHASES = {"generate": "generate", "score": "generate", "prepare": "score", "update": "update"}


class Phases:
    """Stands in for a run's log, and notes when each phase begins."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.began: list[tuple[int, str]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})

    def phase(self, name: str) -> None:
        self.began.append((time.time_ns(), name))

    def checkpoint(self, save: Callable[[], Path], due: bool) -> None:
        if due:
            save()

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def reference() -> float:
    """Seconds that a fixed piece of work takes the processor now: products, passes over memory, and small operators.

    Others use the machine, and with them on the same cores and caches the same work takes up to twice its time.
    """
    began = time.process_time()
    x, up, down = torch.ones(640, 256), torch.full((256, 704), 1e-3), torch.full((704, 256), 1e-3)
    for _ in range(6):
        x = (torch.nn.functional.silu(x @ up) * 2.0) @ down + x
    small = torch.ones(16, 256)
    for _ in range(1000):
        small = small * 0.99 + 0.01
    return time.process_time() - began


def tensor_bytes(tensors: Iterator[Tensor] | list[Tensor]) -> int:
    """Bytes of the storages, each once; of a sharded tensor those of this rank."""
    found = {}
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        found[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(found.values())


class Peaks:
    """The most bytes that the allocator has given in each phase, above what there was when it began to count."""

    def __init__(self, phases: Phases) -> None:
        self.phases, self.most = phases, dict[str, int]()

    @contextmanager
    def count(self) -> Iterator[None]:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
            yield
        events = found.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        held, coming, phase = 0, list(self.phases.began), "start"
        for at, change in changes:
            while coming and coming[0][0] <= at:
                phase = PHASES.get(coming[0][1], coming[0][1])
                coming.pop(0)
            held += change
            self.most[phase] = max(self.most.get(phase, 0), held)


def ppo(settings: dict[str, Any], shapes: dict[str, int], memory: bool) -> dict[str, Any]:
    """Two steps of PPO on random prompts of one length; the second is timed."""
    from proxlm import load_config
    from proxlm.config.algorithms import ADVANTAGES
    from proxlm.data.prompts import PromptStream
    from proxlm.distributed.launch import joined_ranks
    from proxlm.models.actor_critic import load_actor_critic
    from proxlm.train.ppo.loop import PPOLoop
    from proxlm.types import Prompt, Rollout, Scores

    config = load_config("ppo", None, settings)
    draw = torch.Generator().manual_seed(0)

    def reward(rollout: Rollout) -> Scores:
        return Scores(rollout.sequences.response_lengths.float())

    with joined_ranks(5) as ranks, tempfile.TemporaryDirectory() as run:
        models = load_actor_critic(config.model, ADVANTAGES[config.ppo.advantage].critic)
        size = models.policy.network.get_input_embeddings().weight.shape[0]
        rows = torch.randint(2, size, (3 * config.ppo.batch_size, shapes["prompt"]), generator=draw).tolist()
        prompts = PromptStream(
            [Prompt(i, tuple(ids), "") for i, ids in enumerate(rows)], config.ppo.batch_size, 0
        )
        loop = PPOLoop(config, models, prompts, reward, Path(run), ranks=ranks)
        log: Any = Phases()
        peaks = Peaks(log)
        networks = [models.policy.network, models.value_head, models.critic_trunk]
        networks += [
            model.network for model in (models.reference, loop.whole_models.policy) if model is not None
        ]
        tensors = [p for network in networks if network is not None for p in network.parameters()]
        for _, optimiser in loop.learner.optimisers:
            tensors += list(optimiser.state_tensors().values())
        kept = tensor_bytes(tensors)
        if ranks.rank > 0:
            loop.follow()
            return {}
        loop.synchronise()
        if memory:
            with peaks.count():
                loop.next_step(log)
                log.phase("save")
                loop.whole_tensors()
        else:
            for _ in range(shapes.get("steps", 3)):
                before = reference()
                found = loop.next_step(log)
                log.metrics(loop.state.step, {**found, "reference": (before + reference()) / 2})
        ranks.broadcast(lambda: None)
    seconds = {
        "generate": [row["time/generate"] for row in log.rows],
        "score": [row["time/prepare"] for row in log.rows],
        "update": [row["time/update"] for row in log.rows],
        "reference": [row["reference"] for row in log.rows],
    }
    return {"kept": kept, "above": peaks.most, "seconds": seconds}


def sft(settings: dict[str, Any], shapes: dict[str, int], memory: bool) -> dict[str, Any]:
    """Optimiser steps of supervised fine-tuning on random tokens."""
    from proxlm import load_config
    from proxlm.models.load import load_language_model
    from proxlm.train.common.optimiser import Optimiser
    from proxlm.train.supervised.examples import Examples
    from proxlm.train.supervised.objective import LanguageModelObjective

    config = load_config("sft", None, settings)
    model = load_language_model(config.model)
    size = model.network.get_input_embeddings().weight.shape[0]
    length, prompt = shapes["prompt"] + shapes["response"], shapes["prompt"]
    count = config.train.batch_tokens // length
    draw = torch.Generator().manual_seed(0)
    lengths = torch.full((count,), length)
    examples = Examples(
        torch.randint(2, size, (count * length,), generator=draw).int(),
        (torch.arange(length) >= prompt).repeat(count),
        torch.arange(count) * length,
        lengths,
        torch.full((count,), prompt),
    )
    objective = LanguageModelObjective(model, examples, examples)
    optimiser = Optimiser(objective.trainable(), config.optim)
    kept = tensor_bytes([*model.network.parameters(), *optimiser.state_tensors().values()])
    log, seconds, references = Phases(), [], []

    def step(number: int) -> None:
        before, began = reference(), time.perf_counter()
        optimiser.hold()
        objective.gradient(range(count), config.train.micro_batch_tokens)
        optimiser.step(number, 10)
        seconds.append(time.perf_counter() - began)
        references.append((before + reference()) / 2)

    peaks = Peaks(log)
    if memory:
        with peaks.count():
            log.phase("update")
            step(0)
    else:
        for number in range(shapes.get("steps", 3)):
            step(number)
    return {"kept": kept, "above": peaks.most, "seconds": {"update": seconds, "reference": references}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["ppo", "sft"])
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("shapes", type=json.loads)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    from proxlm.jobs.startup import start_job

    start_job(1)
    time.perf_counter = time.process_time  # the processor's: others use this machine
    run = {"ppo": ppo, "sft": sft}[options.job]
    if found := run(options.settings, options.shapes, options.memory):
        json.dump(found, sys.stdout)
        print(flush=True)


if __name__ == "__main__":
    main()
