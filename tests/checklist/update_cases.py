"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import torch
from helpers import actors, job, parameters, prepared_by, vowels

from proxlm.data.prompts import PromptStream
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.train.ppo.loop import PPOLoop
from proxlm.train.ppo.update import update
from proxlm.types import Prompt
from small_models import WORDS

CRITICS = ["shared", "separate", "none"]
AGGREGATIONS = ["token", "sequence", "fixed"]


def settings(critic, aggregation="token", **more):
    """A job of one PPO step, with a critic or without one."""
    free = {"advantage": "reinforce++"} if critic == "none" else {}
    name = "shared" if critic == "none" else critic
    return job(name, steps=1, aggregation=aggregation, **free | more)


def close(found, wanted, tolerance=1e-6, label=""):
    """‖a − b‖ ≤ tolerance · ‖b‖ for each tensor, those that begin at 0 (the value head, biases) among them."""
    assert set(found) == set(wanted)
    for name, b in wanted.items():
        worst = float((found[name] - b).norm()) / float(b.norm())
        assert worst <= tolerance, (label, name, worst)


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


LONG = " ".join([WORDS[1]] * 4)


def made_with(tokenizer, config, folder, lora=0):
    """A trainer whose prompts are of very different lengths, one of them long: it pads the others."""
    texts = [*WORDS, LONG, "a", *WORDS[:4]]
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]
    stream = PromptStream(prompts, config.ppo.batch_size, config.run.seed)
    return PPOLoop(config, actors(tokenizer, config, lora), stream, vowels, folder)


def rollout_of(tokenizer, config):
    models = actors(tokenizer, config)
    stream = made_with(tokenizer, config, None).prompts
    engine = NativeEngine(models.policy, config.rollout)
    rollout = generate(engine, stream.batch(0), config.rollout, seed=0, step=0)
    return rollout, vowels(rollout)


def learnt_from(tokenizer, config, rollout, scores):
    made = made_with(tokenizer, config, None)
    update(made.learner, prepared_by(made, rollout, scores))
    return parameters(made)
