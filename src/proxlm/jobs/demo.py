"""`proxlm demo`: from the standard library's source to a model that PPO teaches to write code that parses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from proxlm.config import (
    DataSettings,
    DemoConfig,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    PretrainConfig,
    RewardSettings,
    RewardTerm,
    RolloutSettings,
    RunSettings,
    SupervisedSettings,
    TextSettings,
)
from proxlm.data.code import completion_prefixes, python_statements
from proxlm.data.text import split_validation
from proxlm.errors import RunError
from proxlm.jobs.held_out import print_comparison
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.pretrain import PretrainTrainer
from proxlm.jobs.startup import start_job
from proxlm.report.run import Run
from proxlm.rewards.python_code import python_parse_report
from proxlm.runlog.folder import free_name, write_atomic

TRAINING_PREFIXES = 6000
HELD_OUT = 512
STEPS = 75

# What a policy could do instead of completing the statement, and the guard that is to catch it.
HACKS = [
    ("total = sum(", "values) / len(values)", "an honest completion"),
    ("total = sum(", "", "ending at once"),
    ("total = sum(", "\n)", "an instant newline"),
    ("total = sum(", ")", "closing the bracket and nothing else"),
    ("total = sum(", "a, b) # and a comment without end", "an endless comment"),
    ("total = sum(", "'and a string that goes on and on and on, whatever it says')", "an endless string"),
    ("total = ", "1; x = 2; y = 3", "several statements"),
]


def main(config: DemoConfig) -> None:
    """Pretrain on the library's statements, run PPO, print the comparison and the guards at work."""
    folder = Path(config.folder) if config.folder else free_name("demo")
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder}: already holds a demo; choose another --folder or delete it")
    if config.chat:
        from proxlm.jobs import demo_chat

        demo_chat.main(replace(config, folder=str(folder)))
        return
    start_job()
    config = replace(
        config,
        folder=str(folder),
        ppo_steps=config.ppo_steps or STEPS,
        eval_count=config.eval_count or HELD_OUT,
    )
    print("1/3  reading the standard library's statements …", flush=True)
    statements = python_statements()
    pretraining = pretrain_job(config)
    train, held_out = split_validation(statements, pretraining.text.validation_share, config.seed)
    print(f"     {len(statements):,} single-line statements\n\n2/3  pretraining", flush=True)
    PretrainTrainer(statements, pretraining).train()
    print("\n3/3  PPO: complete a statement so that it parses", flush=True)
    write_prefixes(folder / "prefixes.jsonl", completion_prefixes(train, TRAINING_PREFIXES, config.seed))
    write_prefixes(folder / "held-out.jsonl", completion_prefixes(held_out, config.eval_count, config.seed))
    print_result(PPOTrainer(config=ppo_job(config)).train())


def pretrain_job(config: DemoConfig) -> PretrainConfig:
    """A Llama of 0.9M parameters, trained for `config.minutes`, in bfloat16 where the processor supports it."""
    return PretrainConfig(
        new=NewModelSettings(vocabulary=1024, hidden=128, layers=4, heads=2, context=128),
        model=ModelSettings(precision="auto", device="cpu"),
        text=TextSettings(train=["the standard library"], validation_share=0.05),
        train=SupervisedSettings(
            steps=5000, minutes=config.minutes, batch_tokens=2048, micro_batch_tokens=2048, block=64,
            validate_every=200, patience=0,
        ),
        optim=OptimiserSettings(
            lr=4e-3, schedule="cosine", warmup=20, final=0.05, beta2=0.95, eps=1e-8, weight_decay=0.1
        ),
        run=RunSettings(folder=str(Path(config.folder) / "pretrain"), seed=config.seed, save_every=0),
    )  # fmt: skip


def ppo_job(config: DemoConfig) -> PPOConfig:
    """PPO on the pretrained model: reward 1 for a completion that parses and is no trick, and a little for length."""
    folder = Path(config.folder)
    return PPOConfig(
        model=ModelSettings(
            policy=str(folder / "pretrain" / "policy"), critic="shared", precision="auto", device="cpu"
        ),
        data=DataSettings(
            prompts=str(folder / "prefixes.jsonl"),
            eval_prompts=str(folder / "held-out.jsonl"),
            eval_count=config.eval_count,
        ),
        rollout=RolloutSettings(max_new_tokens=32, batch_size=256),
        # The second term keeps responses about as long as the statements' own ends: the shortest way to parse
        # would otherwise win.
        reward=RewardSettings(
            terms={
                "parses": RewardTerm(use="python_parses"),
                "length": RewardTerm(use="length", weight=0.4, args={"target": 12, "tolerance": 12}),
            }
        ),
        ppo=PPOSettings(
            steps=config.ppo_steps,
            batch_size=256,
            epochs=2,
            minibatches=4,
            micro_batch_tokens=8192,
            kl_coef=0.05,
            kl_controller="adaptive",
            kl_target=5.0,
            kl_horizon=1024.0,
        ),
        optim=OptimisersSettings(
            policy=OptimiserSettings(lr=3e-4, schedule="linear", final=0.1),
            critic=OptimiserSettings(lr=1e-3, schedule="linear", final=0.1),
        ),
        run=RunSettings(folder=str(folder / "ppo"), seed=config.seed, save_every=0),
    )


def write_prefixes(path: Path, prefixes: Sequence[str]) -> None:
    """One {"prompt": …} a line."""
    write_atomic(path, "".join(json.dumps({"prompt": prefix}) + "\n" for prefix in prefixes))


def print_result(run: Run) -> None:
    """The comparison on held-out prefixes, the guards, and where everything is."""
    print_comparison(run, shown=6)
    print("\nThe reward's guards against ways of parsing that complete nothing:")
    for prefix, completion, what in HACKS:
        report = python_parse_report(prefix, completion)
        verdict = "reward 1" if report.parses and not report.guard else "reward 0"
        reason = "" if report.parses and not report.guard else f"  ({report.guard or 'does not parse'})"
        print(f"  {verdict}  {what:38} parses: {'yes' if report.parses else 'no':3}{reason}")
    print(f"\nmodel   {run.model}\nreport  {run.folder / 'report.html'}")
