"""A PPO run on a tiny model, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from proxlm.config import (
    LoraSettings,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RolloutSettings,
    RunSettings,
    ShapingSettings,
    ValueSettings,
)
from proxlm.config.algorithms import advantage_of
from proxlm.data.prompts import PromptStream
from proxlm.models.actor_critic import ActorCritic, make_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.sharded import whole
from proxlm.models.value_head import bins_of, ensemble_of
from proxlm.train.ppo.learner import step_parameters
from proxlm.train.ppo.loop import PPOLoop
from proxlm.train.ppo.plan import Minibatch, plan_update
from proxlm.train.ppo.prepare import Prepared, prepare
from proxlm.types import Prompt, Rollout, Scores, Sequences
from small_models import WORDS, tiny_model


class SilentLog:
    """Stands in for RunLog: keeps the metrics, shows nothing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})

    def samples(self, step: int, rows: Any) -> None:
        pass

    def checkpoint(self, save: Callable[[], Path], due: bool) -> None:
        if due:
            save()

    def phase(self, name: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def run(made: PPOLoop) -> list[dict[str, float]]:
    """Train to the end; the rows of metrics."""
    log = SilentLog()
    made.train(log)  # type: ignore[arg-type]
    return log.rows


def prepared_by(made: PPOLoop, rollout: Rollout, scores: Scores, **parameters: Any) -> Prepared:
    """What a run's first update would learn from; parameters: of the step, other than the settings' own."""
    return prepare(
        made.models,
        rollout,
        scores,
        made.config,
        parameters=replace(step_parameters(made.config), **parameters),
        algorithm=made.learner.algorithm,
    )


def with_experience(prepared: Prepared, **tensors: torch.Tensor) -> Prepared:
    """The same with other tensors in its experience, and nothing computed from the old ones."""
    return replace(prepared, experience=replace(prepared.experience, **tensors), first_gradient=None)


def weights_of(minibatch: Minibatch, tokens: int) -> torch.Tensor:
    """What each of a batch's tokens counts in a minibatch, in this rank's micro-batches, [R]; 0 elsewhere."""
    weights = torch.zeros(tokens)
    for micro in minibatch.micro_batches:
        weights[micro.tokens] += micro.weights
    return weights


def of_rows(prepared: Prepared, rows: torch.Tensor, config: PPOConfig) -> Prepared:
    """The same of some rows alone, with a plan of theirs."""
    experience = prepared.experience.select(rows)
    plan = plan_update(experience, config)
    return replace(prepared, experience=experience, plan=plan, first_gradient=None)


def blank_rollout(lengths: Iterable[int]) -> Rollout:
    """Rows of these lengths, each a prompt of one token and a response; nothing else about them matters."""
    rows = [[0] * (length - 1) for length in lengths]
    tokens = sum(map(len, rows))
    return Rollout(
        prompts=[Prompt(i, (0,), "") for i in range(len(rows))],
        sequences=Sequences.from_lists([[0]] * len(rows), rows),
        action_mask=torch.ones(tokens, dtype=torch.bool),
        logprobs=torch.zeros(tokens),
        finish=["eos"] * len(rows),
        texts=[""] * len(rows),
        policy_versions=torch.zeros(tokens, dtype=torch.int64),
    )


def vowels(rollout: Rollout) -> Scores:
    """Share of the letters that are vowels: easy to raise, and it varies."""
    scores = [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in rollout.texts]
    return Scores(torch.tensor(scores), components={"vowels": scores})


def job(
    critic: str = "shared",
    steps: int = 3,
    lr: float = 1e-3,
    seed: int = 0,
    shaping: ShapingSettings | None = None,
    packed: bool = False,
    value: ValueSettings | None = None,
    **ppo: Any,
) -> PPOConfig:
    settings = {
        "batch_size": 12,
        "minibatches": 3,
        "epochs": 2,
        "micro_batch_tokens": 200,
        "steps": steps,
        **ppo,
    }
    return PPOConfig(
        model=ModelSettings(
            policy="tiny",
            critic=critic,  # type: ignore[arg-type]
            device="cpu",
            packed=packed,
            value=value or ValueSettings(),
        ),
        rollout=RolloutSettings(max_new_tokens=12),
        ppo=PPOSettings(**settings),
        shaping=shaping or ShapingSettings(),
        optim=OptimisersSettings(OptimiserSettings(lr=lr), OptimiserSettings(lr=lr)),
        run=RunSettings(seed=seed, save_every=0),
    )


def actors(tokenizer: Any, config: PPOConfig, lora: int = 0, family: str = "llama") -> ActorCritic:
    model = config.model
    policy = tiny_model(
        tokenizer,
        family,
        packed=model.packed,
        precision=model.precision,
        activation_checkpointing=model.activation_checkpointing,
        train_layers=model.train_layers,
        freeze=model.freeze,
    )
    if lora:
        torch.manual_seed(1)
        policy = add_lora(policy, LoraSettings(rank=lora), model.train_layers)
    critic = config.model.critic if advantage_of(config.ppo.advantage).critic else "none"
    if config.model.value.heads > 1:
        torch.manual_seed(2)
    return make_actor_critic(policy, critic, bins_of(config.model.value), ensemble_of(config.model.value))


def trainer(
    tokenizer: Any,
    config: PPOConfig,
    folder: Path,
    lora: int = 0,
    reward: Any = vowels,
    family: str = "llama",
    **more: Any,
) -> PPOLoop:
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 3)]
    stream = PromptStream(prompts, config.ppo.batch_size, config.run.seed)
    return PPOLoop(config, actors(tokenizer, config, lora, family), stream, reward, folder, **more)


def parameters(made: PPOLoop) -> dict[str, torch.Tensor]:
    """A copy of all that learns."""
    both = [
        *made.models.policy_parameters(),
        *((f"critic.{n}", p) for n, p in made.models.critic_parameters()),
    ]
    return {name: whole(p.detach()).clone() for name, p in both}


def with_ppo(config: PPOConfig, **ppo: Any) -> PPOConfig:
    return replace(config, ppo=replace(config.ppo, **ppo))
