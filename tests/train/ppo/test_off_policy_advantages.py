"""V-trace and Retrace in a step: the weights are those of the rollout, and on-policy nothing differs from GAE."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import actors, job, parameters, prepared_by, trainer, vowels, with_experience

from proxlm.engine.generate import generate
from proxlm.rl.off_policy import vtrace
from proxlm.train.ppo.prepare import prepare
from proxlm.train.ppo.update import update

pytestmark = pytest.mark.checklist(42)
NEVER = {"whiten_advantages": "never"}


def rollout_of(made):
    return generate(made.engine, made.prompts.batch(0), made.config.rollout, seed=0, step=0)


def stale(rollout):
    """The same tokens as an older policy sampled them, with log-probs that are off by up to 1."""
    off = torch.rand(len(rollout.logprobs), generator=torch.Generator().manual_seed(0))
    return replace(
        rollout, logprobs=rollout.logprobs - 2 * off + 1, policy_versions=rollout.policy_versions - 1
    )


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("advantage", ["vtrace", "retrace"])
def test_on_policy_the_experience_is_that_of_gae(tokenizer, advantage, critic):
    found = []
    for name in ("gae", advantage):
        made = trainer(tokenizer, job(critic, advantage=name), None)  # type: ignore[arg-type]
        torch.nn.init.normal_(
            made.models.value_head.linear.weight, generator=torch.Generator().manual_seed(1)
        )
        rollout = rollout_of(made)
        found.append(prepared_by(made, rollout, vowels(rollout)).experience)
    for name in ("advantages", "returns"):
        # The engine's rounding is in the weights.
        assert torch.allclose(getattr(found[0], name), getattr(found[1], name), atol=1e-5), name


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize(("advantage", "rho_bar"), [("vtrace", 0.8), ("retrace", float("inf"))])
def test_of_an_older_policy_the_weights_are_in_advantages_and_targets(tokenizer, advantage, rho_bar, critic):
    config = job(critic, advantage=advantage, trace_rho=0.8, trace_c=0.9, critic_lam=1.0, gamma=0.99, **NEVER)
    made = trainer(tokenizer, config, None)  # type: ignore[arg-type]
    torch.nn.init.normal_(made.models.value_head.linear.weight, generator=torch.Generator().manual_seed(1))
    rollout = stale(rollout_of(made))
    x = prepared_by(made, rollout, vowels(rollout)).experience
    logs, offsets = x.old_logprobs - rollout.logprobs, rollout.sequences.response_offsets
    for name, lam, which in (("advantages", 0.95, 0), ("returns", 1.0, 1)):
        wanted = vtrace(x.rewards, x.values, logs, x.action_mask, offsets, 0.99, lam, None, rho_bar, 0.9)[
            which
        ]
        assert torch.equal(getattr(x, name), wanted), name
        plain = vtrace(x.rewards, x.values, 0 * logs, x.action_mask, offsets, 0.99, lam, None)[which]
        assert float((wanted - plain).abs().max()) > 0.01


def test_the_critics_first_gradient_has_the_same_targets(tokenizer):
    """A separate critic learns its first minibatch while its values are read: from the same weights."""
    results = []
    for keep in (True, False):
        config = job("separate", advantage="vtrace", epochs=1, minibatches=2)
        made = trainer(tokenizer, config, None)  # type: ignore[arg-type]
        torch.nn.init.normal_(
            made.models.value_head.linear.weight, generator=torch.Generator().manual_seed(1)
        )
        rollout = stale(rollout_of(made))
        found = prepared_by(made, rollout, vowels(rollout))
        assert found.first_gradient is not None
        update(made.learner, found if keep else with_experience(found))
        results.append(parameters(made))
    for name, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][name], atol=1e-6), name


def test_what_is_learnt_from_does_not_depend_on_micro_batches(tokenizer):
    found = []
    for budget in (1, 10_000):
        config = job(advantage="vtrace", micro_batch_tokens=budget)
        models = actors(tokenizer, config)
        made = trainer(tokenizer, config, None)  # type: ignore[arg-type]
        rollout = stale(rollout_of(made))
        found.append(prepare(models, rollout, vowels(rollout), config).experience)
    for name in ("advantages", "returns"):
        assert torch.allclose(getattr(found[0], name), getattr(found[1], name), atol=1e-5), name
