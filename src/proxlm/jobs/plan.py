"""`proxlm plan`: what a recipe needs of GPUs, worked out from its settings and its model's configuration alone."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from proxlm.config import ModelSettings, PlanConfig
from proxlm.config.gguf_paths import is_gguf
from proxlm.config.parse import job_name
from proxlm.evaluation.tables import Table, as_text
from proxlm.planning.advice import Change, changes
from proxlm.planning.cost import generate_cost, phases_of
from proxlm.planning.machine import GPUS, OF_BANDWIDTH, OF_FLOPS, Machine
from proxlm.planning.memory import Share
from proxlm.planning.split import Split, splits
from proxlm.planning.work import Work, work_of
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.outputs import check_output
from proxlm.runlog.text import number
from proxlm.text import counted, listed

GIB, MIB = 2**30, 2**20
# Ways to divide the GPUs that are shown.
SHOWN = 6


def main(config: PlanConfig, settings: Any) -> None:
    """Print the plan, and write it where `output` says."""
    if config.output:
        check_output(Path(config.output), "plan")
    work = work_of(settings, config.prompt_tokens, config.response_tokens)
    machine, memory = machine_of(config), config.gpu_memory * GIB
    ways = splits(work, config.gpus, memory, machine)
    needed = [] if ways[0].fits else changes(work, config.gpus, memory, machine)
    gpus = f"{counted(config.gpus, 'GPU')} of {number(config.gpu_memory)} GiB"
    print(f"proxlm {job_name(type(settings))}, {config.recipe}; {gpus}")
    print("\n".join([*about(work), *of_hub(settings.model)]), end="\n\n")
    tables = [ways_table(work, ways), memory_table(ways[0], memory), flops_table(work, ways[0])]
    print(as_text(tables), end="\n\n")
    print("\n".join(conclusion(ways[0], needed)))
    if config.output:
        write_json_atomic(Path(config.output), as_json(config, work, ways, needed))
        print(f"written to {config.output}")


def machine_of(config: PlanConfig) -> Machine:
    """The rates that are taken to be reached."""
    machine = GPUS[config.gpu].reaching(OF_FLOPS, OF_BANDWIDTH)
    machine = replace(machine, call=config.overhead * 1e-6)
    if config.tflops:
        machine = replace(machine, flops=config.tflops * 1e12, low_flops=config.tflops * 1e12)
    return replace(machine, bandwidth=config.bandwidth * 1e9) if config.bandwidth else machine


def about(work: Work) -> list[str]:
    """The step in words."""
    precision = "products in bf16" if work.bfloat16 else "float32"
    models = [f"policy {_parameters(work.policy.parameters)}, {_parameters(work.of_policy)} learn"]
    if work.critic != "none":
        models.append(f"critic {work.critic}, {_parameters(work.of_critic)} learn")
    rows = counted(work.responses, "response" if work.job == "ppo" else "text")
    lengths = f"{rows} of {number(work.response)} tokens after {counted(work.prompt, 'token')}"
    if work.job == "ppo":
        lengths += f" (at most {work.limit}), {counted(work.epochs, 'epoch')}"
    return ["; ".join([*models, precision]), f"a step: {lengths}, passes of {work.pass_tokens} tokens"]


def of_hub(model: ModelSettings) -> list[str]:
    """What of the hub was read."""
    named = [getattr(model, key, "") for key in ("policy", "critic_from", "teacher")]
    asked = sorted({name for name in named if name and not (os.path.isdir(name) or is_gguf(name))})
    return [f"of the hub config.json alone was read, no weights: {listed(asked)}"] if asked else []


def ways_table(work: Work, ways: list[Split]) -> Table:
    """How the GPUs may be divided, the best first."""
    unit, one = _unit(ways[0])
    rows = [
        [
            name_of(way),
            number(way.memory.peak / one),
            number(way.server_bytes / one) if way.servers else "",
            *(number(way.seconds.get(phase, 0.0)) for phase in ("generate", "score", "update")),
            number(sum(way.seconds.get(name, 0.0) for name in ("exchange", "weights to servers"))),
            number(way.step),
            number(work.responses * work.tokens / way.step),
            "yes" if way.fits else "no",
        ]
        for way in ways[:SHOWN]
    ]
    head = [
        "GPUs",
        unit,
        f"server {unit}",
        "generate s",
        "score s",
        "update s",
        "other s",
        "step s",
        "tokens/s",
        "fits",
    ]
    if work.job != "ppo":
        rows = [[row[0], row[1], *row[5:]] for row in rows]
        head = [head[0], head[1], *head[5:]]
    return Table(head, rows, "ways to divide the GPUs, the best first")


def name_of(way: Split) -> str:
    """How the GPUs are divided, in the settings' words."""
    trainers = f"{way.trainers} {way.strategy}" if way.trainers > 1 else "1"
    return trainers + (f" + {way.servers} vllm" if way.servers else "")


