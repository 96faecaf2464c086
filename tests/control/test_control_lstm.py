"""Item 41: an LSTM's replay from the stored states is the trajectories."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog
from toys import Signs, Walk, job, trainer

from proxlm.config import OptimiserSettings, OptimisersSettings
from proxlm.control.batch import build_batch
from proxlm.control.trajectories import collect_trajectories
from proxlm.control.update import shuffled_minibatches

pytestmark = pytest.mark.checklist(41)


def second_trajectories(critic: str = "separate", continuous: bool = False):
    """A trainer, and the trajectories and batch of its second step, whose states are not zeros."""
    made = trainer(job(lstm=8, critic=critic, layers=1), lambda: Walk(continuous))
    made.step(SilentLog())
    trajectories = collect_trajectories(
        made.agent, made.environments, None, 16, made.lstm_states["policy"], seed=1
    )
    batch, after = build_batch(
        made.agent, trajectories, trajectories.rewards, None, made.config.ppo, made.lstm_states["critic"]
    )
    return made, trajectories, batch, after


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("continuous", [False, True])
def test_replayed_logprobs_are_the_rollouts(critic, continuous):
    _, trajectories, batch, _ = second_trajectories(critic, continuous)
    assert trajectories.first_state[0].abs().max() > 0.01
    assert len(batch.offsets) - 1 > 3  # episodes end within the trajectories
    torch.testing.assert_close(
        batch.logprobs, trajectories.logprobs.transpose(0, 1).reshape(-1), rtol=0, atol=1e-5
    )


def test_without_the_stored_state_they_are_not():
    made, _, batch, _ = second_trajectories()
    nothing = made.agent.initial_state(len(batch.offsets) - 1)
    choice, _ = made.agent.act(batch.observations, batch.segments(nothing))
    gap = (choice.logprob(batch.actions) - batch.logprobs).abs()
    first = batch.offsets[:-1] % 16 == 0
    assert gap[batch.offsets[:-1][first]].max() > 1e-4


def test_any_choice_of_segments_gives_the_same():
    made, _, batch, _ = second_trajectories()
    segments = torch.tensor([2, 0, 3])
    part = batch.select(segments)
    choice, values = made.agent.both(
        part.observations, part.segments(part.policy_state), part.segments(part.critic_state)
    )
    torch.testing.assert_close(choice.logprob(part.actions), part.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(values, part.values, rtol=0, atol=1e-5)
    assert part.offsets[-1] == len(part.values)


def test_the_critics_state_goes_on_into_the_next_rollout():
    """V of a rollout's last observation, as bootstrap, is V of the next rollout's first step (the same weights)."""
    made, _, _, after = second_trajectories()
    trajectories = collect_trajectories(
        made.agent, made.environments, None, 16, made.lstm_states["policy"], seed=2
    )
    one, after = build_batch(made.agent, trajectories, trajectories.rewards, None, made.config.ppo, after)
    next_one = collect_trajectories(made.agent, made.environments, None, 16, trajectories.last_state, seed=3)
    two, _ = build_batch(made.agent, next_one, next_one.rewards, None, made.config.ppo, after)
    goes_on = [i for i in range(3) if not trajectories.ended[-1, i]]
    assert goes_on
    gamma = made.config.ppo.gamma
    for i in goes_on:
        last, first = 16 * i + 15, 16 * i
        # With λ anything, the last step's advantage is r + γ V' − V.
        bootstrap = (one.raw_advantages[last] - trajectories.rewards[-1, i] + one.values[last]) / gamma
        assert bootstrap.item() == pytest.approx(two.values[first].item(), abs=1e-4)


def test_minibatches_hold_each_segment_once():
    _, _, batch, _ = second_trajectories()
    plan = shuffled_minibatches(batch, 2, seed=0)
    assert sorted(torch.cat(plan).tolist()) == list(range(len(batch.offsets) - 1))
    lengths = batch.offsets[1:] - batch.offsets[:-1]
    assert [int(lengths[rows].sum()) for rows in plan] == pytest.approx([24, 24], abs=int(lengths.max()))


def test_memory_is_learnt_only_with_an_lstm():
    """The sign is shown at the beginning of an episode alone: 6 is the most there is, 3 and a half is what a policy
    without memory can have, which knows the first step's sign only."""
    returns, rate = {}, OptimiserSettings(lr=1e-2, schedule="linear")
    for units in (0, 16):
        config = job(steps=40, count=8, lstm=units, layers=1, horizon=24, epochs=6, normalise_rewards=False)
        made = trainer(replace(config, optim=OptimisersSettings(rate, rate)), lambda: Signs(memory=True))
        for _ in range(40):
            metrics = made.step(SilentLog())
        returns[units] = metrics["episode_return"]
    assert returns[16] > 5.5
    assert returns[0] < 4.5
