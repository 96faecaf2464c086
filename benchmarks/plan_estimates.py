"""How near the plan's bytes and seconds come: small runs on this machine, and runs that others have published.

    python benchmarks/plan_estimates.py [--only NAME ...]

This machine's rates (operations and bytes in a second, seconds of a call) are fitted once, to three short runs of
sizes that are not compared later, by least squares of relative errors; then those of exchanges between two processes
(gloo), to what is left of three others. Seconds are the processor's, of one thread:
medians of the steps, at the speed at which a fixed piece of work, done before and after each, was at its fastest, so
that others may use the machine. Started again, it adds to the times there are. Bytes are those of tensors, as
plan_run.py counts them. Writes benchmarks/results/plan_estimates.json and .md. Published runs are predicted from data
sheets, without a fit. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import plan_run
from plan_published import published_table
from step_models import Work as Sizes
from step_models import make_models

from proxlm import load_config
from proxlm.jobs.startup import start_job
from proxlm.planning.cost import Cost, exchange_cost, phases_of
from proxlm.planning.machine import Machine
from proxlm.planning.memory import Share, memory_of
from proxlm.planning.work import Work, work_of

HERE = Path(__file__).parent
# That are timed each time.
STEPS = 3
RESULTS = HERE / "results"
# The models, by name; heads are 64 wide.
MODELS = {
    "fit-192": Sizes(192, 3, 3000),
    "fit-320": Sizes(320, 4, 6000),
    "128": Sizes(128, 2, 2048),
    "256": Sizes(256, 4, 4096),
    "256-grouped": Sizes(256, 4, 4096, groups=2),
    "256-wide-head": Sizes(256, 2, 16384),
    "384": Sizes(384, 6, 8192),
}
PPO = {
    "model.device": "cpu", "model.precision": "float32", "data.prompts": "none.txt", "reward.use": "length",
    "ppo.batch_size": 16,
    "rollout.batch_size": 16, "rollout.max_new_tokens": 48, "ppo.micro_batch_tokens": 640, "ppo.epochs": 2,
    "ppo.steps": 8, "run.save_every": 0,
}  # fmt: skip
SFT = {
    "model.device": "cpu", "model.precision": "float32", "text.train": ["none.jsonl"], "train.batch_tokens": 2048,
    "train.micro_batch_tokens": 1024,
}  # fmt: skip
RLOO = {"ppo.advantage": "rloo", "ppo.samples_per_prompt": 2, "ppo.batch_size": 8}
# Name → job, model, settings, tokens of a prompt and of a response.
FITTED = {
    "fit ppo separate": ("ppo", "fit-192", {}, 24, 40),
    "fit ppo shared": ("ppo", "fit-320", {"model.critic": "shared", "ppo.batch_size": 8}, 16, 32),
    "fit sft": ("sft", "fit-320", {}, 24, 40),
}
FSDP = {"distributed.strategy": "fsdp"}
FITTED_RANKS = {
    "fit ddp, 2 ranks": ("ppo", "fit-192", {}, 24, 40),
    "fit fsdp, 2 ranks": ("ppo", "fit-192", FSDP, 24, 40),
    "fit fsdp, shared, 2 ranks": ("ppo", "fit-320", FSDP | {"model.critic": "shared", "ppo.batch_size": 8}, 16, 32),
}  # fmt: skip
RUNS = {
    "ppo separate, 128": ("ppo", "128", {}, 16, 48),
    "ppo shared, 128": ("ppo", "128", {"model.critic": "shared"}, 16, 48),
    "ppo separate, 256": ("ppo", "256", {}, 16, 48),
    "ppo shared, 256": ("ppo", "256", {"model.critic": "shared"}, 16, 48),
    "ppo LoRA, 256": ("ppo", "256", {"model.lora.rank": 8}, 16, 48),
    "ppo LoRA, adapter critic, 256": ("ppo", "256", {"model.lora.rank": 8, "model.critic": "adapter"}, 16, 48),
    "ppo long, grouped heads": ("ppo", "256-grouped", {"ppo.batch_size": 8}, 64, 96),
    "ppo rloo, no critic": ("ppo", "256", RLOO, 16, 48),
    "ppo wide head": ("ppo", "256-wide-head", {}, 16, 48),
    "ppo checkpointing": ("ppo", "256", {"model.activation_checkpointing": True}, 16, 48),
    "ppo top 2 blocks": ("ppo", "256", {"model.train_layers": 2}, 16, 48),
    "ppo separate, 384": ("ppo", "384", {"ppo.batch_size": 8, "ppo.epochs": 1}, 16, 32),
    "sft 128": ("sft", "128", {}, 16, 48),
    "sft 256": ("sft", "256", {}, 16, 48),
    "sft LoRA, 256": ("sft", "256", {"model.lora.rank": 8}, 16, 48),
    "sft 384": ("sft", "384", {}, 32, 96),
    "ppo ddp, 2 ranks": ("ppo", "256", {}, 16, 48),
    "ppo fsdp, 2 ranks": ("ppo", "256", FSDP, 16, 48),
    "ppo fsdp, LoRA, 2 ranks": ("ppo", "256", FSDP | {"model.lora.rank": 8}, 16, 48),
    "ppo fsdp, shared, 2 ranks": ("ppo", "256", FSDP | {"model.critic": "shared"}, 16, 48),
    "ppo fsdp, checkpointing, 2 ranks": ("ppo", "256", FSDP | {"model.activation_checkpointing": True}, 16, 48),
}  # fmt: skip
Run = tuple[str, str, dict[str, Any], int, int]


def settings_of(run: Run, models: Path) -> dict[str, Any]:
    job, model, more, _, response = run
    base = PPO | {"rollout.max_new_tokens": response} if job == "ppo" else SFT
    return {**base, "model.policy": str(models / model / "policy"), **more}


def share_of(name: str) -> Share:
    return Share(2 if "2 ranks" in name else 1, "fsdp" in name)


def planned(run: Run, models: Path) -> Work:
    job, _, _, prompt, response = run
    return work_of(load_config(job, None, settings_of(run, models)), prompt, float(response))


def measured(name: str, run: Run, models: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Bytes and times of a run. Bytes are the same every time and counted once; times are added to those known."""
    job, _, _, prompt, response = run
    shapes, settings = {"prompt": prompt, "response": response, "steps": STEPS}, settings_of(run, models)

    def one(memory: bool) -> dict[str, Any]:
        if share_of(name).ranks > 1:
            return _launched(job, settings, shapes, ["--memory"] * memory)
        return {"ppo": plan_run.ppo, "sft": plan_run.sft}[job](settings, shapes, memory)

    found = dict(before or {})
    if "bytes" not in found:
        counted = one(memory=True)
        found = {"bytes": counted["kept"] + max(counted["above"].values()), "by phase": counted}
    known = found.get("times", {})
    return {
        **found,
        "times": {name: known.get(name, []) + new for name, new in one(False)["seconds"].items()},
    }


