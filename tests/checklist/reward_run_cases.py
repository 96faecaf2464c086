"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import torch
from helpers import SilentLog, vowels

from proxlm.config import PtxSettings
from proxlm.train.ppo import loop as trainer_module
from proxlm.train.ppo.ptx import PtxText
from proxlm.types import Scores


def steps(made, count):
    log = SilentLog()
    return [made.step(log) for _ in range(count)]


class Seen:
    """The experience, the numbers and the rollout with its scores of each step of a trainer."""

    def __init__(self, made, monkeypatch):
        self.experiences, self.numbers, self.rollouts, self.scores = [], [], [], []
        update, reward = trainer_module.update, made.reward

        def looking(learner, prepared, *more):
            if learner is made.learner:
                self.experiences.append(prepared.experience)
                self.numbers.append(prepared.parameters)
            return update(learner, prepared, *more)

        def scored(rollout):
            scores = reward(rollout)
            self.rollouts.append(rollout)
            self.scores.append(scores)
            return scores

        monkeypatch.setattr(trainer_module, "update", looking)
        monkeypatch.setattr(made, "reward", scored)


def zeros(rollout):
    return Scores(torch.zeros(len(rollout)))


def only_even_prompts_vary(rollout):
    """Responses to even prompts earn what their place gives, all others 1."""
    even = torch.tensor([p.id % 2 == 0 for p in rollout.prompts])
    return Scores(torch.where(even, vowels(rollout).total + torch.arange(len(rollout)) * 1e-3, 1.0))


def some_text():
    return torch.randint(5, 300, (12, 16), generator=torch.Generator().manual_seed(0))


def ptx_of(coef, batch_tokens=64):
    return PtxText(some_text(), PtxSettings(coef=coef, batch_tokens=batch_tokens), 1000, seed=0)


FILTER = {"samples_per_prompt": 2, "batch_size": 6, "filter_groups": True, "filter_rounds": 4}
