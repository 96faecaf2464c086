"""Section 2, items 14–22, on whole runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import job, parameters, run, trainer, weights_of, with_experience, with_ppo
from loss_run_cases import prepared

from proxlm.config.ppo import CorrectionSettings
from proxlm.errors import ConfigError
from proxlm.rl.losses import PolicyLoss, token_weights
from proxlm.rl.policy_losses import LossInputs
from proxlm.train.ppo.algorithms import build_algorithm
from proxlm.train.ppo.update import update

LOSSES = ["ppo", "gspo", "cispo", "dppo", "pg"]


CRITIC_FREE = {"advantage": "grpo", "samples_per_prompt": 2, "batch_size": 6}


def settings(critic, **more):
    """A job with a shared or a separate critic, or without one."""
    return job("shared", **CRITIC_FREE | more) if critic == "none" else job(critic, **more)


@pytest.mark.checklist(15)
@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_first_minibatch_has_ratio_exactly_1(tokenizer, tmp_path, loss, critic):
    rows = run(trainer(tokenizer, settings(critic, steps=2, loss=loss), tmp_path))
    assert len(rows) == 2
    for row in rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["first_minibatch/clip_fraction"] == 0.0
        assert row["ratio_max"] > 1.0  # the later minibatches have moved
        assert row["approx_kl"] > 0.0
        assert ("value_loss" in row) is (critic != "none")


@pytest.mark.checklist(15)
@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_with_a_single_minibatch_all_there_is_is_on_policy(tokenizer, tmp_path, loss, critic):
    config = settings(critic, steps=2, loss=loss, minibatches=1, epochs=1)
    for row in run(trainer(tokenizer, config, tmp_path)):
        assert row["optimiser_steps"] == 1
        assert row["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["ratio_max"] == 1.0
        assert row["approx_kl"] == 0.0
        assert row["clip_fraction"] == 0.0


@pytest.mark.checklist(18)
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_weights_of_a_minibatch_are_those_of_its_rows_alone(tokenizer, aggregation):
    _, _, found = prepared(tokenizer, job(aggregation=aggregation))
    rows, experience = torch.tensor([7, 2, 11]), found.experience
    weights = weights_of(found.plan.of_rows(rows), len(experience.action_mask))
    alone = experience.select(rows)
    wanted = token_weights(alone.action_mask, alone.sequences.response_offsets, aggregation, 12)
    offsets = experience.sequences.response_offsets.tolist()
    pieces = [weights[offsets[b] : offsets[b + 1]] for b in rows.tolist()]
    assert torch.equal(torch.cat(pieces), wanted)
    assert float(weights.sum()) == pytest.approx(float(wanted.sum()))


@pytest.mark.checklist(20)
@pytest.mark.parametrize("cause", ["engine_correction", "staleness_correction"])
@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "token", "sequence", "geometric_mask"])
def test_correction_of_the_native_engine_is_1(tokenizer, mode, cause):
    config = job(**{cause: CorrectionSettings(mode=mode)})
    _, _, found = prepared(tokenizer, config)
    assert float((found.experience.correction - 1).abs().max()) < 1e-4


E = math.e
BY_HAND = {
    "none": [1, 1, 1, 1],
    "token_truncate": [1, 2, 1 / E, 2],
    "token_mask": [1, E, 0, 0],
    "token": [1, E, 1 / E, E * E],
}


def off_by(gaps):
    """A rollout whose engine's log-probs are off: log π_v − log π_roll = gaps, over and over."""

    def change(rollout, **more):
        gap = torch.tensor(gaps).repeat(len(rollout.logprobs))[: len(rollout.logprobs)]
        return replace(rollout, logprobs=rollout.logprobs - gap, **more)

    return change


@pytest.mark.checklist(20)
@pytest.mark.parametrize("mode", BY_HAND)
@pytest.mark.parametrize("stale", [False, True])
def test_correction_of_another_policy_by_hand(tokenizer, mode, stale):
    """A gap of a token of the present version is the engine's, of an older one staleness; the other weight is 1."""
    change = off_by([0.0, 1.0, -1.0, 2.0])

    def rollout_of(rollout):
        return change(rollout, policy_versions=rollout.policy_versions - int(stale))

    causes = ("staleness_correction", "engine_correction")
    for cause in causes if stale else reversed(causes):
        config = job(**{cause: CorrectionSettings(mode=mode)})
        found = prepared(tokenizer, config, rollout_of)[2]
        wanted = BY_HAND[mode] if cause == causes[not stale] else [1, 1, 1, 1]
        assert found.experience.correction[:4].tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.checklist(20)
