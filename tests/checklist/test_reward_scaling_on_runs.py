"""Section 3, items 27 and 28, on whole runs: scaling, clips, the moving reference, ptx."""

from __future__ import annotations

import pytest
import torch
from helpers import actors, job, trainer, vowels
from reward_run_cases import Seen, ptx_of, some_text, steps, zeros

from proxlm.config import ShapingSettings
from proxlm.rl.ragged import segment_sum
from proxlm.rl.running_statistics import RunningStatistics, scale_scores, with_values
from proxlm.train.ppo.collect import reference_rewards
from proxlm.types import Scores


@pytest.mark.checklist(27)
def test_scores_are_scaled_by_moments_of_the_references_samples(tokenizer, monkeypatch):
    shaping = ShapingSettings(scale="reference", reference_samples=30)
    made = trainer(tokenizer, job(steps=2, shaping=shaping), None)
    rewards = reference_rewards(made.engine, made.prompts, vowels, made.config)
    assert len(rewards) == 30
    scaled, _ = scale_scores(rewards, None, torch.zeros(30), with_values(RunningStatistics(), rewards), 0.0)
    assert float(scaled.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(scaled.std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    seen = Seen(made, monkeypatch)
    rows = steps(made, 2)
    assert made.state.score_statistics == with_values(RunningStatistics(), rewards)
    assert made.state.score_statistics.std == pytest.approx(
        float(rewards.double().std(correction=0)), rel=1e-6
    )
    assert len(seen.rollouts) == 3  # measured once, then a rollout for each step
    assert len(seen.rollouts[0]) == 30
    assert torch.equal(seen.scores[0].total, rewards)
    for row, scores in zip(rows, seen.scores[1:], strict=True):
        wanted = (scores.total - made.state.score_statistics.mean) / made.state.score_statistics.std
        assert row["score"] == pytest.approx(float(wanted.mean()), abs=1e-5)
        assert row["reward"] == pytest.approx(float(scores.total.mean()), abs=1e-6)


@pytest.mark.checklist(28)
def test_a_running_scale_counts_the_step_itself_and_clips(tokenizer, monkeypatch):
    shaping = ShapingSettings(scale="running", clip=0.8)
    made = trainer(tokenizer, job(steps=3, shaping=shaping, kl_coef=0.0), None)
    seen = Seen(made, monkeypatch)
    steps(made, 3)
    moments = RunningStatistics()
    clipped = 0
    for experience, scores, now in zip(seen.experiences, seen.scores, seen.numbers, strict=True):
        moments = with_values(moments, scores.total)
        assert now.score_statistics == moments
        wanted = ((scores.total - moments.mean) / moments.std).clamp(-0.8, 0.8)
        sums = segment_sum(experience.rewards, experience.sequences.response_offsets)
        assert torch.allclose(sums, wanted, atol=1e-6)
        clipped += int((wanted.abs() == 0.8).sum())
    assert clipped > 0


@pytest.mark.checklist(28)
def test_a_clip_without_a_scale_cuts_the_scores_as_they_are(tokenizer, monkeypatch):
    made = trainer(tokenizer, job(steps=1, shaping=ShapingSettings(clip=0.1)), None)
    seen = Seen(made, monkeypatch)
    steps(made, 1)
    sums = segment_sum(seen.experiences[0].rewards, seen.experiences[0].sequences.response_offsets)
    assert torch.allclose(sums, seen.scores[0].total.clamp(-0.1, 0.1), atol=1e-6)
    assert float(seen.scores[0].total.max()) > 0.1


@pytest.mark.checklist(28)
def test_advantages_of_a_run_are_clipped_after_whitening(tokenizer, monkeypatch):
    def outlier(rollout):
        return Scores(torch.tensor([1000.0] + [0.0] * (len(rollout) - 1)))

    found = {}
    for limit in (0.0, 1.5):
        made = trainer(tokenizer, job(steps=1, advantage_clip=limit), None, reward=outlier)
        seen = Seen(made, monkeypatch)
        steps(made, 1)
        found[limit] = seen.experiences[0]
    assert float(found[0.0].advantages.abs().max()) > 2
    assert torch.equal(found[1.5].advantages, found[0.0].advantages.clamp(-1.5, 1.5))
    assert torch.equal(found[1.5].returns, found[0.0].returns)  # the critic's targets are not cut


@pytest.mark.checklist(28)
@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9, 1.0])
def test_move_reference_by_hand(tokenizer, decay):
    models = actors(tokenizer, job())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in models.policy.network.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
    policy = {n: p.detach().clone() for n, p in models.policy.network.named_parameters()}
    before = {n: p.detach().clone() for n, p in models.reference.network.named_parameters()}
    models.move_reference(decay)
    for name, p in models.reference.network.named_parameters():
        wanted = decay * before[name].double() + (1 - decay) * policy[name].double()
        assert torch.allclose(p.double(), wanted, atol=1e-6)
        assert torch.equal(policy[name], dict(models.policy.network.named_parameters())[name])
        if decay in (0.0, 1.0):
            assert torch.equal(p, policy[name] if decay == 0 else before[name])


