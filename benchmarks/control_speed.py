"""Environment steps a second of proxlm and of Stable-Baselines3, in turns, so that both meet the same machine.

    python benchmarks/control_speed.py OUTPUT.json [ROUNDS]

Needs proxlm[control] and stable-baselines3. Both with the settings of recipes/control-*.toml, one thread, 50k steps a
run; prints and writes every run's steps per second.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import control_sb3
import torch

from control import GOALS, recipe
from proxlm.config import load_config
from proxlm.jobs.control import main as run_control

STEPS = 50 * 1024


def ours(env: str, seed: int) -> float:
    """Steps per second of a whole run: folder, metrics, checkpoint and all, but no report."""
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "environment.steps": STEPS,
            "run.seed": seed,
            "run.folder": f"{folder}/run",
            "run.report": False,
        }
        config = load_config("control", recipe(env), given)
        began = time.perf_counter()
        run_control(config)
        return STEPS / (time.perf_counter() - began)


def theirs(env: str, seed: int) -> float:
    control_sb3.STEPS[env] = STEPS
    return control_sb3.run(env, seed)["steps_per_second"]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[int]]] = {}
    for seed in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3):
        for env in GOALS:
            of_env = found.setdefault(env, {"proxlm": [], "stable_baselines3": []})
            of_env["proxlm"].append(round(ours(env, seed)))
            of_env["stable_baselines3"].append(round(theirs(env, seed)))
    for env, speeds in found.items():
        print(env, {name: (median(values), values) for name, values in speeds.items()})
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
