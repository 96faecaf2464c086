"""Section 3, items 24–26: KL in the rewards, its estimators, the adaptive coefficient; log-probs they stand on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from reward_cases import F64, given, normal, ragged, rows_of, seeds

from proxlm.rl.kl import adapt_kl_coefficient, kl_estimate
from proxlm.rl.logprobs import chunked_logprobs, logprobs_and_entropy
from proxlm.rl.shaping import (
    last_action_index,
    token_rewards,
)

logit_rows = st.lists(st.floats(-4, 4), min_size=4, max_size=4)


@pytest.mark.checklist(24)
@given(ragged(empty_rows=True), st.floats(0, 2), seeds)
def test_rewards_of_a_row_sum_to_score_less_beta_times_the_kl_of_chosen_tokens(shape, beta, seed):
    mask, offsets = shape
    kl, scores = normal(seed, len(mask)), normal(seed + 1, len(offsets) - 1)
    extra = normal(seed + 2, len(mask))
    rewards = token_rewards(scores, kl, beta, mask, offsets)
    for b, (start, end) in enumerate(rows_of(offsets)):
        chosen = [t for t in range(start, end) if mask[t]]
        wanted = (float(scores[b]) if chosen else 0.0) - beta * sum(float(kl[t]) for t in chosen)
        assert float(rewards[start:end].sum()) == pytest.approx(wanted, abs=1e-12)
    both = token_rewards(scores, kl, beta, mask, offsets, extra)
    assert torch.allclose(both - rewards, extra, atol=1e-12)


@pytest.mark.checklist(24)
def test_eos_keeps_its_kl_and_gets_the_score():
    """Two rows: "x EOS" and "y"; the last token of each is EOS or the cut, and has −β·kl + score."""
    kl = torch.tensor([0.5, 2.0, -1.0])
    rewards = token_rewards(torch.tensor([1.0, 3.0]), kl, 0.1, torch.ones(3).bool(), torch.tensor([0, 2, 3]))
    assert rewards.tolist() == pytest.approx([-0.05, 1.0 - 0.2, 3.0 + 0.1])


@pytest.mark.checklist(24)
def test_tokens_that_the_policy_did_not_choose_bear_no_kl():
    mask = torch.tensor([True, False, True, False])
    kl = torch.tensor([1.0, math.inf, 1.0, math.nan])
    rewards = token_rewards(torch.tensor([2.0]), kl, 0.5, mask, torch.tensor([0, 4]))
    assert rewards.tolist() == [-0.5, 0.0, 1.5, 0.0]


@pytest.mark.checklist(24)
@given(ragged(), seeds, st.sampled_from(["k1", "k2", "k3"]))
def test_a_policy_that_is_the_reference_pays_nothing(shape, seed, estimator):
    mask, offsets = shape
    logprobs = -normal(seed, len(mask)).abs()
    kl = kl_estimate(logprobs, logprobs.clone(), estimator)
    rewards = token_rewards(torch.zeros(len(offsets) - 1, dtype=F64), kl, 0.05, mask, offsets)
    assert rewards.tolist() == [0.0] * len(mask)


@pytest.mark.checklist(24)
def test_a_score_falls_on_one_token_only_and_dtype_is_the_kls():
    rewards = token_rewards(
        torch.tensor([1.5], dtype=F64), torch.zeros(3), 0.0, torch.ones(3).bool(), torch.tensor([0, 3])
    )
    assert rewards.tolist() == [0.0, 0.0, 1.5]
    assert rewards.dtype == torch.float32


@pytest.mark.checklist(24)
def test_shapes_that_do_not_fit_are_refused():
    mask, offsets = torch.ones(3).bool(), torch.tensor([0, 2, 3])
    with pytest.raises(ValueError, match="shapes do not fit"):
        token_rewards(torch.zeros(2), torch.zeros(4), 0.1, mask, offsets)
    with pytest.raises(ValueError, match="shapes do not fit"):
        token_rewards(torch.zeros(3), torch.zeros(3), 0.1, mask, offsets)


@pytest.mark.checklist(24)
def test_the_last_action_of_a_row_without_tokens_or_without_actions_is_none():
    assert last_action_index(torch.tensor([True]), torch.tensor([0, 1, 1])).tolist() == [0, -1]
    assert last_action_index(torch.tensor([True]), torch.tensor([0, 0, 1])).tolist() == [-1, 0]
    assert last_action_index(torch.tensor([False, True, False]), torch.tensor([0, 1, 3])).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="offsets end at 2"):
        last_action_index(torch.ones(3).bool(), torch.tensor([0, 2]))
    with pytest.raises(ValueError):
        last_action_index(torch.ones(3).bool(), torch.tensor([[0, 3]]))


@pytest.mark.checklist(24)
@given(ragged(empty_rows=True))
def test_the_last_action_is_the_last_true_of_its_row(shape):
    mask, offsets = shape
    wanted = [max((t for t in range(a, b) if mask[t]), default=-1) for a, b in rows_of(offsets)]
    assert last_action_index(mask, offsets).tolist() == wanted


@pytest.mark.checklist(25)
@given(logit_rows, logit_rows)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(a, b):
    log_p, log_q = (torch.log_softmax(torch.tensor(x, dtype=F64), 0) for x in (a, b))
    p = log_p.exp()
    kl = sum(float(p[i]) * (float(log_p[i]) - float(log_q[i])) for i in range(4))
    for estimator in ("k1", "k3"):
        assert float((p * kl_estimate(log_p, log_q, estimator)).sum()) == pytest.approx(kl, abs=1e-10)
    assert float(kl_estimate(log_p, log_q, "k3").min()) >= 0
    assert float(kl_estimate(log_p, log_q, "k2").min()) >= 0


@pytest.mark.checklist(25)
def test_estimates_by_hand():
    logprobs, ref = torch.tensor([-1.0, -2.0], dtype=F64), torch.tensor([-2.0, -1.5], dtype=F64)
    assert kl_estimate(logprobs, ref).tolist() == [1.0, -0.5]
    assert kl_estimate(logprobs, ref, "k2").tolist() == [0.5, 0.125]
    wanted = [math.exp(-1.0) - 1 + 1.0, math.exp(0.5) - 1 - 0.5]
    assert kl_estimate(logprobs, ref, "k3").tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.checklist(25)
@given(logit_rows, logit_rows)
def test_expected_gradients_of_the_estimates_as_losses(a, b):
    """k1: 0. k2: of KL(π ‖ π_ref). k3: of KL(π_ref ‖ π), for E[(1 − q/p) ∇ log p] = −Σ q ∇ log p."""
    log_q = torch.log_softmax(torch.tensor(b, dtype=F64), 0)

    def gradient(of):
        logits = torch.tensor(a, dtype=F64, requires_grad=True)
        return torch.autograd.grad(of(torch.log_softmax(logits, 0)), logits)[0]

    def as_loss(estimator):
        return gradient(lambda log_p: (log_p.exp().detach() * kl_estimate(log_p, log_q, estimator)).sum())

    exact = gradient(lambda log_p: (log_p.exp() * (log_p - log_q)).sum())
    backward = gradient(lambda log_p: (log_q.exp() * (log_q - log_p)).sum())
    assert torch.allclose(as_loss("k1"), torch.zeros(4, dtype=F64), atol=1e-10)
    assert torch.allclose(as_loss("k2"), exact, atol=1e-10)
    assert torch.allclose(as_loss("k3"), backward, atol=1e-10)


@pytest.mark.checklist(25)
@given(logit_rows, logit_rows)
def test_k1_in_the_reward_has_the_gradient_of_the_kl(a, b):
    log_q = torch.log_softmax(torch.tensor(b, dtype=F64), 0)
    logits = torch.tensor(a, dtype=F64, requires_grad=True)
    log_p = torch.log_softmax(logits, 0)
    cost = (log_p.exp().detach() * kl_estimate(log_p, log_q).detach() * log_p).sum()
    exact = (log_p.exp() * (log_p - log_q)).sum()
    found, wanted = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (cost, exact))
    assert torch.allclose(found, wanted, atol=1e-10)


@pytest.mark.checklist(25)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_k3_is_clamped_where_policies_are_far_apart(dtype):
    zero, far = torch.zeros(1, dtype=dtype), torch.tensor([1e4], dtype=dtype)
    high, low = kl_estimate(far, zero, "k3"), kl_estimate(-far, zero, "k3")
    assert float(high) == pytest.approx(math.expm1(-20) + 20, rel=1e-6)
    assert float(low) == pytest.approx(math.expm1(20) - 20, rel=1e-6)
    assert float(kl_estimate(-far, zero, "k3", max_log_ratio=2.0)) == pytest.approx(
        math.expm1(2) - 2, rel=1e-6
    )
    assert float(kl_estimate(far, zero, "k1")) == 1e4
    inside = torch.tensor([-19.0, 19.0], dtype=F64)
    unclamped = [math.expm1(19) - 19, math.expm1(-19) + 19]
    assert kl_estimate(inside, inside * 0, "k3").tolist() == pytest.approx(unclamped)


@pytest.mark.checklist(25)
def test_k3_of_tiny_differences_keeps_its_digits():
    """exp(−d) − 1 + d ≈ d² / 2 would be lost in 1 − 1 without expm1."""
    tiny = torch.tensor([1e-5], dtype=F64)
    assert float(kl_estimate(tiny, tiny * 0, "k3")) == pytest.approx(0.5e-10, rel=1e-4)


@pytest.mark.checklist(25)
def test_estimators_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match='got "k0"'):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k0")
    with pytest.raises(ValueError, match="shapes differ"):
        kl_estimate(torch.zeros(1), torch.zeros(2))


@pytest.mark.checklist(26)
def test_the_checklists_number_of_the_adaptive_coefficient():
    found = adapt_kl_coefficient(0.05, kl=12.0, target=6.0, responses=512, horizon=10000.0)
    assert found == pytest.approx(0.05 * 1.01024, rel=1e-12)


@pytest.mark.checklist(26)
@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (7.2, 0.2), (7.3, 0.2), (4.8, -0.2), (0.0, -0.2), (1e9, 0.2)],
)
def test_the_error_of_the_adaptive_coefficient_is_clipped_on_both_sides(kl, error):
    found = adapt_kl_coefficient(2.0, kl=kl, target=6.0, responses=512, horizon=10000.0)
    assert found == pytest.approx(2.0 * (1 + error * 512 / 10000), rel=1e-12)


@pytest.mark.checklist(26)
@given(st.floats(1e-4, 1), st.floats(-50, 50), st.floats(0.1, 50), st.integers(1, 1000))
def test_the_adaptive_coefficient_moves_towards_the_target_and_stays_positive(beta, kl, target, n):
    found = adapt_kl_coefficient(beta, kl, target, n, 10000.0)
    assert found > 0
    assert (found > beta, found < beta) == (kl > target, kl < target) or kl == pytest.approx(target, rel=1e-9)
    assert abs(found / beta - 1) <= 0.2 * n / 10000 + 1e-12


@pytest.mark.checklist(26)
def test_a_horizon_so_short_that_beta_could_turn_negative_is_refused():
    with pytest.raises(ValueError, match=r"horizon must be more than 0\.2 · 64 responses, got 12\.8"):
        adapt_kl_coefficient(0.05, 0.0, 6.0, 64, 12.8)
    assert adapt_kl_coefficient(0.05, 0.0, 6.0, 64, 12.9) > 0


@pytest.mark.checklist(33)
def test_log_probs_are_computed_in_float32_or_float64():
    logits, tokens = normal(0, 5, 300) * 3, torch.arange(5)
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        given_logits = logits.to(dtype)
        logprobs, entropy = logprobs_and_entropy(given_logits, tokens)
        assert logprobs.dtype == entropy.dtype == wanted
        exact = torch.log_softmax(given_logits.double(), -1)
        tolerance = 1e-12 if dtype == F64 else 1e-5
        assert torch.allclose(logprobs.double(), exact[torch.arange(5), tokens], atol=tolerance, rtol=0)
        assert torch.allclose(entropy.double(), -(exact.exp() * exact).sum(-1), atol=tolerance, rtol=0)


@pytest.mark.checklist(33)
def test_chunked_log_probs_default_to_temperature_1_and_no_entropy():
    hidden, weight, tokens = normal(1, 7, 4), normal(2, 4, 9), torch.arange(7)

    def head(h):
        return h @ weight

    whole, entropy = logprobs_and_entropy(head(hidden), tokens, 1.0)
    found, none = chunked_logprobs(hidden, head, tokens)
    assert none is None
    assert torch.equal(found, whole)
    for chunk in (1, 3, 7, 100):
        parts, none = chunked_logprobs(hidden, head, tokens, chunk=chunk)
        assert none is None
        assert torch.allclose(parts, whole, atol=1e-14)
        parts, entropies = chunked_logprobs(hidden, head, tokens, entropy=True, chunk=chunk)
        assert torch.allclose(parts, whole, atol=1e-14)
        assert torch.allclose(entropies, entropy, atol=1e-14)
    warm, _ = chunked_logprobs(hidden, head, tokens, temperature=2.0)
    assert torch.allclose(warm, logprobs_and_entropy(head(hidden) / 2.0, tokens)[0])
    assert logprobs_and_entropy(head(hidden), tokens, entropy=False)[1] is None
