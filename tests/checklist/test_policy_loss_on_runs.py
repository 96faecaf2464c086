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
@pytest.mark.parametrize("mode", ["truncate", "mask", "full"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_correction_of_the_native_engine_is_1(tokenizer, mode, level):
    config = job(correction=CorrectionSettings(mode=mode, level=level))
    _, _, found = prepared(tokenizer, config)
    assert float((found.experience.correction - 1).abs().max()) < 1e-4


@pytest.mark.checklist(20)
@pytest.mark.parametrize("mode", ["truncate", "mask", "full"])
def test_correction_of_another_engine_by_hand(tokenizer, mode):
    """An engine whose log-probs are off: w = π_old / π_rollout, capped at 2, or 0 outside [0.5, 5]."""
    gaps = [0.0, 1.0, -1.0, 2.0]  # log w

    def off(rollout):
        gap = torch.tensor(gaps).repeat(len(rollout.logprobs))[: len(rollout.logprobs)]
        return replace(rollout, logprobs=rollout.logprobs - gap)

    experience = prepared(tokenizer, job(correction=CorrectionSettings(mode=mode)), off)[2].experience
    e = math.e
    wanted = {"truncate": [1, 2, 1 / e, 2], "mask": [1, e, 0, 0], "full": [1, e, 1 / e, e * e]}[mode]
    assert experience.correction[:4].tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.checklist(21)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
def test_decoupled_update_with_behaviour_equal_to_proximal_is_ppo(tokenizer, critic, level):
    """Bit for bit: after a whole update, with the stored log-probs those the update starts from."""
    plain = settings(critic)
    first = prepared(tokenizer, plain)[2].experience
    decoupled = with_ppo(plain, correction=CorrectionSettings(mode="full", level=level))
    results = []
    for config in (plain, decoupled):
        made, _, found = prepared(tokenizer, config, lambda r: replace(r, logprobs=first.old_logprobs))
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
