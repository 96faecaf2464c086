"""Short real PPO runs of a tiny model that are made ill on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from helpers import SilentLog, job, trainer, vowels

from proxlm.config import OptimiserSettings, OptimisersSettings, PPOConfig
from proxlm.doctor import Doctor, Finding, diagnose, facts_of
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Rollout, Scores

Edit = Callable[[PPOLoop], None]


def run(
    tokenizer: Any, folder: Path, config: PPOConfig, reward: Any = vowels, edit: Edit | None = None
) -> tuple[dict[str, Finding], list[dict[str, float]]]:
    """Train, after `edit` has had its way with the trainer. The findings of the whole run by rule, and its rows."""
    made = trainer(tokenizer, config, folder, reward=reward)
    if edit is not None:
        edit(made)
    log = SilentLog()
    made.train(log)
    return {f.rule: f for f in diagnose(log.rows, facts_of(config))}, log.rows


def said_live(rows: list[dict[str, float]], config: PPOConfig) -> list[tuple[int, str]]:
    """What a doctor says while the run goes on: (step, rule)."""
    doctor = Doctor(facts_of(config))
    return [(found.last, found.rule) for row in rows for found in doctor.see(row)]


def with_optim(config: PPOConfig, policy: OptimiserSettings, critic: OptimiserSettings) -> PPOConfig:
    return replace(config, optim=OptimisersSettings(policy, critic))


def longer(config: PPOConfig, tokens: int) -> PPOConfig:
    return replace(config, rollout=replace(config.rollout, max_new_tokens=tokens))


def separate(steps: int, lr: float, **ppo: Any) -> PPOConfig:
    """A job with a critic of its own, and 24 responses a step."""
    return job("separate", steps=steps, lr=lr, **{"batch_size": 24, **ppo})


# --- rewards that make ill ---


def constant(rollout: Rollout) -> Scores:
    return Scores(torch.ones(len(rollout)))


def long_is_good(rollout: Rollout) -> Scores:
    return Scores(rollout.sequences.response_lengths / 10)


def short_is_good(rollout: Rollout) -> Scores:
    return Scores(-rollout.sequences.response_lengths / 10)


def cut_is_good(rollout: Rollout) -> Scores:
    return Scores(torch.tensor([float(finish == "length") for finish in rollout.finish]))


def saying_it_again_is_good(rollout: Rollout) -> Scores:
    """Share of the tokens that equal the one before."""
    tokens, offsets = rollout.sequences.response_tokens.tolist(), rollout.sequences.response_offsets.tolist()
    shares = []
    for b in range(len(rollout)):
        row = tokens[offsets[b] : offsets[b + 1]]
        shares.append(sum(x == y for x, y in pairwise(row)) / max(1, len(row) - 1))
    return Scores(torch.tensor(shares))


def huge(rollout: Rollout) -> Scores:
    """One response in each step is worth 10³⁰, whose square is no float32."""
    scores = vowels(rollout).total
    scores[0] = 1e30
    return Scores(scores)


# --- edits of the models ---


def likely_eos(strength: float) -> Edit:
    """Turn the EOS token's output embedding to the states that follow the prompts, in policy and reference."""

    @torch.no_grad()
    def edit(made: PPOLoop) -> None:
        policy, reference = made.models.policy, made.models.reference
        assert reference is not None
        prompts = made.prompts.batch(0)
        states = [policy.network.model(torch.tensor([p.input_ids])).last_hidden_state[0, -1] for p in prompts]
        mean = torch.stack(states).mean(0)
        for model in (policy, reference):
            embeddings = model.network.get_output_embeddings().weight
            embeddings[model.tokenizer.eos_token_id] = strength * mean / mean.norm() ** 2

    return edit


@torch.no_grad()
def wild_critic(made: PPOLoop) -> None:
    made.models.value_head.linear.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def biased_critic(made: PPOLoop) -> None:
    made.models.value_head.linear.bias.fill_(20.0)
