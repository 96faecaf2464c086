"""Items 43, 45, 48 to 50 and 52: what reward models learn of comparisons, scores, classes and steps; DPO."""

from __future__ import annotations

import math

import pytest
import torch

from proxlm.rl.preference_losses import (
    bradley_terry_loss,
    centring_penalty,
    class_loss,
    implicit_rewards,
    score_loss,
    share_preferred,
    step_loss,
)


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.checklist(43)
def test_bradley_terry_by_hand():
    """σ(0) = ½, σ(ln 3) = ¾, σ(−ln 3) = ¼."""
    third = math.log(3)
    loss = bradley_terry_loss(flat(0.5, 1 + third, -third), flat(0.5, 1.0, 0.0))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)], abs=1e-12)
    with pytest.raises(ValueError, match="shapes differ"):
        bradley_terry_loss(flat(1), flat(1, 2))


@pytest.mark.checklist(43)
def test_a_margin_is_taken_off_the_lead():
    third = math.log(3)
    loss = bradley_terry_loss(flat(2 + third, 0.0), flat(1.0, 0.0), flat(1.0, third))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=1e-12)


@pytest.mark.checklist(43)
def test_smoothing_has_its_minimum_where_the_probability_is_one_minus_epsilon():
    epsilon = 0.1
    best = math.log((1 - epsilon) / epsilon)
    leads = flat(best - 1e-4, best, best + 1e-4)
    loss = bradley_terry_loss(leads, torch.zeros(3).double(), label_smoothing=epsilon)
    assert loss[1] < loss[0]
    assert loss[1] < loss[2]
    entropy = -epsilon * math.log(epsilon) - (1 - epsilon) * math.log(1 - epsilon)
    assert float(loss[1]) == pytest.approx(entropy, abs=1e-12)


