"""Seconds of a PPO step's responses and their scores: scored after the writing, and beside it (reward.overlap).

    python benchmarks/overlap.py [--threads 2] [--repeats 5] [--overlap 8] [--at-once 16 64]

A random Llama (hidden 256, 4 layers), 64 responses that end by EOS or after 64 tokens; there is no update.
Two rewards: `judge` waits 20 ms for each response, as a remote judge would that is asked about one after another;
`python_tests` runs each in the sandbox, with tests of about 20 ms. For each of them and each number of responses
written at once, both ways alternate in one process on the same prompts; the first of each is left out. Writes
benchmarks/results/overlap.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from step_models import Work, make_models
from step_proxlm import QuietLog

from proxlm.config import ModelSettings, PPOConfig, PPOSettings, RewardSettings, RolloutSettings
from proxlm.data.prompts import PromptStream
from proxlm.engine.native import NativeEngine
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.rewards import Reward, build_reward
from proxlm.train.common.clock import Clock
from proxlm.train.ppo.collect import collect
from proxlm.types import Completion, Prompt

RESULTS = Path(__file__).parent / "results"
WAIT = 0.02
WORK = Work(ragged=True)
# The prompt's text makes a comment of the response, so that every program comes to its test.
PROGRAM, TEST = "pass  # ", "assert sum(i * i for i in range(250_000)) > 0"


def judge(completions: list[Completion]) -> list[float]:
    """Asks about one response after another."""
    time.sleep(WAIT * len(completions))
    return [float(len(one.tokens)) for one in completions]


def reward_of(name: str) -> Reward:
    if name == "judge":
        return build_reward(RewardSettings(), judge)
    return build_reward(RewardSettings(use="python_tests", args={"with_prompt": True, "fenced": False}))


def job_of(overlap: int, at_once: int) -> PPOConfig:
    return PPOConfig(
        rollout=RolloutSettings(max_new_tokens=WORK.response, batch_size=at_once),
        reward=RewardSettings(overlap=overlap),
        ppo=PPOSettings(batch_size=WORK.batch),
    )


def measured(
    model: LanguageModel, prompts: PromptStream, name: str, jobs: dict[int, PPOConfig], repeats: int
) -> dict[str, Any]:
    """Seconds by phase without overlap and with it, in turn; jobs: by overlap."""
    reward = reward_of(name)
    at_once = jobs[0].rollout.batch_size
    seconds: dict[int, dict[str, list[float]]] = {size: {} for size in jobs}
    for draw in range(1 + repeats):
        for size, job in jobs.items():
            clock = Clock(QuietLog())
            engine = NativeEngine(model, job.rollout)
            collect(engine, prompts, reward, job, temperature=1.0, draw=draw, clock=clock)
            both = {"both": sum(clock.seconds.values())} | clock.seconds | clock.overlapped
            for phase, value in both.items() if draw else ():
                seconds[size].setdefault(phase, []).append(value)
    for size, phases in seconds.items():
        words = ", ".join(f"{phase} {statistics.median(found):.2f}" for phase, found in phases.items())
        print(f"{name}, {at_once} written at once, overlap {size}: {words}", flush=True)
    without, beside = (statistics.median(phases["both"]) for phases in seconds.values())
    print(f"{name}, {at_once} written at once: {beside / without:.1%} of the time", flush=True)
    return {
        "reward": name,
        "written at once": at_once,
        "seconds by overlap": {str(size): phases for size, phases in seconds.items()},
        "ratio of medians": beside / without,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--overlap", type=int, default=8)
    parser.add_argument("--at-once", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rewards", nargs="+", default=["judge", "python_tests"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_models(WORK, Path(folder))
        model = load_language_model(ModelSettings(policy=f"{folder}/policy", device="cpu"))
    rows = WORK.prompts(batches=given.repeats + 1)
    asked = [Prompt(i, tuple(ids), PROGRAM, {"tests": [TEST]}) for i, ids in enumerate(rows)]
    prompts = PromptStream(asked, WORK.batch, seed=0)
    runs = []
    for name in given.rewards:
        for at_once in given.at_once:
            jobs = {size: job_of(size, at_once) for size in (0, given.overlap)}
            runs.append(measured(model, prompts, name, jobs, given.repeats))
    result = {"threads": given.threads, "overlap": given.overlap, "wait in seconds": WAIT, "runs": runs}
    (RESULTS / "overlap.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