def in_words(way: Split) -> str:
    """How the GPUs are divided, in a sentence."""
    trainers = f"{way.trainers} GPUs with {way.strategy}" if way.trainers > 1 else "one GPU"
    return trainers + (f" and {way.servers} for vllm" if way.servers else "")


def memory_table(way: Split, memory: float) -> Table:
    """What the fullest moment of a training GPU holds."""
    parts = way.memory.parts
    kept, (unit, one) = set(way.memory.kept), _unit(way)
    rows = [
        [
            name,
            number(size / one) if size >= one / 1000 else "< 0.001",
            "always" if name in kept else way.memory.peak_phase,
        ]
        for name, size in parts.items()
    ]
    whose = "the GPU" if way.trainers == 1 and not way.servers else "each GPU that trains"
    rows.append(["in all", number(way.memory.peak / one), f"of {_size(memory)}"])
    return Table(["memory", unit, "when"], rows, f"{whose} at its fullest")


def flops_table(work: Work, way: Split) -> Table:
    """Operations of matrix products by phase, of all GPUs."""
    costs = phases_of(work, Share(way.trainers, way.strategy == "fsdp", samples=not way.servers, gpu=True))
    found = {name: cost.flops * way.trainers for name, cost in costs.items()}
    if way.servers:
        found["generate"] = generate_cost(work, way.servers, graphs=True).flops * way.servers
    rows = [
        [name, number(found[name] / 1e12), number(way.seconds[name])] for name in way.seconds if name in found
    ]
    return Table(["phase", "TFLOP", "seconds"], rows, "products of a step")


def conclusion(way: Split, needed: list[Change]) -> list[str]:
    """Which way is best, or what does not fit and what to change."""
    if way.fits and way.trainers == 1 and not way.servers:
        return ["it fits on one GPU"]
    if way.fits:
        settings = [f'distributed.strategy = "{way.strategy}"'] if way.trainers > 1 else []
        settings += ['engine.use = "vllm"'] if way.servers else []
        return [f"best: {in_words(way)}" + (f" ({', '.join(settings)})" if settings else "")]
    if not needed:
        return [
            f"does not fit: {_size(way.fullest)} at least; take more GPUs, more memory or a smaller model"
        ]
    if needed[0].best.fits:
        lines = [
            f"{c.key} = {c.value}: {_size(c.best.fullest)}, {number(c.best.step)} s a step" for c in needed
        ]
        return [f"does not fit: {_size(way.fullest)}; each of these alone makes it fit:", *lines]
    lines = [f"{change.key} = {change.value}: {_size(change.best.fullest)}" for change in needed]
    return [f"does not fit: {_size(way.fullest)}; these together make it fit:", *lines]


def as_json(config: PlanConfig, work: Work, ways: list[Split], needed: list[Change]) -> dict[str, Any]:
    """The plan as data; bytes and seconds."""
    return {
        "gpus": config.gpus,
        "gpu_memory_gib": config.gpu_memory,
        "work": asdict(work),
        "ways": [
            {
                "strategy": way.strategy,
                "trainers": way.trainers,
                "servers": way.servers,
                "fits": way.fits,
                "peak_bytes": way.memory.peak,
                "server_bytes": way.server_bytes,
                "memory_bytes": {"always": way.memory.kept, **way.memory.phases},
                "seconds": way.seconds,
                "step_seconds": way.step,
            }
            for way in ways
        ],
        "changes": [{"key": c.key, "value": c.value, "fits": c.best.fits} for c in needed],
    }


def _unit(way: Split) -> tuple[str, int]:
    """What bytes are shown in: MiB where the GPUs hold less than a tenth of a GiB."""
    return ("GiB", GIB) if way.fullest >= GIB / 10 else ("MiB", MIB)


def _size(size: float) -> str:
    """Bytes in a sentence."""
    unit, one = ("GiB", GIB) if size >= GIB / 10 else ("MiB", MIB)
    return f"{number(size / one)} {unit}"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
