"""PPO steps of proxlm on given work, timed: one JSON line. `against_trl.py` calls it.

python benchmarks/step_proxlm.py FOLDER_OF_MODELS '{"hidden": 256, ...}' [--critic shared] [--lora 8] [--steps 4]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from step_measure import PeakMemory
from step_models import LORA_ALPHA, Work


class QuietLog:
    """Stands in for the run's log; keeps the metrics, and tells memory, if there is one, the phase."""

    def __init__(self, memory: PeakMemory | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.memory = memory

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})

    def phase(self, name: str) -> None:
        if self.memory is not None:
            self.memory.phase = name

    def samples(self, *_: Any) -> None:
        pass

    def progress(self, *_: Any) -> None:
        pass

    def note(self, *_: Any) -> None:
        pass

    def checkpoint(self, save: Callable[[], Path], due: bool) -> None:
        if due:
            save()


def job_of(work: Work, folder: Path, options: argparse.Namespace) -> Any:
    from proxlm import load_config

    settings = {
        "model.policy": str(folder / "policy"),
        "model.critic": options.critic,
        "model.device": options.device,
        "model.precision": "bfloat16" if options.bf16 else "float32",
        "model.lora.rank": options.lora,
        **({"model.lora.alpha": LORA_ALPHA} if options.lora else {}),
        "model.train_layers": options.train_layers,
        "model.critic_from": str(folder / "reward") if options.critic_from_reward else "",
        "model.activation_checkpointing": options.activation_checkpointing,
        "rollout.max_new_tokens": work.response,
        "rollout.batch_size": work.batch,
        "rollout.cuda_graphs": options.cuda_graphs,
        "data.prompts": "prompts.txt",
        "reward.use": "length",
        "ppo.steps": options.steps,
        "ppo.batch_size": work.batch,
        "ppo.epochs": work.epochs,
        "ppo.minibatches": 1,
        "ppo.micro_batch_tokens": options.micro_batch_tokens,
        # TRL, too, takes the log-probs of sampling; in bf16 they are not near enough to the trainer's.
        "ppo.old_logprobs": "recomputed" if options.bf16 else "rollout",
        "optim.policy.lr": 1e-5,
        "optim.critic.lr": 1e-5,
        "run.save_every": 0,
    }
    return load_config("ppo", None, settings)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=json.loads)
    parser.add_argument("--critic", default="separate")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights learn")
    parser.add_argument("--train-layers", type=int, default=0, help="of the top blocks; 0: all learn")
    parser.add_argument(
        "--critic-from-reward",
        action="store_true",
        help="a separate critic that all of learns, --lora or not",
    )
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument(
        "--micro-batch-tokens", type=int, default=1280, help="TRL's 16 rows of the fixed work"
    )
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, not of the clock")
    options = parser.parse_args()
    if options.cpu:
        time.perf_counter = time.process_time
    work = Work(**options.work)

    import torch

    from proxlm.jobs.startup import start_job
    from proxlm.seeds import Purpose, derive_seed

    start_job(options.threads)
    torch.manual_seed(derive_seed(work.seed, Purpose.WEIGHTS))
    from transformers import AutoModelForSequenceClassification

    from proxlm.data.prompts import PromptStream
    from proxlm.models.actor_critic import load_actor_critic
    from proxlm.models.forward import micro_batches, response_states
    from proxlm.train.ppo.loop import PPOLoop
    from proxlm.types import Prompt, Rollout, Scores

    job = job_of(work, options.folder, options)
    models = load_actor_critic(job.model)
    scorer = AutoModelForSequenceClassification.from_pretrained(options.folder / "reward")
    scorer = scorer.to(options.device).eval()

    @torch.no_grad()
    def reward(rollout: Rollout) -> Scores:
        scores = torch.zeros(len(rollout))
        for rows in micro_batches(rollout.sequences.lengths, job.ppo.micro_batch_tokens):
            part = rollout.sequences.select(rows).to(models.policy.device)
            states = response_states(models.policy, part, scorer.model)[1]
            scores[rows] = scorer.score(states).squeeze(-1).float().cpu()
        return Scores(scores)

    rows = work.prompts(options.steps + 1)
    prompts = [Prompt(i, tuple(ids), f"prompt {i}") for i, ids in enumerate(rows)]
    memory = PeakMemory()
    log: Any = QuietLog(memory)
    with tempfile.TemporaryDirectory() as folder:
        stream = PromptStream(prompts, work.batch, work.seed)
        PPOLoop(job, models, stream, reward, Path(folder)).train(log)
    peaks = memory.stop()
    seconds = {
        "generate": [row["time/generate"] for row in log.rows],
        "score": [row["time/score"] + row["time/prepare"] for row in log.rows],
        "update": [row["time/update"] for row in log.rows],
        "step": [row["time/step"] for row in log.rows],
    }
    result = {
        "seconds": seconds,
        "peak_mb": peaks,
        "baseline_mb": memory.baseline,
        "learning": {
            name: sum(p.numel() for _, p in parameters)
            for name, parameters in (
                ("policy", models.policy_parameters()),
                ("critic", models.critic_parameters()),
            )
        },
        "response_length": [row["response_length"] for row in log.rows],
        "optimiser_steps": log.rows[-1]["optimiser_steps"],
        "ratio_error": [row["first_minibatch/ratio_error"] for row in log.rows],
        "versions": {"torch": torch.__version__},
    }
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