def test_both_causes_at_once_have_their_own_weights_and_metrics(tokenizer):
    """log π_v − log π_roll = 1 and log π_old − log π_v = −2 for odd tokens: e² truncated, e⁻² masked."""
    engine, staleness = CorrectionSettings(mode="token_truncate"), CorrectionSettings(mode="token_mask")

    def both(rollout):
        odd = torch.arange(len(rollout.logprobs)) % 2 == 1
        trainer = rollout.logprobs + torch.where(odd, 2.0, 0.0)
        return replace(
            rollout,
            logprobs=trainer - 1.0,
            trainer_logprobs=trainer,
            policy_versions=torch.where(odd, -1, 0),
        )

    config = job(engine_correction=engine, staleness_correction=staleness)
    _, rollout, found = prepared(tokenizer, config, both)
    # Even tokens are of the present version: π_v is π_old itself, whatever was computed again.
    assert found.experience.correction[:4].tolist() == pytest.approx([2.0, 0.0, 2.0, 0.0], rel=1e-4)
    odd = (rollout.policy_versions == -1).double().mean()
    metrics = found.metrics
    assert metrics["engine_weight/mean"] == metrics["engine_weight/max"] == 2.0
    assert metrics["engine_weight/effective_share"] == pytest.approx(1.0)
    assert metrics["engine_weight/dropped_share"] == 0.0
    assert metrics["engine_weight/kl"] == pytest.approx(E - 2, rel=1e-4)
    assert metrics["staleness_weight/dropped_share"] == pytest.approx(float(odd))
    assert metrics["staleness_weight/effective_share"] == pytest.approx(1 - float(odd))
    assert metrics["staleness_weight/mean"] == pytest.approx(1 - float(odd), rel=1e-4)
    assert metrics["staleness_weight/kl"] == pytest.approx(float(odd) * (math.exp(-2) + 1), rel=1e-4)
    assert not any("_weight/" in name for name in prepared(tokenizer, job(), both)[2].metrics)


@pytest.mark.checklist(21)
@pytest.mark.parametrize("mode", ["token", "sequence"])
@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
def test_decoupled_update_with_behaviour_equal_to_proximal_is_ppo(tokenizer, critic, mode):
    """Bit for bit: after a whole update, with the stored log-probs those the update starts from."""
    plain = settings(critic)
    first = prepared(tokenizer, plain)[2].experience
    decoupled = with_ppo(plain, staleness_correction=CorrectionSettings(mode=mode))
    results = []
    for config in (plain, decoupled):
        made, _, found = prepared(
            tokenizer,
            config,
            lambda r: replace(r, logprobs=first.old_logprobs, policy_versions=r.policy_versions - 1),
        )
        assert (found.experience.correction == 1).all()
        update(made.learner, found)
        results.append(parameters(made))
    assert all(float((results[0][n] - results[1][n]).abs().max()) < 1e-6 for n in results[0])


@pytest.mark.checklist(20)
def test_correction_multiplies_the_gradient(tokenizer):
    """A factor of 0 for all tokens: the policy gets no gradient; of 2: twice the gradient."""
    _, _, found = prepared(tokenizer, job("separate", minibatches=1, epochs=1))
    norms = []
    for factor in (0.0, 1.0, 2.0):
        again, _, _ = prepared(tokenizer, job("separate", minibatches=1, epochs=1))
        scaled = with_experience(found, correction=torch.full_like(found.experience.correction, factor))
        norms.append(update(again.learner, scaled)[0].grad_norm["policy"])
    assert norms[0] == 0.0 < norms[1]
    assert norms[2] == pytest.approx(2 * norms[1], rel=1e-5)


@pytest.mark.checklist(22)
def test_entropy_of_a_uniform_policy_in_a_run_is_log_v(tokenizer, tmp_path):
    made = trainer(tokenizer, job(steps=1), tmp_path)
    with torch.no_grad():
        head = made.models.policy.network.get_output_embeddings().weight
        head.zero_()
    assert run(made)[0]["entropy"] == pytest.approx(math.log(len(head)), rel=1e-5)