@pytest.mark.checklist(43)
def test_the_gradient_is_the_probability_of_being_wrong():
    """∂L/∂r_chosen = −σ(−d), ∂L/∂r_rejected = σ(−d)."""
    chosen, rejected = flat(1.0, -2.0).requires_grad_(), flat(0.0, 0.5).requires_grad_()
    bradley_terry_loss(chosen, rejected).sum().backward()
    wrong = torch.sigmoid(rejected - chosen).tolist()
    assert chosen.grad.tolist() == pytest.approx([-w for w in wrong], abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx(wrong, abs=1e-12)


@pytest.mark.checklist(43)
def test_scores_of_an_enumerated_world_are_found_up_to_a_constant_and_centred_around_zero():
    """Three completions with true scores: the expected loss has its minimum at them, the constant is free."""
    true = flat(0.7, -0.4, 1.2)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    weights = flat(*(float(torch.sigmoid(true[i] - true[j])) for i, j in pairs))

    def trained(centring: float) -> torch.Tensor:
        scores = flat(5.0, 5.0, 5.0).requires_grad_()
        optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            first, second = (scores[[pair[k] for pair in pairs]] for k in (0, 1))
            total = (
                weights * (bradley_terry_loss(first, second) + centring * centring_penalty(first, second))
            ).sum()
            total.backward()
            return total

        optimiser.step(loss)
        return scores.detach()

    free = trained(0.0)
    assert (free - free.mean()).tolist() == pytest.approx((true - true.mean()).tolist(), abs=1e-5)
    assert float(free.mean()) == pytest.approx(5.0, abs=1e-5)
    centred = trained(1e-4)
    assert float(centred.mean()) == pytest.approx(0.0, abs=1e-3)
    assert (centred - centred.mean()).tolist() == pytest.approx((true - true.mean()).tolist(), abs=1e-3)


@pytest.mark.checklist(43)
def test_a_tie_counts_half():
    assert share_preferred(flat(0.1, 0.0, -0.1)).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.checklist(45)
def test_dpo_by_hand():
    """β (Δ_chosen − Δ_rejected) with Δ = log π − log π_ref: 0.5 · (2 − (−0.2)) = 1.1."""
    chosen = implicit_rewards(flat(-3.0), flat(-5.0), 0.5)
    rejected = implicit_rewards(flat(-4.2), flat(-4.0), 0.5)
    assert chosen.tolist() == pytest.approx([1.0])
    assert rejected.tolist() == pytest.approx([-0.1])
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx(
        [math.log1p(math.exp(-1.1))], abs=1e-12
    )


@pytest.mark.checklist(45)
def test_the_optimum_of_dpo_is_that_of_the_reward_under_a_kl_penalty():
    """All completions enumerated: with preferences by a reward r, π ∝ π_ref exp(r / β) minimises DPO's loss."""
    reward, reference, beta = flat(0.7, -0.4, 1.2), flat(0.5, 0.3, 0.2).log(), 0.5
    wanted = (reference + reward / beta).log_softmax(0)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    first, second = ([pair[k] for pair in pairs] for k in (0, 1))
    weights = torch.sigmoid(reward[first] - reward[second])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        implied = implicit_rewards(logits.log_softmax(0), reference, beta)
        total = (weights * bradley_terry_loss(implied[first], implied[second])).sum()
        total.backward()
        return total

    optimiser.step(loss)
    assert logits.log_softmax(0).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


NAN = math.nan


@pytest.mark.checklist(48)
def test_squared_and_hubers_error_by_hand():
    """e = 0.5, −3 and 1: e² = 0.25, 9, 1; with δ = 1: 0.125, 2.5, 0.5, where both pieces meet."""
    outputs, targets = flat(1.5, -1.0, 3.0)[:, None], flat(1.0, 2.0, 2.0)[:, None]
    assert score_loss(outputs, targets).tolist() == pytest.approx([0.25, 9.0, 1.0])
    assert score_loss(outputs, targets, 1.0).tolist() == pytest.approx([0.125, 2.5, 0.5])
    assert score_loss(outputs, targets, 2.0).tolist() == pytest.approx([0.125, 4.0, 0.5])
    with pytest.raises(ValueError, match="shapes differ"):
        score_loss(outputs, targets.flatten())


@pytest.mark.checklist(48)
def test_hubers_gradient_is_the_error_held_at_delta():
    outputs = flat(0.5, -3.0, 5.0).requires_grad_()
    score_loss(outputs[:, None], flat(0.0, 0.0, 0.0)[:, None], 2.0).sum().backward()
    assert outputs.grad.tolist() == [0.5, -2.0, 2.0]


@pytest.mark.checklist(48)
def test_a_missing_score_counts_nowhere():
    """Record 1 has both, record 2 only the second: its loss is that of the second, and the first gets no gradient."""
    outputs = torch.tensor([[1.0, 2.0], [7.0, 3.0]], dtype=torch.float64, requires_grad=True)
    loss = score_loss(outputs, torch.tensor([[0.0, 0.0], [NAN, 1.0]], dtype=torch.float64))
    assert loss.tolist() == [2.5, 4.0]
    loss.sum().backward()
    assert outputs.grad.tolist() == [[1.0, 2.0], [0.0, 4.0]]


@pytest.mark.checklist(49)
def test_cross_entropy_of_classes_by_hand():
    """softmax(0, ln 2, ln 5) = 1/8, 1/4, 5/8; the gradient is that minus the class's indicator."""
    outputs = flat(0.0, math.log(2), math.log(5)).repeat(2, 1).requires_grad_()
    loss = class_loss(outputs, flat(2.0, 0.0))
    assert loss.tolist() == pytest.approx([math.log(8 / 5), math.log(8)])
    loss.sum().backward()
    assert outputs.grad[0].tolist() == pytest.approx([1 / 8, 1 / 4, -3 / 8])
    assert class_loss(torch.zeros(1, 7), torch.zeros(1)).item() == pytest.approx(math.log(7))


@pytest.mark.checklist(50)
def test_the_loss_of_steps_by_hand():
    """σ(ln 3) = ¾. A response of two steps weighs as much as one of one; a soft label mixes both logarithms."""
    third = math.log(3)
    logits = torch.tensor([[third, third], [0.0, 99.0]], dtype=torch.float64, requires_grad=True)
    loss = step_loss(logits, torch.tensor([[1.0, 0.0], [0.25, NAN]], dtype=torch.float64))
    assert loss.tolist() == pytest.approx([(math.log(4 / 3) + math.log(4)) / 2, math.log(2)])
    loss.sum().backward()
    wanted = [[-1 / 8, 3 / 8], [1 / 4, 0.0]]  # (σ(z) − y) / steps; none where there is no step
    assert logits.grad.flatten().tolist() == pytest.approx([value for row in wanted for value in row])


@pytest.mark.checklist(50)
def test_two_outputs_with_cross_entropy_are_one_with_binary_cross_entropy():
    outputs = torch.tensor([[0.3, -0.8], [1.5, 2.5]], dtype=torch.float64)
    binary = step_loss((outputs[:, 1] - outputs[:, 0])[:, None], flat(1.0, 0.0)[:, None])
    assert binary.tolist() == pytest.approx(class_loss(outputs, flat(1.0, 0.0)).tolist(), abs=1e-12)


@pytest.mark.checklist(52)
def test_a_boosted_members_gradient_weighs_what_the_sum_so_far_gets_wrong():
    """∂/∂f of −log σ(F + f) is −σ(−(F + f)): the sum so far works as a margin of the other sign."""
    so_far, own = flat(2.0, 0.0, -2.0), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(own + so_far, torch.zeros(3).double()).sum().backward()
    assert own.grad.tolist() == pytest.approx((-torch.sigmoid(-so_far)).tolist(), abs=1e-12)
    as_margin = bradley_terry_loss(own.detach(), torch.zeros(3).double(), -so_far)
    summed = bradley_terry_loss(so_far, torch.zeros(3).double())
    assert as_margin.tolist() == pytest.approx(summed.tolist(), abs=1e-12)
