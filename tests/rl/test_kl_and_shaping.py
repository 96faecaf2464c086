"""KL estimates on an enumerated distribution; rewards of tokens by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.kl import adapt_kl_coefficient, kl_estimate
from proxlm.rl.shaping import apply_missing_eos, last_action_index, segment_sum, token_rewards

logit_rows = st.lists(st.floats(-3, 3), min_size=5, max_size=5)


@pytest.mark.checklist(25)
@given(logit_rows, logit_rows)
def test_expectations_over_an_enumerated_distribution(a, b):
    log_p = torch.log_softmax(torch.tensor(a, dtype=torch.float64), 0)
    log_q = torch.log_softmax(torch.tensor(b, dtype=torch.float64), 0)
    p, kl = log_p.exp(), float((log_p.exp() * (log_p - log_q)).sum())
    assert float((p * kl_estimate(log_p, log_q, "k1")).sum()) == pytest.approx(kl, abs=1e-9)
    k3 = kl_estimate(log_p, log_q, "k3")
    assert float((p * k3).sum()) == pytest.approx(kl, abs=1e-9)
    assert float(k3.min()) >= 0
    assert torch.allclose(kl_estimate(log_p, log_q, "k2"), 0.5 * (log_p - log_q) ** 2)


@pytest.mark.checklist(25)
@given(logit_rows, logit_rows)
def test_as_a_loss_k1_has_no_expected_gradient_and_k2_has_the_kls(a, b):
    log_q = torch.log_softmax(torch.tensor(b, dtype=torch.float64), 0)

    def gradient(estimator):
        logits = torch.tensor(a, dtype=torch.float64, requires_grad=True)
        log_p = torch.log_softmax(logits, 0)
        if estimator == "exact":
            value = (log_p.exp() * (log_p - log_q)).sum()
        else:
            value = (log_p.exp().detach() * kl_estimate(log_p, log_q, estimator)).sum()
        return torch.autograd.grad(value, logits)[0]

    assert torch.allclose(gradient("k1"), torch.zeros(5, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(gradient("k2"), gradient("exact"), atol=1e-9)


@pytest.mark.checklist(24)
@pytest.mark.checklist(25)
def test_kl_of_equal_policies_is_zero_and_extremes_are_finite():
    x = torch.tensor([-1.0, -50.0])
    for estimator in ("k1", "k2", "k3"):
        assert kl_estimate(x, x, estimator).tolist() == [0, 0]
    assert torch.isfinite(kl_estimate(torch.tensor([-1e4]), torch.tensor([0.0]), "k3")).all()
    with pytest.raises(ValueError, match='got "k4"'):
        kl_estimate(x, x, "k4")


@pytest.mark.checklist(26)
def test_adaptive_coefficient_by_hand():
    # error clipped to 0.2: 1 + 0.2 · 512 / 10000
    assert adapt_kl_coefficient(1.0, kl=12, target=6, responses=512, horizon=10000) == pytest.approx(1.01024)
    assert adapt_kl_coefficient(1.0, kl=0, target=6, responses=512, horizon=10000) == pytest.approx(
        1 - 0.01024
    )
    assert adapt_kl_coefficient(0.5, kl=6.6, target=6, responses=100, horizon=1000) == pytest.approx(
        0.5 * 1.01
    )
    assert adapt_kl_coefficient(0.3, kl=6, target=6, responses=512, horizon=10000) == 0.3


OFFSETS = torch.tensor([0, 3, 5, 6])
MASK = torch.tensor([True, True, False, False, True, False])


def test_last_action_and_sums():
    assert last_action_index(MASK, OFFSETS).tolist() == [1, 4, -1]
    assert segment_sum(torch.arange(6.0), OFFSETS).tolist() == [3, 7, 5]
    with pytest.raises(ValueError, match="offsets end at 6"):
        last_action_index(MASK[:4], OFFSETS)


@pytest.mark.checklist(24)
def test_token_rewards_by_hand():
    kl = torch.tensor([0.1, 0.2, 9.0, 9.0, 0.3, 9.0])
    got = token_rewards(torch.tensor([1.0, -1.0, 5.0]), kl, 0.5, MASK, OFFSETS)
    assert got.tolist() == pytest.approx([-0.05, 1 - 0.1, 0, 0, -1 - 0.15, 0])
    extra = torch.tensor([0.0, 0, 2, 0, 0, 0])
    assert token_rewards(torch.zeros(3), kl * 0, 0.5, MASK, OFFSETS, extra).tolist() == extra.tolist()


@pytest.mark.checklist(24)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(0, 1), st.randoms(use_true_random=False)
)
def test_rewards_of_a_response_sum_to_score_less_kl(lengths, beta, random):
    total = sum(lengths)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    kl = torch.tensor([random.uniform(-2, 2) for _ in range(total)], dtype=torch.float64)
    scores = torch.tensor([random.uniform(-3, 3) for _ in lengths], dtype=torch.float64)
    got = segment_sum(token_rewards(scores, kl, beta, torch.ones(total).bool(), offsets), offsets)
    assert torch.allclose(got, scores - beta * segment_sum(kl, offsets))


@pytest.mark.checklist(29)
def test_missing_eos_by_hand():
    scores, ended = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    assert apply_missing_eos(scores, ended, "ignore", 1).tolist() == [2, 3]
    assert apply_missing_eos(scores, ended, "subtract", 1).tolist() == [2, 2]
    assert apply_missing_eos(scores, ended, "replace", 1).tolist() == [2, -1]
    with pytest.raises(ValueError, match='got "drop"'):
        apply_missing_eos(scores, ended, "drop", 1)
