"""Item 41 (and 38): k steps, a resume, and k steps more are 2k steps, bit for bit, environments included."""

from __future__ import annotations

import random
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from helpers import SilentLog
from toys import Signs, Walk, job, trainer, with_environment

from proxlm.config import ControlConfig
from proxlm.errors import RunError

pytestmark = [pytest.mark.checklist(41), pytest.mark.checklist(38)]

CASES = {
    "discrete": (lambda: Walk(False), {}),
    "continuous": (lambda: Walk(True), {}),
    "lstm": (lambda: Walk(False), {"lstm": 8, "layers": 1}),
    "lstm, shared, continuous": (lambda: Walk(True), {"lstm": 8, "critic": "shared", "clip_value": 0.2}),
    "not normalised": (
        lambda: Walk(True),
        {"normalise_observations": False, "normalise_rewards": False, "entropy_coef": 0.01},
    ),
    "between episodes": (lambda: Signs(continuous=True), {"horizon": 12}),
    "CartPole": (lambda: gymnasium.make("CartPole-v1"), {}),
    "Acrobot": (lambda: gymnasium.make("Acrobot-v1"), {}),
    "Pendulum": (lambda: gymnasium.make("Pendulum-v1"), {}),
}


def disturb() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def state_of(made) -> dict[str, torch.Tensor]:
    """All that a run holds, as tensors."""
    tensors = {name: p.detach().clone() for name, p in made.agent.named_parameters()}
    for who, optimiser in made.optimisers.items():
        tensors |= {f"{who}.{name}": t.clone() for name, t in optimiser.state_tensors().items()}
    tensors |= {f"env.{name}": t for name, t in made.environments.state_tensors().items()}
    tensors |= {"observed": made.observation_statistics.mean, "squares": made.observation_statistics.squares}
    tensors |= {
        "running": made.return_statistics.discounted,
        "moments": torch.tensor(made.return_statistics.returns),
    }
    for who, state in made.lstm_states.items():
        tensors |= {} if state is None else {f"{who}.h": state[0], f"{who}.c": state[1]}
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_two_and_two_steps_are_four(tmp_path, name):
    make, more = CASES[name]
    config = job(steps=4, **more)
    whole = trainer(config, make)
    rows = [whole.step(SilentLog()) for _ in range(4)]
    first = trainer(config, make, tmp_path)
    for _ in range(2):
        first.step(SilentLog())
    first.save()
    disturb()
    second = trainer(config, make, tmp_path)
    second.resume()
    one, two = state_of(first), state_of(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    later = [second.step(SilentLog()) for _ in range(2)]
    one, two = state_of(whole), state_of(second)
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert whole.environments.finished == second.environments.finished
    for x, y in zip(rows[2:], later, strict=True):
        assert x.keys() == y.keys()
        assert [k for k in x if not k.startswith(("time", "steps_per")) and x[k] != y[k]] == []


def test_another_seed_is_another_run():
    made = [trainer(job(seed=seed), lambda: Walk(True)) for seed in (0, 0, 1)]
    for t in made:
        t.step(SilentLog())
    one, two, other = map(state_of, made)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["policy_head.weight"], other["policy_head.weight"])
    assert not torch.equal(one["env.observations"], other["env.observations"])


class Careless(Walk):
    """Draws from a generator of its own, which no seed reaches."""

    generator = np.random.default_rng(0)

    def step(self, action):
        seen, *rest = super().step(action)
        return seen + np.float32(self.generator.normal()), *rest


def saved(tmp_path, config: ControlConfig, make):
    made = trainer(config, make, tmp_path)
    made.step(SilentLog())
    made.save()


def test_an_environment_that_cannot_be_repeated_is_refused(tmp_path):
    saved(tmp_path, job(), lambda: Careless(True))
    with pytest.raises(RunError, match="not the same after the same seed and actions"):
        trainer(job(), lambda: Careless(True), tmp_path).resume()


def test_a_resume_that_does_not_fit_is_refused(tmp_path):
    saved(tmp_path, job(), lambda: Walk(True))
    config = job()
    for changed, message in (
        (replace(config, run=replace(config.run, seed=1)), "made with run.seed = 0"),
        (with_environment(config, count=4), "made with environment.count = 3"),
        (replace(config, model=replace(config.model, width=8)), "made with model.width = 16, not 8"),
    ):
        with pytest.raises(RunError, match=message):
            trainer(changed, lambda: Walk(True), tmp_path).resume()
