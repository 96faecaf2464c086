"""The curves of docs/experiments.md from finished runs.

python benchmarks/curves.py adaptive docs/images/adaptive-kl.svg RUN ...
python benchmarks/curves.py proxy docs/images/overoptimisation.svg overoptimisation.json
python benchmarks/curves.py games docs/images/games.svg GAMES_FOLDER
python benchmarks/curves.py time docs/images/time-to-reward.svg benchmarks/results/time_to_reward.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from compare_runs import Series, svg
from reward_task import running

from proxlm.runlog.folder import read_jsonl


def smooth(series: Series, width: int = 5) -> Series:
    """Running mean of both coordinates over `width` points."""
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (series[max(0, i - width + 1) : i + 1] for i in range(len(series)))
    ]


def adaptive(runs: list[Path]) -> str:
    """KL, reward and β per step, a line per seed."""
    panels = []
    for name, title in (("kl", "KL, nats per response"), ("reward", "mean reward"), ("kl_coef", "β")):
        panels.append(
            (
                title,
                {str(run): [(r["step"], r[name]) for r in read_jsonl(run / "metrics.jsonl")] for run in runs},
            )
        )
    return svg(panels, [run.name for run in runs])


def proxy(file: Path) -> str:
    """Proxy and gold against √KL, a line per seed, five steps averaged."""
    seeds = json.loads(file.read_text(encoding="utf-8"))["seeds"]
    panels = []
    for name, title in (("proxy", "proxy (learned) against √KL"), ("gold", "gold (held out) against √KL")):
        series = {
            seed: smooth(sorted((math.sqrt(max(0.0, r["kl"])), r[name]) for r in found["rows"]))
            for seed, found in seeds.items()
        }
        panels.append((title, series))
    return svg(panels, [f"seed {seed}" for seed in seeds])


def games(folder: Path) -> str:
    """What a game paid on average per PPO step, five steps averaged: a panel for each game, a line per seed."""
    panels, seeds = [], ("0", "1", "2")
    for name in ("number-game", "tic-tac-toe", "frozen-lake"):
        series = {}
        for seed in seeds:
            rows = read_jsonl(folder / name / seed / "metrics.jsonl")
            series[seed] = smooth([(row["step"], row["reward/environment"]) for row in rows])
        panels.append((name, series))
    return svg(panels, [f"seed {seed}" for seed in seeds])


def time_to_reward(file: Path) -> str:
    """Mean reward of the last steps against seconds: a panel for each seed, a line per library."""
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    panels = []
    for seed in next(iter(runs.values())):
        series: dict[str, Series] = {name: running(seeds[seed]["curve"]) for name, seeds in runs.items()}
        panels.append((f"mean reward against seconds, seed {seed}", series))
    return svg(panels, list(runs))


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    kind, target, *files = sys.argv[1], Path(sys.argv[2]), *map(Path, sys.argv[3:])
    drawn = {
        "adaptive": lambda: adaptive(files),
        "proxy": lambda: proxy(files[0]),
        "games": lambda: games(files[0]),
        "time": lambda: time_to_reward(files[0]),
    }[kind]()
    target.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
