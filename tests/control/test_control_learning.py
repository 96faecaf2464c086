"""Item 41: policies that learn what can be known, quickly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import SilentLog
from toys import Signs, job, trainer

from proxlm.config import OptimiserSettings, OptimisersSettings

pytestmark = pytest.mark.checklist(41)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_signs_are_learnt(continuous, critic):
    """Chance is 3; 6 is the most there is."""
    config = job(steps=30, count=8, critic=critic, horizon=24, epochs=6)
    rate = OptimiserSettings(lr=1e-2, schedule="linear", max_grad_norm=0.5)
    made = trainer(
        replace(config, optim=OptimisersSettings(rate, rate)), lambda: Signs(continuous=continuous)
    )
    first = made.step(SilentLog())["episode_return"]
    for _ in range(29):
        metrics = made.step(SilentLog())
    assert first == pytest.approx(3.0, abs=1.0)
    assert metrics["episode_return"] > 5.2
    assert metrics["explained_variance"] < 1
    assert metrics["lr/policy"] == pytest.approx(0.0)


def test_actions_sent_are_within_bounds_and_logprobs_are_of_what_was_drawn():
    from proxlm.control.trajectories import collect_trajectories

    made = trainer(job(count=2), lambda: Signs(continuous=True))
    made.environments.start()
    trajectories = collect_trajectories(made.agent, made.environments, None, 16, None, seed=0)
    assert trajectories.actions.abs().max() > 1
    sent = [float(action[0]) for env in made.environments.environments for action in env.sent]
    assert max(sent) == 0.5
    assert min(sent) == -0.5
    choice, _ = made.agent.act(trajectories.observations, None)
    assert (choice.logprob(trajectories.actions) - trajectories.logprobs).abs().max() < 1e-6


def test_a_step_ends_early_at_the_target_kl():
    made = trainer(job(epochs=8, target_kl=1e-9), Signs)
    assert made.step(SilentLog())["optimiser_steps"] == 2
    made = trainer(job(epochs=8), Signs)
    assert made.step(SilentLog())["optimiser_steps"] == 16


def test_entropy_bonus_keeps_a_policy_random():
    entropies = []
    for coefficient in (0.0, 0.5):
        made = trainer(job(steps=15, count=8, epochs=6, entropy_coef=coefficient), Signs)
        for _ in range(15):
            metrics = made.step(SilentLog())
        entropies.append(metrics["entropy"])
    assert entropies[1] > entropies[0] + 0.05
