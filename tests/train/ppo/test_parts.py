"""The parts of a step, called in a loop of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import actors, job, parameters, run, trainer, vowels

from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.train.ppo.learner import build_learner
from proxlm.train.ppo.prepare import prepare
from proxlm.train.ppo.update import update


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_loop_of_ones_own_is_the_trainer_bit_for_bit(tokenizer: Any, tmp_path: Any, critic: str) -> None:
    config = job(critic, critic_warmup=1, entropy_coef=0.1, entropy_floor=3.0)
    made = trainer(tokenizer, config, tmp_path)
    models, stream = actors(tokenizer, config), made.prompts
    learner = build_learner(models, config)
    for step in range(config.ppo.steps):
        rollout = generate(
            NativeEngine(models.policy, config.rollout),
            stream.batch(step),
            config.rollout,
            seed=config.run.seed,
            step=step,
        )
        prepared = prepare(models, rollout, vowels(rollout), config, step)
        update(learner, prepared)
    run(made)
    named = dict(models.policy_parameters()) | {f"critic.{n}": p for n, p in models.critic_parameters()}
    assert all(torch.equal(p, named[name]) for name, p in parameters(made).items())
