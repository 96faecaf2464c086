"""No batch depends on the clock: equal conversations have equal log-probs, however long answers take."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from test_multi_turn import Counts, prompts, talk

from proxlm.config import CorrectionSettings, EnvironmentSettings, RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.environments import pace
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.resolve import with_environment
from proxlm.train.ppo.loop import PPOLoop
from small_models import tiny_model


class Dawdles(Counts):
    """Answers after a time that nobody knows beforehand, at most `longest` seconds."""

    longest = 0.04
    clock = random.Random()

    def reset(self, task):
        time.sleep(self.longest * self.clock.random())
        return super().reset(task)

    def step(self, reply):
        time.sleep(self.longest * self.clock.random())
        return super().step(reply)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_answers_that_take_their_time_change_no_bit(tokenizer, batch_size):
    model, sampling = tiny_model(tokenizer), RolloutSettings(max_new_tokens=5, batch_size=batch_size)
    one, two, quick = (talk(model, make, 8, sampling) for make in (Dawdles, Dawdles, Counts))
    for other in (two, quick):
        assert torch.equal(one.sequences.tokens, other.sequences.tokens)
        assert torch.equal(one.logprobs, other.logprobs)


def test_in_lockstep_none_is_too_slow(tokenizer, monkeypatch):
    monkeypatch.setattr(pace, "PATIENT_SECONDS", 0.0)
    monkeypatch.setattr(pace, "SLOW_SECONDS", 0.0)
    model = tiny_model(tokenizer)
    one, two = (talk(model, Dawdles, lockstep=True) for _ in range(2))
    assert torch.equal(one.logprobs, two.logprobs)


def test_one_that_is_too_slow_is_left_behind_and_told_of_once(tokenizer, monkeypatch):
    monkeypatch.setattr(pace, "PATIENT_SECONDS", 0.05)
    model, made, ended, others = tiny_model(tokenizer), iter(range(99)), [], threading.Event()

    class Numbered(Counts):
        """The first one answers when the other three have ended."""

        def __init__(self):
            super().__init__()
            self.number = next(made)

        def step(self, reply):
            assert self.number > 0 or others.wait(60)
            answer = super().step(reply)
            if answer[2]:
                ended.append(self.number)
                if len(ended) == 3:
                    others.set()
            return answer

    spec = MultiTurn(Numbered, PlainMessageTokens(tokenizer), EnvironmentSettings(use="x"))
    sampling = RolloutSettings(max_new_tokens=5)

    def rollout():
        return spec(NativeEngine(model, sampling), prompts(4), sampling, seed=3, step=0)

    left_behind = rollout()
    assert left_behind.lost == []
    assert ended[-1] == 0
    assert "environment.lockstep = true" in spec.pace.news()
    assert spec.pace.slow
    assert spec.pace.news() == ""
    monkeypatch.setattr(pace, "QUICK_SECONDS", 9.0)
    monkeypatch.setattr(pace, "SLOW_SECONDS", 9.0)
    again = rollout()  # in which nobody is slow
    assert torch.equal(again.sequences.tokens, left_behind.sequences.tokens)
    assert not spec.pace.slow


def test_equal_runs_with_rollouts_ahead_have_equal_weights(tokenizer, tmp_path):
    correction = CorrectionSettings(mode="token_truncate")
    config = job(steps=3, max_staleness=1, staleness_correction=correction, gae_steps="turn")
    results, rows = [], []
    for folder in ("a", "b"):
        made: PPOLoop = trainer(tokenizer, config, tmp_path / folder, reward=with_environment(None))
        made.generate = MultiTurn(
            Dawdles, PlainMessageTokens(tokenizer), EnvironmentSettings(use="x", max_turns=3)
        )
        log = SilentLog()
        made.train(log)
        results.append(parameters(made))
        rows.append([(row["kl"], row["rollout_gap"], row["policy_loss"]) for row in log.rows])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert rows[0] == rows[1]