def seconds_of(row: dict[str, Any], least: float) -> dict[str, float]:
    """Median seconds of each phase, of a machine on which the reference takes `least`."""
    times = row["times"]
    return {
        name: statistics.median(t / r for t, r in zip(values, times["reference"], strict=True)) * least
        for name, values in times.items()
        if name != "reference"
    }


def _launched(job: str, settings: dict[str, Any], shapes: dict[str, int], more: list[str]) -> dict[str, Any]:
    """The same in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / "plan_run.py"), job, json.dumps(settings), json.dumps(shapes), *more]
    path = os.pathsep.join((str(HERE), str(HERE.parent / "src")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[0])


def fitted(rows: list[tuple[Cost, float]]) -> Machine:
    """The rates for which the costs take the seconds, with the least sum of squared relative errors; none below 0."""
    from scipy.optimize import nnls

    terms = numpy.array([[cost.flops, cost.moved, cost.calls] for cost, _ in rows])
    seconds = numpy.array([taken for _, taken in rows])
    scale = (terms / seconds[:, None]).max(0)
    each, _ = nnls(terms / seconds[:, None] / scale, numpy.ones(len(rows)))
    per_flop, per_byte, per_call = numpy.maximum(each / scale, 1e-15)
    return Machine(float(1 / per_flop), float(1 / per_flop), float(1 / per_byte), call=float(per_call))


def with_exchanges(machine: Machine, rows: list[tuple[Cost, Cost, float]]) -> Machine:
    """The rates of exchanges for which they take what a step takes longer than its phases, by least squares.

    rows: (of a step's phases, its exchanges, seconds of the whole).
    """
    from scipy.optimize import nnls

    seconds = numpy.array([taken for *_, taken in rows])
    left = numpy.array([taken - machine.seconds(cost) for cost, _, taken in rows]) / seconds
    terms = numpy.array([[cost.sent, cost.exchanges] for _, cost, _ in rows]) / seconds[:, None]
    scale = terms.max(0)
    each, _ = nnls(terms / scale, left)
    per_byte, per_exchange = numpy.maximum(each / scale, 1e-15)
    return replace(machine, link=float(1 / per_byte), exchange=float(per_exchange))


def step_cost(costs: dict[str, Cost]) -> Cost:
    return sum(costs.values(), Cost())


def compare(found: dict[str, Any], models: Path) -> None:
    """Fit the machine's rates, and put the plan's figures beside those of each run."""
    timed = [row for part in ("fit", "fit ranks", "runs") for row in found[part].values() if "times" in row]
    least = min(min(row["times"]["reference"]) for row in timed)
    rows = []
    for name, run in FITTED.items():
        seconds = seconds_of(found["fit"][name], least)
        costs = phases_of(planned(run, models))
        rows += [(cost, seconds[phase]) for phase, cost in costs.items()]
    machine = fitted(rows)
    ranks = []
    for name, run in FITTED_RANKS.items():
        work, share = planned(run, models), share_of(name)
        taken = sum(seconds_of(found["fit ranks"][name], least).values())
        ranks.append((step_cost(phases_of(work, share)), exchange_cost(work, share), taken))
    machine = with_exchanges(machine, ranks)
    found["machine"] = asdict(machine)
    for name, row in found["runs"].items():
        if "times" in row:
            work, share = planned(RUNS[name], models), share_of(name)
            row["planned bytes"], row["seconds"] = memory_of(work, share).peak, seconds_of(row, least)
            costs = phases_of(work, share) | {"exchange": exchange_cost(work, share)}
            row["planned"] = {phase: machine.seconds(cost) for phase, cost in costs.items()}


def table(found: dict[str, Any]) -> str:
    """Markdown: predicted beside measured."""
    machine, columns = Machine(**found["machine"]), "s, planned | measured | error"
    lines = [f"| run | peak MB, planned | counted | error | {columns} |", "| --- " * 7 + "|"]
    for name, row in found["runs"].items():
        if "times" in row:
            seconds, taken = sum(row["planned"].values()), sum(row["seconds"].values())
            errors = [row["planned bytes"] / row["bytes"] - 1, seconds / taken - 1]
            cells = [f"{row['planned bytes'] / 1e6:.1f}", f"{row['bytes'] / 1e6:.1f}", f"{errors[0]:+.1%}"]
            cells += [f"{seconds:.2f}", f"{taken:.2f}", f"{errors[1]:+.0%}"]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    rates = f"{machine.flops / 1e9:.1f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s"
    rates = (
        f"Rates fitted to three other runs: {rates}, {machine.call * 1e6:.0f} µs a call; and to three of two"
    )
    rates += f" ranks: {machine.link / 1e9:.1f} GB/s, {machine.exchange * 1e6:.0f} µs an exchange."
    return "\n".join(lines) + f"\n\n{rates}\n\n" + published_table()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="*",
        default=[*FITTED, *FITTED_RANKS, *RUNS],
        help="names of runs, or the beginning of some; none: the table again",
    )
    options = parser.parse_args()
    start_job(1)
    plan_run.time.perf_counter = plan_run.time.process_time
    file = RESULTS / "plan_estimates.json"
    found: dict[str, Any] = {"fit": {}, "fit ranks": {}, "runs": {}}
    if file.exists():
        found |= json.loads(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        for name, sizes in MODELS.items():
            make_models(sizes, models / name)
        for part, runs in (("fit", FITTED), ("fit ranks", FITTED_RANKS), ("runs", RUNS)):
            for name, run in runs.items():
                if any(name.startswith(one) for one in options.only):
                    found[part][name] = measured(name, run, models, found[part].get(name))
                    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                    print(name, found[part][name]["times"], flush=True)
        compare(found, models)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "plan_estimates.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
