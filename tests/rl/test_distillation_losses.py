"""The divergences of distillation: closed forms, limits, enumeration, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from proxlm.rl.distillation import (
    distillation_loss,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    soft_targets,
    top_and_rest,
)

pytestmark = pytest.mark.checklist(53)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_two_coins_by_hand():
    p, q = log(0.75, 0.25), log(0.5, 0.5)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    assert forward_kl(p, q).item() == pytest.approx(forward)
    assert reverse_kl(p, q).item() == pytest.approx(backward)
    middle = (0.625, 0.375)
    expected = 0.5 * (0.75 * math.log(0.75 / middle[0]) + 0.25 * math.log(0.25 / middle[1]))
    expected += 0.5 * (0.5 * math.log(0.5 / middle[0]) + 0.5 * math.log(0.5 / middle[1]))
    assert jensen_shannon(p, q, 0.5).item() == pytest.approx(expected)


def test_they_are_torchs_divergences():
    p, q = logits(0, 5, 11).log_softmax(-1), logits(1, 5, 11).log_softmax(-1)
    kl = torch.distributions.kl_divergence
    first, second = torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    torch.testing.assert_close(forward_kl(p, q), kl(first, second))
    torch.testing.assert_close(reverse_kl(p, q), kl(second, first))
    mixed = torch.distributions.Categorical(probs=0.3 * p.exp() + 0.7 * q.exp())
    torch.testing.assert_close(jensen_shannon(p, q, 0.3), 0.3 * kl(first, mixed) + 0.7 * kl(second, mixed))


def test_jensen_shannon_is_symmetric_at_a_half_and_at_most_log_two():
    p, q = logits(0, 5, 11).log_softmax(-1), logits(1, 5, 11).log_softmax(-1)
    torch.testing.assert_close(jensen_shannon(p, q, 0.5), jensen_shannon(q, p, 0.5))
    torch.testing.assert_close(jensen_shannon(p, q, 0.2), jensen_shannon(q, p, 0.8))
    assert not torch.allclose(jensen_shannon(p, q, 0.2), jensen_shannon(q, p, 0.2))
    apart = jensen_shannon(log(1.0, 0.0), log(0.0, 1.0), 0.5)
    assert apart.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("beta", "limit"), [(1e-6, forward_kl), (1 - 1e-6, reverse_kl)])
def test_the_limits_of_jensen_shannon_are_the_two_kls(beta, limit):
    teacher = logits(0, 4, 9).log_softmax(-1)
    found, gradients = [], []
    for function in (lambda p, q: jensen_shannon(p, q, beta) / min(beta, 1 - beta), limit):
        student = logits(1, 4, 9).requires_grad_()
        value = function(teacher, student.log_softmax(-1))
        value.sum().backward()
        found.append(value.detach())
        gradients.append(student.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0])
def test_the_limits_themselves_are_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        jensen_shannon(log(0.5, 0.5), log(0.5, 0.5), beta)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("top_k", [0, 3])
def test_gradients_are_those_of_finite_differences(kind, top_k):
    teacher, tokens = logits(0, 3, 7), torch.tensor([0, 3, 6])

    def loss(student: torch.Tensor) -> torch.Tensor:
        targets = soft_targets(teacher, 2.0, top_k)
        return distillation_loss(
            targets, student, tokens, kind, beta=0.3, temperature=2.0, cross_entropy=0.25
        )

    assert torch.autograd.gradcheck(loss, logits(1, 3, 7).requires_grad_())


def test_forward_kl_has_the_gradient_of_soft_targets():
    """∂ T² KL / ∂ z = T (q − p)."""
    teacher, student = logits(0, 3, 7), logits(1, 3, 7).requires_grad_()
    targets = soft_targets(teacher, 3.0)
    distillation_loss(targets, student, torch.zeros(3, dtype=torch.int64), temperature=3.0).sum().backward()
    p, q = (teacher / 3).softmax(-1), (student.detach() / 3).softmax(-1)
    torch.testing.assert_close(student.grad, 3 * (q - p))


def test_a_high_temperature_is_the_squared_error_of_centred_logits():
    """Hinton et al. 2015, eq. 4: T² KL → Σ (z_q − z_p)² / 2V for centred logits, as T → ∞."""
    teacher, student = (z - z.mean(-1, keepdim=True) for z in (logits(0, 3, 7), logits(1, 3, 7)))
    targets = soft_targets(teacher, 1e4)
    found = distillation_loss(targets, student, torch.zeros(3, dtype=torch.int64), temperature=1e4)
    torch.testing.assert_close(found, (student - teacher).square().mean(-1) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_is_its_teacher_loses_nothing(kind):
    same = logits(0, 3, 7)
    student = same.clone().requires_grad_()
    tokens = torch.zeros(3, dtype=torch.int64)
    loss = distillation_loss(soft_targets(same, 2.0), student, tokens, kind, temperature=2.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-15
    assert student.grad.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_all_tokens_are_the_whole_divergence_and_fewer_never_more(kind):
    teacher, student, tokens = logits(0, 6, 9), logits(1, 6, 9), torch.zeros(6, dtype=torch.int64)
    whole = divergence(teacher.log_softmax(-1), student.log_softmax(-1), kind, beta=0.3)
    parts = torch.stack(
        [
            distillation_loss(soft_targets(teacher, 1.0, k), student, tokens, kind, beta=0.3)
            for k in range(1, 10)
        ]
    )
    torch.testing.assert_close(parts[-1], whole)
    assert (parts[1:] >= parts[:-1] - 1e-12).all()
    assert (parts[0] < whole).all()
    assert (parts >= 0).all()


def test_top_and_rest_is_a_distribution():
    logprobs = logits(0, 4, 9).log_softmax(-1)
    tokens = torch.tensor([[0, 3], [8, 1], [2, 5], [4, 7]])
    found = top_and_rest(logprobs, tokens)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found[:, :2], logprobs.gather(1, tokens))


def test_tokens_that_one_side_excludes():
    p, q = log(0.5, 0.5, 0.0), log(0.25, 0.25, 0.5)
    student = q.clone().requires_grad_()
    assert forward_kl(p, q).item() == pytest.approx(math.log(2))
    assert reverse_kl(p, q).item() == math.inf
    forward_kl(p, student).sum().backward()
    assert student.grad.tolist() == [[-0.5, -0.5, 0.0]]
    assert reverse_kl(q, p).item() == pytest.approx(math.log(2))
    assert math.isfinite(jensen_shannon(p, q, 0.5).item())


def test_the_expected_loss_of_a_text_is_its_kl_by_enumeration():
    """Σ_y p(y) Σ_n KL(p(·|y<n) ‖ q(·|y<n)) = KL of the two distributions over texts of two tokens."""
    p1, q1 = logits(0, 4).log_softmax(-1), logits(1, 4).log_softmax(-1)
    p2, q2 = logits(2, 4, 4).log_softmax(-1), logits(3, 4, 4).log_softmax(-1)
    by_token = forward_kl(p1, q1) + (p1.exp() * forward_kl(p2, q2)).sum()
    joint_p, joint_q = (p1[:, None] + p2).flatten(), (q1[:, None] + q2).flatten()
    torch.testing.assert_close(by_token, forward_kl(joint_p, joint_q))


def test_the_cross_entropy_is_that_of_the_texts_tokens_at_temperature_one():
    student, tokens = logits(1, 3, 7), torch.tensor([0, 3, 6])
    found = distillation_loss(
        soft_targets(logits(0, 3, 7), 2.0), student, tokens, temperature=2.0, cross_entropy=1
    )
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(student, tokens, reduction="none"))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        distillation_loss(soft_targets(logits(0, 3, 7)), logits(1, 3, 6), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="different numbers"):
        distillation_loss(soft_targets(logits(0, 3, 7)), logits(1, 3, 7), torch.zeros(2, dtype=torch.int64))


def test_top_and_rest_where_the_others_have_no_probability():
    """In float32 their sum is 0: the gradient stays finite, and that of the likeliest tokens is exact."""
    z = torch.tensor([[200.0, 199.0, 0.0, -5.0]]).requires_grad_()
    found = top_and_rest(z, torch.tensor([[0, 1]]))
    found[:, :2].sum().backward()
    share = math.e / (1 + math.e)
    torch.testing.assert_close(z.grad, torch.tensor([[1 - 2 * share, 1 - 2 * (1 - share), 0.0, 0.0]]))
