"""PPO of TRL 1.12.0 until a mean reward: one JSON line with its curve, for `time_to_reward.py`; with TRL's Python.

python benchmarks/reward_trl.py FOLDER '{"goal": 0.6, "seed": 0}'

TRL's reward is a model with a score head. Here a module stands in for it, and what TRL asks for the score of a batch
asks proxlm's scoring function, on the decoded responses. proxlm's source must be on the path.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reward_task import Curve, ReachedError, Task
from step_measure import PeakMemory

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "WANDB_DISABLED": "true"}


def with_scores(get_reward: Callable[..., Any], stand_in: Any, tokenizer: Any) -> Callable[..., Any]:
    """TRL's get_reward, which still reads the value model, but scores texts where the reward model would be read."""
    import torch

    from proxlm.data.turn_end import turn_end_of
    from proxlm.engine.text import ResponseText
    from proxlm.rewards.builtin import sentiment
    from proxlm.types import Completion

    score, text_of = sentiment(), ResponseText(tokenizer, turn_end_of(tokenizer))

    def scored(model: Any, rows: torch.Tensor, pad: int, context: int) -> Any:
        if model is not stand_in:
            return get_reward(model, rows, pad, context)
        completions = []
        for row in rows.tolist():
            prompt, response = ([i for i in part if i != pad] for part in (row[:context], row[context:]))
            text = text_of(prompt, response)
            completions.append(Completion("", text, tuple(response), "length"))
        return None, torch.tensor(score(completions)), None

    return scored


def trainer_of(task: Task, folder: Path, output: str, stand_in: Any, tokenizer: Any, callback: Any) -> Any:
    import datasets
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy").float() for _ in range(2))
    reference.eval().requires_grad_(False)
    config = PPOConfig(
        output_dir=output,
        seed=task.seed,
        use_cpu=True,
        bf16=False,
        fp16=False,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        num_sample_generations=0,
        gradient_checkpointing=False,
        learning_rate=task.rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=task.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=task.epochs,
        kl_coef=task.kl_coef,
        total_episodes=task.batch * task.steps,
        local_rollout_forward_batch_size=task.batch,
        response_length=task.response,
        stop_token="eos",
        temperature=1.0,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    rows = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=stand_in,
        value_model=AutoModelForSequenceClassification.from_pretrained(folder / "value").float(),
        train_dataset=datasets.Dataset.from_dict({"input_ids": [ids for ids, _ in rows]}),
        callbacks=[callback],
    )


def run(given: argparse.Namespace) -> dict[str, Any]:
    task = Task(**given.task)
    import torch

    torch.set_num_threads(task.threads)
    import transformers
    import trl.experimental.ppo.ppo_trainer as module

    curve = Curve(task.goal)

    class Follow(transformers.TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            curve.add(float(logs["objective/scores"]), float(logs["objective/kl"]))

    tokenizer = transformers.AutoTokenizer.from_pretrained(given.folder / "policy", padding_side="left")
    stand_in = torch.nn.Identity()
    with tempfile.TemporaryDirectory() as output, contextlib.suppress(ReachedError):
        trainer = trainer_of(task, given.folder, output, stand_in, tokenizer, Follow())
        module.get_reward = with_scores(module.get_reward, trainer.reward_model, tokenizer)
        memory = PeakMemory()
        curve.began = time.perf_counter()
        trainer.train()
    return {"curve": curve.points, "peak_mb": max(memory.stop().values())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", type=json.loads)
    given = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        result = run(given)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
