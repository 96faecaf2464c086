"""PPO of proxlm until a mean reward: one JSON line with its curve. `time_to_reward.py` calls it.

python benchmarks/reward_proxlm.py FOLDER '{"goal": 0.6, "seed": 0}'
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from reward_task import Curve, ReachedError, Task
from step_measure import PeakMemory
from step_proxlm import QuietLog


class CurveLog(QuietLog):
    """Keeps the curve instead of a run's log."""

    def __init__(self, memory: PeakMemory, curve: Curve) -> None:
        super().__init__(memory)
        self.curve = curve

    def metrics(self, step: int, values: dict[str, float]) -> None:
        super().metrics(step, values)
        self.curve.add(values["reward"], values["kl"])


def job_of(task: Task, folder: Path) -> Any:
    """The recipe's reward; AdamW as TRL has it: one rate, ε = 1e-8, gradients not scaled down."""
    from proxlm import load_config

    settings: dict[str, Any] = {
        "model.policy": str(folder / "policy"),
        "model.critic": "separate",
        "model.critic_from": str(folder / "value"),
        "model.device": "cpu",
        "rollout.max_new_tokens": task.response,
        "rollout.batch_size": task.batch,
        "data.prompts": "prompts.txt",
        "reward.use": "sentiment",
        "ppo.steps": task.steps,
        "ppo.batch_size": task.batch,
        "ppo.epochs": task.epochs,
        "ppo.minibatches": 1,
        "ppo.kl_coef": task.kl_coef,
        "run.seed": task.seed,
        "run.save_every": 0,
    }
    for who in ("policy", "critic"):
        common = {"lr": task.rate, "schedule": "constant", "eps": 1e-8, "max_grad_norm": 0.0}
        settings |= {f"optim.{who}.{name}": value for name, value in common.items()}
    return load_config("ppo", None, settings)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", type=json.loads)
    given = parser.parse_args()
    task = Task(**given.task)

    import torch

    from proxlm.jobs.startup import start_job
    from proxlm.seeds import Purpose, derive_seed

    start_job(task.threads)
    torch.manual_seed(derive_seed(task.seed, Purpose.WEIGHTS))
    from proxlm.data.prompts import PromptStream
    from proxlm.models.actor_critic import load_actor_critic
    from proxlm.rewards import build_reward
    from proxlm.train.ppo.loop import PPOLoop
    from proxlm.types import Prompt

    job = job_of(task, given.folder)
    models, reward = load_actor_critic(job.model), build_reward(job.reward)
    rows = json.loads((given.folder / "prompts.json").read_text(encoding="utf-8"))
    prompts = [Prompt(i, tuple(ids), text) for i, (ids, text) in enumerate(rows)]
    stream = PromptStream(prompts, task.batch, task.seed)
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as folder, suppress(ReachedError):
        trainer = PPOLoop(job, models, stream, reward, Path(folder))
        curve = Curve(task.goal)
        log: Any = CurveLog(memory, curve)
        trainer.train(log)
    print(json.dumps({"curve": curve.points, "peak_mb": max(memory.stop().values())}))


if __name__ == "__main__":
    main()
