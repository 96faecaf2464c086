"""Item 41: what follows a segment of an episode, by hand; and moments against those of all data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog
from toys import Count, Signs, Walk, job, trainer

from proxlm.control.batch import build_batch, segment_offsets
from proxlm.control.normalise import (
    ReturnStatistics,
    empty_statistics,
    scale_of,
    scaled_rewards,
    with_rewards,
    with_rows,
)
from proxlm.control.trajectories import collect_trajectories
from proxlm.rl.running_statistics import RunningStatistics, with_values

pytestmark = pytest.mark.checklist(41)


def counted(monkeypatch, lam: float):
    """Five steps of Count, with V(observation) = observation and γ = 1/2."""
    made = trainer(job(count=1, horizon=5, gamma=0.5, lam=lam, minibatches=1), Count)
    made.environments.start()
    monkeypatch.setattr(made.agent, "value", lambda x, rows: (x[:, 0], None))
    trajectories = collect_trajectories(made.agent, made.environments, None, 5, None, seed=0)
    return trajectories, build_batch(
        made.agent, trajectories, trajectories.rewards, None, made.config.ppo, None
    )[0]


def test_segments_of_the_counting_environment(monkeypatch):
    trajectories, batch = counted(monkeypatch, 0.0)
    assert trajectories.observations.flatten().tolist() == [0.0, 1.0, 10.0, 11.0, 20.0]
    assert trajectories.next_observations.flatten().tolist() == [1.0, 2.0, 11.0, 12.0, 21.0]
    assert trajectories.terminated.flatten().tolist() == [False, True, False, False, False]
    assert trajectories.ended.flatten().tolist() == [False, True, False, True, False]
    assert batch.offsets.tolist() == [0, 2, 4, 5]


def test_one_step_advantages_by_hand(monkeypatch):
    """r + γ V' − V: nothing after a termination; after a truncation V of the last observation, 12, not of the next
    episode's first, 20; after the trajectories V of what comes next, 21."""
    _, batch = counted(monkeypatch, 0.0)
    assert batch.raw_advantages.tolist() == [1 + 0.5 - 0, 1 - 1, 1 + 5.5 - 10, 1 + 6 - 11, 1 + 10.5 - 20]


def test_monte_carlo_returns_by_hand(monkeypatch):
    _, batch = counted(monkeypatch, 1.0)
    assert batch.returns.tolist() == [
        1 + 0.5 * 1,
        1,
        1 + 0.5 * (1 + 0.5 * 12),
        1 + 0.5 * 12,
        1 + 0.5 * 21,
    ]


def test_whitening_is_asked_for(monkeypatch):
    made = trainer(job(whiten_advantages=False), Signs)
    made.environments.start()
    trajectories = collect_trajectories(made.agent, made.environments, None, 16, None, seed=0)
    plain = build_batch(made.agent, trajectories, trajectories.rewards, None, made.config.ppo, None)[0]
    assert torch.equal(plain.advantages, plain.raw_advantages)
    config = replace(made.config.ppo, whiten_advantages=True)
    white = build_batch(made.agent, trajectories, trajectories.rewards, None, config, None)[0].advantages
    assert white.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def test_segments_of_several_environments():
    ended = torch.tensor([[False, True], [True, False], [False, False]])
    assert segment_offsets(ended).tolist() == [0, 2, 3, 4, 6]


def test_returns_and_lengths_of_episodes():
    made = trainer(job(count=2), Signs)
    metrics = made.step(SilentLog())
    assert metrics["episodes_ended"] == 4  # two environments, 16 steps, 6 an episode
    assert metrics["episode_length"] == 6
    totals = [total for total, _ in made.environments.finished]
    assert metrics["reward"] == metrics["episode_return"] == pytest.approx(sum(totals) / 4)
    assert metrics["environment_steps"] == 32
    assert metrics["first_minibatch/ratio_error"] <= 1e-5
    assert metrics["rollout_gap"] <= 1e-5


def test_moments_are_those_of_all_rows():
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]) + 7
    moments = empty_statistics(3)
    for part in torch.split(rows, [1, 0, 30, 69]):
        moments = with_rows(moments, part)
    torch.testing.assert_close(moments.mean, rows.double().mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(moments.squares / 100, rows.double().var(0, correction=0), rtol=1e-12, atol=0)
    scale = scale_of(moments, limit=2.0)
    normal = scale(rows)
    inside = ((rows - rows.mean(0)) / rows.std(0, correction=0)).clamp(-2, 2)
    torch.testing.assert_close(normal, inside, rtol=1e-4, atol=1e-4)
    assert normal.abs().max() == 2.0
    assert scale_of(with_rows(empty_statistics(3), rows[:1]), 2.0) is None


def test_moments_of_rows_by_hand_are_those_of_each_column():
    rows = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    moments = with_rows(with_rows(empty_statistics(2), rows[:2]), rows[2:])
    assert moments.n == 3.0
    assert moments.mean.tolist() == [3.0, 30.0]
    assert moments.squares.tolist() == [14.0, 1400.0]
    for k, column in enumerate(rows.unbind(1)):
        alone = with_values(with_values(RunningStatistics(), column[:2]), column[2:])
        assert alone == (3.0, float(moments.mean[k]), float(moments.squares[k]))
    assert with_rows(moments, rows[:0]) is moments


def test_the_normaliser_of_a_run_has_seen_every_observation():
    made, seen = trainer(job(), lambda: Walk(True)), []
    step = made.environments.step

    def watch(actions):
        seen.append(torch.from_numpy(made.environments.observations.copy()))
        return step(actions)

    made.environments.step = watch
    for _ in range(3):
        made.step(SilentLog())
    rows = torch.cat(seen).double()
    assert made.observation_statistics.n == len(rows) == 3 * 3 * 16
    torch.testing.assert_close(made.observation_statistics.mean, rows.mean(0))
    torch.testing.assert_close(made.observation_statistics.squares / len(rows), rows.var(0, correction=0))


def test_rewards_are_divided_by_the_deviation_of_returns():
    generator = torch.Generator().manual_seed(0)
    rewards, ended = torch.randn(40, 2, generator=generator), torch.rand(40, 2, generator=generator) < 0.2
    state = ReturnStatistics(RunningStatistics(), torch.zeros(2, dtype=torch.float64))
    for part in (slice(0, 13), slice(13, 40)):
        state = with_rewards(state, rewards[part], ended[part], gamma=0.9)
    sums, running = [], [0.0, 0.0]
    for t in range(40):
        for i in range(2):
            running[i] = 0.9 * running[i] + float(rewards[t, i])
            sums.append(running[i])
            if ended[t, i]:
                running[i] = 0.0
    whole = torch.tensor(sums, dtype=torch.float64)
    assert state.returns.std == pytest.approx(float(whole.std(correction=0)), rel=1e-12)
    assert state.discounted.tolist() == pytest.approx(running)
    torch.testing.assert_close(scaled_rewards(state, rewards, 100.0), rewards / state.returns.std)
    assert scaled_rewards(state, rewards, 0.5).abs().max() == 0.5
