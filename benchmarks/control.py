"""Runs recipes/control-*.toml for seeds 0-2 and writes the figures of docs/control.md.

    python benchmarks/control.py FOLDER                  runs what FOLDER does not hold yet, then writes the figures
    python benchmarks/control.py FOLDER --write          writes the figures of the runs in FOLDER

FOLDER/control-ENV-SEED are the runs. With FOLDER/sb3.json, which benchmarks/control_sb3.py writes, Stable-Baselines3
stands beside; with FOLDER/speed.json, of benchmarks/control_speed.py, the speeds of both. Writes
benchmarks/results/control.json, control.md, docs/images/control.svg and control-acrobot.gif. Needs proxlm[control].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from compare_runs import Series, svg

from proxlm.config import load_config
from proxlm.control.policy import load_policy, write_gif
from proxlm.control.spaces import make_environment, spaces_of
from proxlm.jobs.control import main as run_control
from proxlm.runlog.folder import read_jsonl

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
# What a run must reach: the mean return of its last 100 training episodes.
GOALS = {"CartPole-v1": 490.0, "Acrobot-v1": -90.0, "Pendulum-v1": -250.0}
# As their authors give them: CleanRL's ppo.py after 500k steps (docs.cleanrl.dev, PPO), and RL Baselines3 Zoo's
# benchmark.md (one run, tuned settings, likeliest actions).
PUBLISHED = {
    "CartPole-v1": {"CleanRL, 500k steps": "490.0 ± 6.1", "SB3 Zoo, 100k steps": "500.0"},
    "Acrobot-v1": {"CleanRL, 500k steps": "−86.4 ± 1.3", "SB3 Zoo, 1M steps": "−73.5"},
    "Pendulum-v1": {"SB3 Zoo, 100k steps": "−172.2"},
}


def recipe(env: str) -> Path:
    return ROOT / "recipes" / f"control-{env.split('-')[0].lower()}.toml"


def run_all(folder: Path) -> None:
    """Every environment and seed, one after another."""
    for env in GOALS:
        for seed in SEEDS:
            run = folder / f"control-{env}-{seed}"
            if not (run / "policy").exists():
                given = {
                    "run.seed": seed,
                    "run.folder": str(run),
                    "run.report": False,
                }
                run_control(load_config("control", recipe(env), given))


def result(run: Path, goal: float) -> dict[str, float | None]:
    """A run's figures: the last 100 training episodes, and when their mean was first as good as the goal."""
    rows = read_jsonl(run / "metrics.jsonl")
    ended = 0.0
    reached = None
    for row in rows:
        ended += row["episodes_ended"]
        if reached is None and ended >= 100 and row["episode_return"] >= goal:
            reached = row["environment_steps"]
    last = rows[-1]
    return {
        "episode_return": round(last["episode_return"], 2),
        "environment_steps": last["env_steps"],
        "goal_at": reached,
        "seconds": last["time"],
        "steps_per_second": round(last["environment_steps"] / last["time"]),
    }


def table(found: dict[str, Any], peer: dict[str, Any], speed: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| environment | goal | return, seeds 0, 1, 2 | SB3 return | steps | goal met at | steps/s | SB3 steps/s |",
        "|" + " --- |" * 8,
    ]
    for env, seeds in found.items():
        runs, others = list(seeds.values()), list(peer.get(env, {}).values())
        when = ", ".join(f"{r['goal_at'] / 1000:.0f}k" if r["goal_at"] else "never" for r in runs)
        speeds = speed.get(env, {})
        cells = [
            env,
            f"{GOALS[env]:g}",
            ", ".join(f"{r['episode_return']:.1f}" for r in runs),
            ", ".join(f"{r['episode_return']:.1f}" for r in others) or "–",
            f"{runs[0]['env_steps']:,.0f}",
            when,
            *(f"{median(speeds[who]):,.0f}" if speeds else "–" for who in ("proxlm", "stable_baselines3")),
        ]
        lines.append("| " + " | ".join(cells).replace(" -", " −") + " |")
    lines += ["", "Published:", ""]
    lines += [
        f"- {env}: {name}: {value}" for env, named in PUBLISHED.items() for name, value in named.items()
    ]
    return "\n".join(lines)


def curves(folder: Path) -> str:
    """Mean return of the newest 100 episodes by environment steps, a line per seed, a panel per environment."""
    panels = []
    for env in GOALS:
        series: dict[str, Series] = {}
        for seed in SEEDS:
            rows = [
                r
                for r in read_jsonl(folder / f"control-{env}-{seed}" / "metrics.jsonl")
                if "episode_return" in r
            ]
            series[str(seed)] = [
                (r["environment_steps"] / 1000, r["episode_return"]) for r in rows[:: -(-len(rows) // 250)]
            ]
        panels.append((f"{env}: return by thousand steps", series))
    return svg(panels, [f"seed {seed}" for seed in SEEDS])


def gif(folder: Path, env: str) -> None:
    """An episode of seed 0's likeliest actions."""
    run = folder / f"control-{env}-0"
    drawn = make_environment(load_config("control", run / "config.toml").env, render=True)
    agent, scale = load_policy(run / "policy", spaces_of(drawn, env))
    file = ROOT / "docs" / "images" / f"control-{env.split('-')[0].lower()}.gif"
    print(f"{file.name}: return {write_gif(file, agent, scale, drawn, env, seed=0):.1f}")


def write(folder: Path) -> None:
    found = {
        env: {str(seed): result(folder / f"control-{env}-{seed}", goal) for seed in SEEDS}
        for env, goal in GOALS.items()
    }
    peer, speed = (
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for file in (folder / "sb3.json", folder / "speed.json")
    )
    about = "2 CPU cores (AMD Zen 4), one thread, torch 2.13.0, Gymnasium 1.4.0"
    results = ROOT / "benchmarks" / "results"
    both = {"machine": about, "proxlm": found, "stable_baselines3": peer, "steps_per_second": speed}
    (results / "control.json").write_text(json.dumps(both, indent=1) + "\n", encoding="utf-8")
    what = (
        "Return: mean of the last 100 training episodes. Steps/s: median of three runs of 50k steps in turns with"
        " Stable-Baselines3 2.9.2 on the quiet machine (benchmarks/control_speed.py); during the long runs, whose"
        " seconds are in control.json, other work shared it."
    )
    text = f"# Control\n\n`python benchmarks/control.py FOLDER`; {about}. {what}\n"
    (results / "control.md").write_text(f"{text}\n{table(found, peer, speed)}\n", encoding="utf-8")
    (ROOT / "docs" / "images" / "control.svg").write_text(curves(folder), encoding="utf-8")
    print(table(found, peer, speed))
    gif(folder, "Acrobot-v1")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if "--write" not in sys.argv:
        run_all(Path(sys.argv[1]))
    write(Path(sys.argv[1]))