@pytest.mark.checklist(22)
def test_the_bonus_is_off_by_default_and_rests_above_the_floor(tokenizer, tmp_path):
    """With the entropy above the floor a step is that without a bonus, bit for bit; below it, it is not."""
    assert job().ppo.entropy_coef == 0.0
    after = {}
    for name, more in (
        ("off", {}),
        ("above", {"entropy_coef": 0.5, "entropy_floor": 1e-6}),
        ("below", {"entropy_coef": 0.5, "entropy_floor": 100.0}),
        ("always", {"entropy_coef": 0.5}),
    ):
        made = trainer(tokenizer, job(steps=1, **more), tmp_path / name)
        run(made)
        after[name] = torch.cat([p.flatten() for p in parameters(made).values()])
    assert torch.equal(after["off"], after["above"])
    assert torch.equal(after["below"], after["always"])
    assert not torch.equal(after["off"], after["below"])


@pytest.mark.checklist(22)
def test_passes_end_once_the_approximate_kl_exceeds_the_target(tokenizer, tmp_path):
    """The pass whose mean over its minibatches is the first above the target is the last."""
    config = job(lr=3e-3, epochs=5)
    made, _, found = prepared(tokenizer, config)
    every = update(made.learner, found)
    assert len(every) == 15
    means = [sum(s.approx_kl for s in every[k : k + 3]) / 3 for k in range(0, 15, 3)]
    assert means[0] < means[1]
    for target, passes in ((means[0] * 1.01, 2), (means[0] * 0.99, 1), (1e9, 5), (0.0, 5)):
        made, _, found = prepared(tokenizer, with_ppo(config, target_kl=target))
        assert len(update(made.learner, found)) == 3 * passes


def clipped(x: LossInputs) -> torch.Tensor:
    ratio = (x.logprobs - x.old_logprobs).exp()
    near = ratio.clamp(1 - x.clip_low, 1 + x.clip_high)
    return torch.maximum(-ratio * x.advantages, -near * x.advantages)


def example_inputs():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 6)
    mask = torch.ones(6, dtype=torch.bool)
    return LossInputs(new.requires_grad_(), old, advantages, mask, torch.tensor([0, 4, 6]))


@pytest.mark.checklist(14)
def test_a_function_that_returns_a_tensor_is_measured_like_the_builtin(tokenizer, tmp_path):
    x = example_inputs()
    mine, own = build_algorithm(job().ppo, loss=clipped).loss(x), build_algorithm(job().ppo).loss(x)
    assert isinstance(mine, PolicyLoss)
    for name in ("loss", "ratio", "approx_kl"):
        assert torch.equal(getattr(mine, name), getattr(own, name))
    assert not mine.clipped.any()  # it does not say
    results = []
    for function in (clipped, None):
        config = job(steps=2)
        algorithm = build_algorithm(config.ppo, loss=function)
        made = trainer(tokenizer, config, tmp_path, algorithm=algorithm)
        run(made)
        results.append(parameters(made))
    assert all(float((results[0][n] - results[1][n]).abs().max()) < 1e-6 for n in results[0])


@pytest.mark.checklist(14)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.advantages[:1],
        lambda x: x.logprobs.sum(),
        lambda x: x.logprobs[:, None],
        lambda x: None,
        lambda x: 1.0,
        lambda x: PolicyLoss(x.logprobs[:2], x.logprobs, x.action_mask, x.logprobs),
    ],
)
def test_a_function_that_returns_something_else_is_refused(wrong):
    loss = build_algorithm(job().ppo, loss=wrong).loss
    with pytest.raises(
        ConfigError, match=r"ppo\.loss: .* must return PolicyLoss or a tensor of shape \(6,\)"
    ):
        loss(example_inputs())


@pytest.mark.checklist(14)
@pytest.mark.parametrize("loss", [*LOSSES, "trpo"])
def test_the_numbers_of_the_settings_reach_the_loss(tokenizer, loss):
    """Each of them, from ppo.* into LossInputs; whole responses, or with a token-wise loss no offsets at all."""
    numbers = {
        "clip_low": 0.11,
        "clip_high": 0.22,
        "dual_clip": 3.3,
        "divergence_limit": 0.44,
        "max_log_ratio": 5.5,
    }
    made, _, found = prepared(tokenizer, job(loss=loss, **numbers))
    inner, seen = made.learner.algorithm.loss, []

    def watched(x):
        seen.append(x)
        return inner(x)

    algorithm = replace(made.learner.algorithm, loss=watched)
    update(replace(made.learner, algorithm=algorithm), found)
    assert seen
    for x in seen:
        assert {name: getattr(x, name) for name in numbers} == numbers
        assert len(x.logprobs) == len(x.old_logprobs) == len(x.action_mask)
        if algorithm.tokenwise:
            with pytest.raises(ValueError, match="token-wise loss sees spans of tokens"):
                _ = x.offsets
        else:
            assert int(x.offsets[-1]) == len(x.logprobs)
