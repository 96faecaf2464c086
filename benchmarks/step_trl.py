"""PPO steps of TRL 1.12.0 on given work, timed: one JSON line. `against_trl.py` calls it with TRL's own Python.

    python benchmarks/step_trl.py FOLDER_OF_MODELS '{"hidden": 256, ...}' [--steps 4] [--lora 8 [--value-adapters]]

TRL makes one optimiser step per epoch (its accumulation spans the whole batch, whatever num_mini_batches says), and
so does what it is compared with. --lora hands the trainer a peft_config: the policy gets adapters and is, with them
off, the reference; the value model learns in full. --value-adapters, which TRL has no setting for, freezes it and
puts adapters of the same rank into it before the trainer sees it; its score head still learns.
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

from step_measure import PeakMemory, resident_mb
from step_models import LORA_ALPHA, Work

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "WANDB_DISABLED": "true"}


class Clock:
    """Seconds of each phase of the steps that have ended, seen from the functions that TRL calls."""

    def __init__(self, memory: PeakMemory) -> None:
        self.memory, self.steps, self.now = memory, list[dict[str, float]](), dict[str, float]()
        self.lengths: list[float] = []
        self.optimiser_steps = 0
        self.began = time.perf_counter()

    def generating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.memory.phase, began = "generate", time.perf_counter()
            found = function(*args, **kwargs)
            self.now["generate"] = time.perf_counter() - began
            self.memory.phase = "score"
            return found

        return timed

    def forward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*args: Any, **kwargs: Any) -> Any:
            import torch

            if torch.is_grad_enabled():
                self.memory.phase = "update"
                self.now.setdefault("update began", time.perf_counter())
            return function(*args, **kwargs)

        return seen

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            self.optimiser_steps += 1
            found = function(*args, **kwargs)
            self.now["update ended"] = time.perf_counter()
            return found

        return step

    def end_step(self) -> None:
        end = time.perf_counter()
        update = self.now["update ended"] - self.now["update began"]
        whole = end - self.began
        generate = self.now["generate"]
        self.steps.append(
            {"generate": generate, "score": whole - generate - update, "update": update, "step": whole}
        )
        self.now, self.began = {}, time.perf_counter()


def adapters(rank: int) -> Any:
    """LoRA on every linear layer but the head, as proxlm puts it."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def models_of(folder: Path, lora: int, value_adapters: bool) -> dict[str, Any]:
    """The four networks, and what adapters the policy is to have, by the names that the trainer gives them."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    found: dict[str, Any] = {"model": AutoModelForCausalLM.from_pretrained(folder / "policy").float()}
    found["ref_model"] = (
        None if lora else AutoModelForCausalLM.from_pretrained(folder / "policy").float().eval()
    )
    for name in ("value_model", "reward_model"):
        found[name] = AutoModelForSequenceClassification.from_pretrained(folder / "reward").float()
    for frozen in (found["ref_model"], found["reward_model"].eval()):
        if frozen is not None:
            frozen.requires_grad_(False)
    if value_adapters:
        from peft import inject_adapter_in_model

        value = found["value_model"].requires_grad_(False)
        inject_adapter_in_model(adapters(lora), value.model)
        value.score.requires_grad_(True)
    return {**found, "peft_config": adapters(lora) if lora else None}


def trainer_of(work: Work, options: argparse.Namespace, output: str, callback: Any) -> Any:
    import datasets
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        output_dir=output,
        seed=work.seed,
        use_cpu=options.device == "cpu",
        bf16=options.device != "cpu",
        fp16=False,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        gradient_checkpointing=False,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.batch // work.micro_batch,
        num_mini_batches=1,
        num_ppo_epochs=work.epochs,
        total_episodes=work.batch * options.steps,
        local_rollout_forward_batch_size=64,
        response_length=work.response,
        stop_token="eos" if work.ragged else None,
        temperature=1.0,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    return PPOTrainer(
        args=config,
        processing_class=AutoTokenizer.from_pretrained(options.folder / "policy", padding_side="left"),
        train_dataset=datasets.Dataset.from_dict({"input_ids": work.prompts(options.steps + 2)}),
        callbacks=[callback],
        **models_of(options.folder, options.lora, options.value_adapters),
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    import transformers
    import trl
    import trl.experimental.ppo.ppo_trainer as module

    work, memory = Work(**options.work), PeakMemory()
    clock = Clock(memory)

    class Ends(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end_step()

    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(work, options, output, Ends())
        module.batch_generation = clock.generating(module.batch_generation)
        module.forward = clock.forward(module.forward)
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        inner.step = clock.counted(inner.step)
        memory.baseline = resident_mb()
        learning = {
            name: sum(p.numel() for p in network.parameters() if p.requires_grad)
            for name, network in (("policy", trainer.policy_model), ("critic", trainer.value_model))
        }
        trainer.train()
    names = ("generate", "score", "update", "step")
    return {
        "seconds": {name: [step[name] for step in clock.steps] for name in names},
        "peak_mb": memory.stop(),
        "baseline_mb": memory.baseline,
        "learning": learning,
        "optimiser_steps": clock.optimiser_steps / len(clock.steps),
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=json.loads)
    parser.add_argument(
        "--lora", type=int, default=0, help="rank of the policy's adapters; 0: all weights learn"
    )
    parser.add_argument("--value-adapters", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, not of the clock")
    options = parser.parse_args()
    if options.cpu:
        time.perf_counter = time.process_time
    with contextlib.redirect_stdout(sys.stderr):
        result = run(options)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