@pytest.mark.checklist(28)
def test_with_decay_0_the_reference_is_the_policy_after_each_step(tokenizer):
    made = trainer(tokenizer, job(steps=3, lr=3e-3, reference_decay=0.0), None)
    for _ in range(3):
        (row,) = steps(made, 1)
        assert row["kl"] == 0.0
        policy = dict(made.models.policy.network.named_parameters())
        for name, p in made.models.reference.network.named_parameters():
            assert torch.equal(p, policy[name])
    frozen = steps(trainer(tokenizer, job(steps=2, lr=3e-3), None), 2)
    assert frozen[1]["kl"] != 0.0


@pytest.mark.checklist(28)
def test_the_reference_waits_while_only_the_critic_learns(tokenizer):
    made = trainer(tokenizer, job(steps=2, reference_decay=0.5, critic_warmup=2), None)
    with torch.no_grad():
        for p in made.models.reference.network.parameters():
            p.mul_(1.5)  # away from the policy, so that a move would show
    before = [p.clone() for p in made.models.reference.network.parameters()]
    steps(made, 2)
    assert all(
        torch.equal(a, b) for a, b in zip(before, made.models.reference.network.parameters(), strict=True)
    )


@pytest.mark.checklist(28)
def test_a_step_without_advantages_has_the_language_models_gradient(tokenizer, monkeypatch):
    """Rewards 0, no KL: all that moves the policy is coef · ∇ of transformers' own loss on the block."""
    config = job("separate", steps=1, kl_coef=0.0, epochs=1, minibatches=1)
    made = trainer(tokenizer, config, None, reward=zeros, ptx=ptx_of(0.3, batch_tokens=12 * 16))
    network, found = made.models.policy.network, {}
    step = made.learner.optimisers.policy.step

    def looking(done, total):
        found.update({n: p.grad.clone() for n, p in network.named_parameters()})
        network.zero_grad()
        own = network(input_ids=some_text(), labels=some_text()).loss
        own.backward()
        found["loss"] = own.detach()
        for name, p in network.named_parameters():
            assert torch.allclose(found[name], 0.3 * p.grad, atol=1e-6, rtol=1e-4), name
        return step(done, total)

    monkeypatch.setattr(made.learner.optimisers.policy, "step", looking)
    (row,) = steps(made, 1)
    assert row["ptx_loss"] == pytest.approx(float(found["loss"]), rel=1e-5)
    assert row["policy_loss"] == 0.0


@pytest.mark.checklist(28)
def test_ptx_lowers_the_loss_on_its_text(tokenizer):
    def losses(coef):
        made = trainer(tokenizer, job(steps=6, lr=3e-3), None, ptx=ptx_of(coef) if coef else None)
        rows = steps(made, 6)
        assert all((r["ptx_loss"] > 0) is (coef > 0) for r in rows)
        with torch.no_grad():
            return float(made.models.policy.network(input_ids=some_text(), labels=some_text()).loss), rows

    with_text, rows = losses(1.0)
    without, _ = losses(0.0)
    assert with_text < without - 0.2
    assert rows[-1]["ptx_loss"] < rows[0]["ptx_loss"] - 0.2
