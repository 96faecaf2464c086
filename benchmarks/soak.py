"""PPO for minutes on end with a reward that fails now and then: does memory grow, does the run go on?

python benchmarks/soak.py [--minutes 30] [--isolate] [--share 0.01] [--output benchmarks/results/soak.json]

stories260K and the story openings of the recipe. Each response has a chance of `share` to make the reward raise, hang
beyond its time limit, return NaN, or return too few numbers. After each step the process's memory, threads and open
files are written down; growth is between the first and the last quarter of the steps after the warm-up, the first
fifth. The run is ended by SIGTERM, as a scheduler would.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxlm import load_config
from proxlm.__main__ import ENVIRONMENT
from proxlm.errors import StoppedBySignalError

ROOT = Path(__file__).parents[1]
REWARD = """
import math, random, time

def score(completions, share, patience):
    scores = [len(set(c.text.split())) / 20 for c in completions]
    generator = random.Random("".join(c.text for c in completions))
    for i, _ in enumerate(completions):
        if generator.random() < share:
            fault = generator.choice(["raise", "hang", "nan", "length"])
            if fault == "raise":
                raise ValueError("a fault of the soak test")
            if fault == "hang":
                time.sleep(patience + 1.0)
            if fault == "length":
                return scores[:-1]
            scores[i] = math.nan
    return scores
"""
PATIENCE = 1.0


class Gauge:
    """Writes down, after each step, what the process holds; ends the run when its time is over."""

    def __init__(self, minutes: float) -> None:
        self.until = time.monotonic() + 60 * minutes
        self.rows: list[dict[str, float]] = []

    def look(self, values: Mapping[str, float]) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rows.append(
            {
                "rss_mib": round(pages * resource.getpagesize() / 2**20, 2),
                "threads": threading.active_count(),
                "files": len(os.listdir("/proc/self/fd")),
                "failed": values["reward_failed"],
                "reward": round(values["reward"], 4),
            }
        )
        if time.monotonic() > self.until:
            os.kill(os.getpid(), signal.SIGTERM)


def summary(rows: list[dict[str, float]], minutes: float) -> dict[str, Any]:
    """The figures of a soak: growth in MiB between the first and the last quarter after the warm-up."""
    steady = rows[len(rows) // 5 :]
    quarter = max(1, len(steady) // 4)

    def mean(part: list[dict[str, float]], name: str) -> float:
        return sum(row[name] for row in part) / len(part)

    growth = mean(steady[-quarter:], "rss_mib") - mean(steady[:quarter], "rss_mib")
    return {
        "minutes": round(minutes, 2),
        "steps": len(rows),
        "steps_with_failed_rewards": sum(row["failed"] > 0 for row in rows),
        "failed_rewards": int(sum(row["failed"] for row in rows)),
        "rss_mib_after_warm_up": round(mean(steady[:quarter], "rss_mib"), 1),
        "rss_mib_at_the_end": round(mean(steady[-quarter:], "rss_mib"), 1),
        "growth_mib": round(growth, 1),
        "growth_percent": round(100 * growth / mean(steady[:quarter], "rss_mib"), 2),
        "threads": [rows[0]["threads"], rows[-1]["threads"]],
        "files": [rows[0]["files"], rows[-1]["files"]],
    }


def settings(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What the run has that the recipe has not. So many steps that the clock ends it."""
    (folder / "reward.py").write_text(REWARD)
    return {
        "model.policy": str(ROOT.parent / "shared" / "models" / "stories260K"),
        "model.device": "cpu",
        "data.prompts": str(ROOT / "recipes" / "data" / "story-openings.txt"),
        "data.eval_prompts": str(ROOT / "recipes" / "data" / "story-openings-held-out.txt"),
        "data.eval_count": 0,
        "ppo.steps": 1_000_000,
        "ppo.batch_size": 32,
        "reward.use": f"{folder / 'reward.py'}:score",
        "reward.args": {"share": given.share, "patience": PATIENCE},
        "reward.timeout": PATIENCE,
        "reward.on_error": "score",
        "reward.isolate": given.isolate,
        "run.folder": str(folder / "run"),
        "run.save_every": 10,
        "run.threads": given.threads,
    }


def main() -> int:
    """Soak, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.01, help="chance of a fault in each response")
    parser.add_argument("--isolate", action="store_true", help="call the reward in a process of its own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    from proxlm.jobs.ppo import main as run_ppo
    from proxlm.runlog.run_log import RunLog

    gauge, write_row = Gauge(given.minutes), RunLog.metrics

    def metrics(log: RunLog, step: int, values: Mapping[str, float]) -> None:
        write_row(log, step, values)
        gauge.look(values)

    RunLog.metrics = metrics  # type: ignore[method-assign]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        recipe = ROOT / "recipes" / "stories-sentiment.toml"
        try:
            run_ppo(load_config("ppo", recipe, settings(Path(folder), given)))
        except StoppedBySignalError as stopped:
            print(stopped)
    result = summary(gauge.rows, (time.monotonic() - began) / 60) | {
        "isolate": given.isolate,
        "share": given.share,
    }
    given.output.write_text(json.dumps(result | {"rows": gauge.rows}) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
