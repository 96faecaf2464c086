"""The tasks of benchmarks/algorithms.py: what is learnt, from which model, and what all algorithms share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import games
import torch
import translation

from proxlm import Callback, PPOTrainer, load_config
from proxlm.config import DemoConfig, to_toml
from proxlm.jobs import sft
from proxlm.jobs.chat_prompts import chat_prompts
from proxlm.jobs.demo_chat import TRAINING_PROMPTS, ppo_job
from proxlm.rl.shaping import response_rewards
from proxlm.runlog.folder import write_atomic
from proxlm.types import Rollout, Scores

PAIRS = Path("../shared/data/en-zh/cmn.txt")
SFT_STEPS = 800


class Prepared(NamedTuple):
    """What a task's runs begin with: a recipe, and the settings that differ from it."""

    recipe: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task of the benchmark.

    Attributes:
        title: What it is called on the page.
        about: A sentence for the page: model, reward, and what is held out.
        prepare: Makes the model and the data in a folder.
        beta: β of the penalty and of the objective, per nat of a response's KL.
        steps: PPO steps of a run.
        responses: Responses of a step, the same for all algorithms.
        group: Of these, how many answer the same prompt, for the estimators that compare them.
        rates: The learning rates tried first, the same for all algorithms.
        extend: Whether one rate more is tried where the best lies at the edge.
        evaluations: How often a run is evaluated, its end included.
        settings: What all runs share.
    """

    title: str
    about: str
    prepare: Callable[[Path], Prepared]
    beta: float
    steps: int
    responses: int
    group: int
    rates: tuple[float, ...]
    extend: bool = True
    evaluations: int = 4
    settings: dict[str, Any] = field(default_factory=dict)

    def shared_settings(self) -> dict[str, Any]:
        """Of every run, whatever the algorithm."""
        return {
            "ppo.steps": self.steps,
            "ppo.kl_coef": self.beta,
            "ppo.kl_controller": "fixed",
            "ppo.epochs": 2,
            "ppo.minibatches": 2,
            "ppo.critic_warmup": 0,
            "model.critic": "shared",
            "run.threads": 1,
            "run.save_every": 0,
            "run.tensorboard": False,
            "run.report": False,
            **self.settings,
        }


def stories(_folder: Path) -> Prepared:
    """A pretrained model as it is."""
    return Prepared("recipes/stories-sentiment.toml", {})


def game(name: str, args: dict[str, Any]) -> Callable[[Path], Prepared]:
    """A small model that has read random play."""

    def prepare(folder: Path) -> Prepared:
        model = games.read_random_play(name, folder, threads=1, args=args)
        return Prepared(str(games.RECIPES[name]), {"model.policy": str(model), "environment.args": args})

    return prepare


def translate(folder: Path) -> Prepared:
    """A small T5 that has been fine-tuned on pairs."""
    if not (folder / "test.jsonl").exists():
        translation.prepare(PAIRS, folder)
    model = folder / "sft" / "policy"
    if not model.exists():
        given = {
            "text.train": [str(folder / "sft.jsonl")],
            "run.folder": str(folder / "sft"),
            "train.steps": SFT_STEPS,
            "train.minutes": 0,
        }
        sft.main(load_config("sft", "recipes/translate-sft.toml", given))
    data = {"data.prompts": str(folder / "rl.jsonl"), "data.eval_prompts": str(folder / "test.jsonl")}
    return Prepared("recipes/translate-ppo.toml", {"model.policy": str(model), **data})


def chat(folder: Path) -> Prepared:
    """SmolLM2-135M-Instruct, the prompts and the settings of `proxlm demo --chat`."""
    held_out = 24
    job = ppo_job(DemoConfig(folder=str(folder), chat=True, ppo_steps=1, eval_count=held_out))
    prompts = chat_prompts(TRAINING_PROMPTS, held_out, seed=0)
    for file, records in (
        (job.data.prompts, prompts.train),
        (job.data.eval_prompts, [*prompts.combinations, *prompts.kinds]),
    ):
        write_atomic(Path(file), "".join(json.dumps(record) + "\n" for record in records))
    recipe = folder / "recipe.toml"
    write_atomic(recipe, to_toml(job))
    return Prepared(str(recipe), {})


TASKS = {
    "stories": Task(
        "Stories",
        "stories260K continues the opening of a story by 24 tokens; the reward is VADER's sentiment, from −1 to 1."
        " 96 held-out openings.",
        stories,
        beta=0.05,
        steps=20,
        responses=64,
        group=4,
        rates=(1e-4, 3e-4, 1e-3),
        settings={"rollout.max_new_tokens": 24, "data.eval_count": 96},
    ),
    "number-game": Task(
        "Number game",
        "A Llama of width 64 that has read random play finds a number from 1 to 4 with questions of 0.01 each; a"
        " right answer pays 1, the best play 0.98. 128 held-out conversations.",
        game("number-game", {"highest": 4, "price": 0.01}),
        beta=0.01,
        steps=60,
        responses=64,
        group=8,
        rates=(3e-4, 1e-3, 3e-3),
        settings={"data.eval_count": 128, "ppo.target_kl": 0.0},
    ),
    "tic-tac-toe": Task(
        "Tic-tac-toe",
        "A model of the same size that has read random games plays an opponent that wins where it can; a win pays 1,"
        " a draw 0.5, the best play 0.997. 128 held-out games.",
        game("tic-tac-toe", {}),
        beta=0.01,
        steps=40,
        responses=64,
        group=8,
        rates=(3e-4, 1e-3, 3e-3),
        settings={"data.eval_count": 128, "ppo.target_kl": 0.0},
    ),
    "translation": Task(
        "Translation",
        "A T5 of 1.4M parameters, fine-tuned for 800 steps, translates Chinese into English; the reward is sentence"
        " chrF, from 0 to 1. 192 held-out sentences.",
        translate,
        beta=0.01,
        steps=15,
        responses=64,
        group=4,
        rates=(1e-4, 3e-4, 1e-3),
        settings={"data.eval_count": 192},
    ),
    "chat": Task(
        "Chat",
        "SmolLM2-135M-Instruct, its top 6 blocks, answers questions with one or two instructions; the reward is the"
        " share that is kept, by rule (to be about the subject is one more), less 0.2 for an answer without an end."
        " 48 held-out prompts of new combinations and new kinds.",
        chat,
        beta=0.03,
        steps=8,
        responses=24,
        group=4,
        # A run takes long: two rates, one of them the demo's own, which takes more steps.
        rates=(4e-4, 1.2e-3),
        extend=False,
        evaluations=2,
        settings={"ppo.epochs": 1, "ppo.minibatches": 3, "optim.policy.warmup": 4},
    ),
}


class _Spread(Callback):
    """Takes note of how far the rewards of one prompt's responses are apart."""

    spread = math.nan

    def on_scores(self, step: int, rollout: Rollout, scores: Scores) -> None:  # noqa: ARG002
        rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
        by_prompt: dict[int, list[float]] = {}
        for prompt, reward in zip(rollout.prompts, rewards.tolist(), strict=True):
            by_prompt.setdefault(prompt.id, []).append(reward)
        self.spread = spread_of(list(by_prompt.values()))


def spread_of(groups: list[list[float]]) -> float:
    """Mean standard deviation of a group's rewards, with Bessel's correction, over the groups that vary."""
    deviations = [float(torch.tensor(group, dtype=torch.float64).std()) for group in groups if len(group) > 1]
    varied = [deviation for deviation in deviations if deviation > 1e-9]
    if not varied:
        raise ValueError(
            "the rewards of no prompt's responses differ: there is nothing that a group could learn from"
        )
    return math.fsum(varied) / len(varied)


def measured_spread(task: Task, prepared: Prepared, folder: Path) -> float:
    """The spread of the model at the start, over 512 responses; the run that finds it is thrown away."""
    once = {
        "ppo.steps": 1,
        "ppo.advantage": "rloo",
        "ppo.batch_size": 512 // task.group,
        "ppo.samples_per_prompt": task.group,
        "ppo.epochs": 1,
        "data.eval_count": 2,
        "evaluation.greedy": False,
        "run.folder": str(folder),
    }
    config = load_config("ppo", prepared.recipe, {**task.shared_settings(), **prepared.settings, **once})
    noted = _Spread()
    PPOTrainer(config=config, callbacks=[noted]).train()
    return noted.spread
