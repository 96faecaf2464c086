"""How seconds and memory of a PPO step grow, and what each memory mode costs. proxlm alone, fp32, CPU.

    python benchmarks/scale.py [--steps 3] [--what sizes modes]

sizes: batch, response length, vocabulary and parameters, each doubled three times from the same small step.
modes: the critic on a trunk of its own, on the policy's, or as adapters on a base that is there once; and blocks
that are computed again in the backward pass. Each runs in a process of its own, the first step is warm-up, the median
of the others counts. Writes benchmarks/results/scale.json and .md; of the two, what is not measured now stays there.
Sizes takes about 10 minutes on two cores. Needs a machine with nothing else to do. Linux.

The reward that each mode reaches: memory_modes.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from against_trl import RESULTS, one_run
from step_models import Work, make_models

START = Work(batch=16)
DOUBLINGS = 3
# Mode → arguments of step_proxlm.py.
MODES = {
    "separate critic": [],
    "shared critic": ["--critic", "shared"],
    "separate critic, activation checkpointing": ["--activation-checkpointing"],
    "LoRA (rank 8), separate critic": ["--lora", "8"],
    "LoRA (rank 8), adapter critic": ["--lora", "8", "--critic", "adapter"],
}


def sizes() -> Iterator[tuple[str, str, Work]]:
    """(what is doubled, its value, the work)."""
    yield "(start)", "", START
    for i in range(1, DOUBLINGS + 1):
        yield "batch", str(START.batch << i), replace(START, batch=START.batch << i)
    for i in range(1, DOUBLINGS + 1):
        yield "response", str(START.response << i), replace(START, response=START.response << i)
    for i in range(1, DOUBLINGS + 1):
        yield "vocabulary", str(START.vocabulary << i), replace(START, vocabulary=START.vocabulary << i)
    for i in range(1, DOUBLINGS + 1):
        yield "layers", str(START.layers << i), replace(START, layers=START.layers << i)


def measured(work: Work, arguments: list[str], steps: int) -> dict[str, float]:
    """Median seconds of each phase, the peak above the loaded models, and all that is resident then, in MB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(work, folder)
        run = one_run(sys.executable, "step_proxlm.py", folder, work, [*arguments, "--steps", str(steps)])
    found = {name: statistics.median(seconds[1:]) for name, seconds in run["seconds"].items()}
    return {**found, "peak_mb": max(run["peak_mb"].values()), "loaded_mb": run["baseline_mb"]}


COLUMNS = ["generate s", "score s", "update s", "step s", "peak MB", "with models loaded MB"]


def row_of(cells: list[str], found: dict[str, float]) -> str:
    seconds = [f"{found[name]:.2f}" for name in ("generate", "score", "update", "step")]
    return (
        "| " + " | ".join([*cells, *seconds, f"{found['peak_mb']:.0f}", f"{found['loaded_mb']:.0f}"]) + " |"
    )


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown of what is there: sizes, modes."""
    parts = []
    for kind, names in (("sizes", ["what", "value"]), ("modes", ["mode"])):
        if rows[kind]:
            titles = {"what": "doubled", "value": "to", "mode": "mode"}
            columns = [*(titles[name] for name in names), *COLUMNS]
            lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
            parts.append([*lines, *(row_of([row[name] for name in names], row) for row in rows[kind])])
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--what", nargs="+", default=["sizes", "modes"], choices=["sizes", "modes"])
    options = parser.parse_args()
    file = RESULTS / "scale.json"
    rows: dict[str, Any] = {"sizes": [], "modes": []}
    if file.exists():
        rows |= json.loads(file.read_text(encoding="utf-8"))
    work_of = {
        "sizes": [({"what": what, "value": value}, work, []) for what, value, work in sizes()],
        "modes": [({"mode": mode}, Work(), arguments) for mode, arguments in MODES.items()],
    }
    for kind in options.what:
        rows[kind] = []
        for cells, work, arguments in work_of[kind]:
            found = measured(work, arguments, options.steps)
            rows[kind].append({**cells, **found})
            print(row_of(list(cells.values()), found), flush=True)
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "scale.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
