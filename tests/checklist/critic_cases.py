"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from helpers import actors, trainer, vowels

from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.train.ppo.learner import step_parameters
from proxlm.train.ppo.prepare import prepare

CRITICS = ["shared", "separate"]


def with_values(models, seed=3):
    """A head that is not zero, so that V differs from token to token."""
    torch.manual_seed(seed)
    torch.nn.init.normal_(models.value_head.linear.weight, std=0.3)
    torch.nn.init.constant_(models.value_head.linear.bias, 0.5)


def rollout_of(tokenizer, config, models):
    """Responses of different lengths, one of them a single token: an "a" ends them."""
    prompts = trainer(tokenizer, config, None).prompts.batch(0)  # type: ignore[arg-type]
    settings = replace(config.rollout, stop=["a"])
    return generate(NativeEngine(models.policy, settings), prompts, settings, seed=0, step=0)


def experience_of(tokenizer, config, warmup=False, head=True):
    """What the first step would learn from, under a critic whose values vary if `head`."""
    models = actors(tokenizer, config)
    if head and models.value_head is not None:
        with_values(models)
    rollout = rollout_of(tokenizer, config, models)
    parameters = replace(step_parameters(config), critic_only=warmup)
    prepared = prepare(models, rollout, vowels(rollout), config, parameters=parameters)
    experience = prepared.experience
    return experience, prepared.metrics, experience.sequences.response_offsets


def future(rewards, offsets):
    """Σ of the rewards from each token to its row's end."""
    ends = offsets.tolist()
    return torch.cat([rewards[a:b].flip(0).cumsum(0).flip(0) for a, b in pairwise(ends)])
