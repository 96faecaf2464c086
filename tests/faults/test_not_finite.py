"""Rewards and gradients that are no finite numbers: the update is skipped and counted; a run that only skips ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer, vowels
from small_runs import SFT, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.checkpoint import newest_checkpoint
from proxlm.config import ShapingSettings
from proxlm.errors import RunError
from proxlm.rl.losses import token_weights
from proxlm.train.ppo import plan
from proxlm.train.supervised import objective


def bad_from(step, value=math.inf):
    """A reward function of rollouts whose second response is worth `value` from the given step on."""

    def reward(rollout):
        scores = vowels(rollout)
        if int(rollout.policy_versions[0]) >= step:
            scores.total[1] = value
        return scores

    return reward


@pytest.mark.parametrize("value", [-math.inf, math.inf])
def test_a_reward_that_is_not_finite_changes_no_policy_and_no_controller(tokenizer, tmp_path, value):
    settings = {"kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 100.0}
    config = job("separate", steps=3, shaping=ShapingSettings(scale="running"), **settings)
    made = trainer(tokenizer, config, tmp_path, reward=bad_from(1, value))
    made.step(SilentLog())
    before, moments = parameters(made), made.state.score_statistics
    row = made.step(SilentLog())
    after = parameters(made)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Whitening spreads it over the batch; the critic skips the one minibatch of each pass that it is in.
    assert moved
    assert all(name.startswith("critic.") for name in moved)
    assert all(bool(after[name].isfinite().all()) for name in moved)
    assert (row["grad_norm/policy_not_finite"], row["grad_norm/critic_not_finite"]) == (6, 2)
    assert made.state.non_finite == 1
    assert made.state.score_statistics.n == moments.n + 11  # of 12 responses one had none
    assert math.isfinite(made.state.score_statistics.mean)
    assert math.isfinite(made.state.kl_coef)


def test_after_k_steps_in_a_row_the_run_is_saved_and_ends_with_its_samples_named(tokenizer, tmp_path):
    config = job("shared", steps=9)
    config = replace(config, run=replace(config.run, max_skipped_updates=3))
    made = trainer(tokenizer, config, tmp_path, reward=bad_from(2))
    with pytest.raises(RunError, match="no update in the last 3 steps") as caught:
        made.train(SilentLog())
    assert made.state.step == 5
    assert newest_checkpoint(tmp_path).name == "step-00000005"
    rows = [
        json.loads(line) for line in (tmp_path / "non-finite-step-00000005.jsonl").read_text().splitlines()
    ]
    # The one response whose own reward was no number, not the twelve that whitening made so.
    assert [row["not_finite"] for row in rows if "reward" in row["not_finite"]] == [rows[0]["not_finite"]]
    assert rows[0]["step"] == 5
    assert f"prompt {rows[0]['prompt_id']}" in str(caught.value)
    assert rows[0]["reward"] is None
    assert rows[0]["response"]
    # Whoever mends the reward goes on from there.
    again = trainer(tokenizer, config, tmp_path)
    again.resume()
    again.train(SilentLog())
    assert (again.state.step, again.state.non_finite) == (9, 0)


def test_one_good_step_begins_the_count_again(tokenizer, tmp_path):
    def reward(rollout):
        return bad_from(0 if int(rollout.policy_versions[0]) % 3 else 99)(rollout)

    config = job("shared", steps=9)
    config = replace(config, run=replace(config.run, max_skipped_updates=3))
    log = SilentLog()
    trainer(tokenizer, config, tmp_path, reward=reward).train(log)
    skipped = [row["grad_norm/policy_not_finite"] for row in log.rows]
    assert skipped == [0, 6, 6] * 3


def test_a_loss_that_is_no_number_is_skipped_in_one_minibatch_alone(tokenizer, tmp_path, monkeypatch):
    calls = []

    def weights(*given):
        calls.append(1)
        return token_weights(*given) * (math.inf if len(calls) == 2 else 1.0)

    monkeypatch.setattr(plan, "token_weights", weights)
    made = trainer(tokenizer, job("separate"), tmp_path)
    row = made.step(SilentLog())
    assert row["grad_norm/policy_not_finite"] == 1
    assert row["optimiser_steps"] == 6
    assert made.state.non_finite == 0
    assert all(bool(p.isfinite().all()) for p in parameters(made).values())


def test_fine_tuning_counts_and_ends_too(tiny_place, capsys, monkeypatch):  # noqa: F811
    real, calls = objective.next_token_gradient, []

    def gradient(model, examples, rows, tokens, **more):
        calls.append(rows)
        return real(model, examples, rows, tokens, math.nan if len(calls) > 2 else 1.0, **more)

    monkeypatch.setattr(objective, "next_token_gradient", gradient)
    assert main([*SFT, "--run.max-skipped-updates", "2"]) == 2
    error = capsys.readouterr().err
    assert "no update in the last 2 steps" in error
    rows = (tiny_place / "sft-run" / "non-finite-step-00000004.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rows] == calls[3]
    metrics = (tiny_place / "sft-run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["grad_norm_not_finite"] for line in metrics] == [0, 0, 1, 1]
