"""Section 2, item 23, on whole runs: the trust region."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import job, parameters, run, trainer, weights_of, with_ppo
from loss_run_cases import prepared
from torch.func import functional_call, jacrev

from proxlm.models.forward import pad_right
from proxlm.rl.losses import token_weights
from proxlm.train.ppo.trpo import fisher_product, trust_region_update
from proxlm.types import Scores


@pytest.mark.checklist(23)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_fisher_product_is_that_of_the_explicit_matrix(tokenizer, temperature):
    """F = Σ_t w_t J_tᵀ (diag p_t − p_t p_tᵀ) J_t, written out for the norms' weights of the model."""
    made, _, found = prepared(tokenizer, job())
    part = found.experience.select(torch.arange(2))
    network = made.models.policy.network
    named = {n: p for n, p in network.named_parameters() if p.dim() == 1}
    sizes = [p.numel() for p in named.values()]
    padded, place = pad_right(part.sequences)
    where = place[part.sequences.response_index - 1]

    def logits(flat):
        pieces = zip(named.items(), flat.split(sizes), strict=True)
        given = {n: piece.view_as(p) for (n, p), piece in pieces}
        return functional_call(network, given, (padded,)).logits.flatten(0, 1)[where] / temperature

    at = torch.cat([p.detach().flatten() for p in named.values()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = jacrev(logits, chunk_size=256)(at).detach()  # [r, V, P]
    p = torch.softmax(logits(at), -1).detach()
    weights = token_weights(part.action_mask, part.sequences.response_offsets, "token", 12)
    centred = jacobian - torch.einsum("rv,rvp->rp", p, jacobian)[:, None]
    matrix = torch.einsum("r,rv,rvp,rvq->pq", weights, p, centred, centred)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-5
    for seed in range(3):
        vector = torch.randn(len(at), generator=torch.Generator().manual_seed(seed))
        found = fisher_product(
            made.models.policy, [(part, weights)], list(named.values()), vector, temperature
        )
        assert float((found - matrix @ vector).norm() / (matrix @ vector).norm()) < 1e-4


def trpo_job(steps=1, batch=24, critic="separate", **trust):
    config = job(critic, steps=steps, lr=3e-3, kl_coef=0.0, loss="trpo", batch_size=batch)
    region = replace(config.ppo.trpo, **{"delta": 0.05, "damping": 1e-4} | trust)
    return with_ppo(config, trpo=region)


@pytest.mark.checklist(23)
def test_trust_region_run_stays_in_the_region_and_learns(tokenizer, tmp_path):
    rows = run(trainer(tokenizer, trpo_job(steps=15, batch=48, delta=0.1), tmp_path))
    for row in rows:
        assert row["trpo/accepted"] == 1.0
        assert 0 < row["trpo/kl"] <= 0.1
        assert row["trpo/improvement"] > 0
        assert row["trpo/step_norm"] > 0
        assert row["first_minibatch/ratio_error"] < 1e-5
    assert rows[0]["kl"] == 0.0
    assert all(row["kl"] > 0 for row in rows[1:])
    first, last = (sum(r["reward"] for r in part) / 4 for part in (rows[:4], rows[-4:]))
    assert last > first + 0.1


@pytest.mark.checklist(23)
def test_what_the_step_reports_is_true(tokenizer):
    """The KL after it, measured again over the vocabulary, and how far the parameters went."""
    config = trpo_job(critic="separate")
    made, _, found = prepared(tokenizer, config)
    experience = found.experience
    names = [n for n, _ in made.models.policy_parameters()]
    weights = weights_of(found.plan.whole(), len(experience.action_mask))
    padded, place = pad_right(experience.sequences)
    where = place[experience.sequences.response_index - 1]

    @torch.no_grad()
    def distribution():
        return torch.log_softmax(made.models.policy.network(padded).logits.flatten(0, 1)[where].double(), -1)

    old, before = distribution(), parameters(made)
    stats = trust_region_update(made.learner, found)
    new, after = distribution(), parameters(made)
    kl = float((weights * (old.exp() * (old - new)).sum(-1)).sum())
    chosen = experience.sequences.response_tokens[:, None]
    gain = ((new - old).gather(-1, chosen)[:, 0].exp() - 1) * experience.advantages
    assert stats.extra["trpo/accepted"] == 1.0
    assert stats.extra["trpo/kl"] == stats.approx_kl == pytest.approx(kl, rel=1e-3)
    assert kl <= 0.05 * (1 + 1e-3)
    assert stats.extra["trpo/improvement"] == pytest.approx(float((weights * gain).sum()), rel=1e-3)
    moved = math.sqrt(sum(float((after[n] - before[n]).double().square().sum()) for n in names))
    assert stats.extra["trpo/step_norm"] == pytest.approx(moved, rel=1e-4)
    assert all(torch.equal(after[n], before[n]) for n in after if n not in names)


@pytest.mark.checklist(23)
def test_where_no_step_is_good_the_policy_stays(tokenizer, tmp_path):
    """A reward the same for all, whitened to an advantage of 0: no gradient, no step."""

    def same(rollout):
        return Scores(torch.ones(len(rollout)))

    made = trainer(tokenizer, with_ppo(trpo_job(), lam=1.0), tmp_path, reward=same)
    before = parameters(made)
    row = run(made)[0]
    after = parameters(made)
    assert row["trpo/accepted"] == row["trpo/kl"] == row["trpo/step_norm"] == 0.0
    assert row["trpo/halvings"] == made.config.ppo.trpo.halvings
    assert row["grad_norm/policy"] == 0.0
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("critic.") for name in moved)


@pytest.mark.checklist(23)
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_smaller_region_gives_a_smaller_step(tokenizer, share):
    norms, kls = [], []
    for delta in (1e-2, 1e-3, 1e-4):
        made, _, found = prepared(tokenizer, trpo_job(delta=delta, fisher_share=share))
        extra = trust_region_update(made.learner, found).extra
        assert extra["trpo/accepted"] == 1.0
        assert 0 < extra["trpo/kl"] <= delta
        norms.append(extra["trpo/step_norm"])
        kls.append(extra["trpo/kl"])
    assert norms == sorted(norms, reverse=True)
    assert kls == sorted(kls, reverse=True)
