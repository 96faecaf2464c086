"""Item 46: the reverse KL to a teacher as each token's advantage, against the exact gradient of what it minimises.

Responses of three tokens from a vocabulary of 3, all 27 enumerated; student and teacher are tables of logits, one row
for each prefix. The exact gradients are autograd's, of the KL written out over the whole vocabulary.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from proxlm.rl.advantages import kl_advantages
from proxlm.rl.kl import kl_estimate
from proxlm.rl.policy_losses import LossInputs, ppo_loss
from proxlm.rl.sampling_mask import SamplingMask, mask_logits

pytestmark = pytest.mark.checklist(46)

SIZE, LENGTH, COEFFICIENT = 3, 3, 0.7
TEXTS = torch.tensor(list(itertools.product(range(SIZE), repeat=LENGTH)))
PREFIXES = {
    p: i for i, p in enumerate(p for t in range(LENGTH) for p in itertools.product(range(SIZE), repeat=t))
}
STATES = torch.tensor([[PREFIXES[tuple(text[:t])] for t in range(LENGTH)] for text in TEXTS.tolist()])
OFFSETS = torch.arange(len(TEXTS) + 1) * LENGTH
MASK = torch.ones(len(TEXTS) * LENGTH, dtype=torch.bool)


def tables(seed):
    """Logits of student and teacher at each prefix, [13, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(len(PREFIXES), SIZE, generator=generator, dtype=torch.float64) for _ in range(2))


def kept_sets():
    """Which tokens each prefix was sampled from: two of the three, by the prefix; of the first, all."""
    kept = torch.ones(len(PREFIXES), SIZE, dtype=torch.bool)
    for i in range(1, len(PREFIXES)):
        kept[i, i % SIZE] = False
    return kept


def chosen(logprobs):
    """log π of the tokens of every text, [27, 3]."""
    return logprobs[STATES, TEXTS]


def masked(logits, kept):
    return torch.log_softmax(mask_logits(logits, SamplingMask.of(kept)), -1)


def expected_gradient(student, teacher, lam, kept=None, whole_teacher=False, estimator="k1"):
    """Of the loss of a step at ratio 1, each text counting as often as the student writes it."""
    everything = torch.ones_like(student, dtype=torch.bool)
    sets = everything if kept is None else kept
    free = student.clone().requires_grad_()
    own = chosen(masked(free, sets))
    possible = own.isfinite()
    others = chosen(masked(teacher, everything if whole_teacher else sets))
    old, teachers = (torch.where(possible, x, 0.0).detach() for x in (own, others))
    kl = kl_estimate(old, teachers, estimator).flatten()
    advantages = kl_advantages(kl, COEFFICIENT, MASK, OFFSETS, 1.0, lam)
    logprobs = torch.where(possible, own, 0.0).flatten()
    loss = ppo_loss(LossInputs(logprobs, old.flatten(), advantages, MASK, OFFSETS)).loss
    frequency = own.detach().sum(-1).exp().repeat_interleave(LENGTH)  # 0 where a token was not kept
    return torch.autograd.grad((frequency * loss).sum(), free)[0]


def state_kl(student, teacher, sets, sets_of_teacher):
    """KL(π ‖ π_T) in each state, [13]."""
    own, others = masked(student, sets), masked(teacher, sets_of_teacher)
    difference = torch.where(sets, own - others, 0.0)
    return (own.exp() * difference).sum(-1)


def state_frequency(student, sets):
    """How often a response passes through each state, [13]."""
    own = chosen(masked(student, sets))
    # A state is met as often as all the texts together that go on from it.
    whole = own.sum(-1).exp()[:, None].expand(-1, LENGTH)
    return torch.zeros(len(PREFIXES), dtype=own.dtype).index_add(0, STATES.flatten(), whole.flatten())


@pytest.mark.parametrize("kept", [None, kept_sets()], ids=["whole", "kept sets"])
@pytest.mark.parametrize("seed", range(3))
def test_with_all_that_follows_it_is_the_gradient_of_the_kl_of_whole_responses(seed, kept):
    """λ = 1: ∇ β KL(π(text) ‖ π_T(text)), what Gu et al. 2024, MiniLLM, minimise."""
    student, teacher = tables(seed)
    sets = torch.ones_like(student, dtype=torch.bool) if kept is None else kept
    free = student.clone().requires_grad_()
    own, others = chosen(masked(free, sets)).sum(-1), chosen(masked(teacher, sets)).sum(-1)
    possible = own.isfinite()
    of_text = (own[possible].exp() * (own[possible] - others[possible])).sum()
    (wanted,) = torch.autograd.grad(COEFFICIENT * of_text, free)
    got = expected_gradient(student, teacher, 1.0, kept)
    assert torch.allclose(got, wanted, atol=1e-12)
    assert float(wanted.abs().max()) > 0.05


@pytest.mark.parametrize("kept", [None, kept_sets()], ids=["whole", "kept sets"])
@pytest.mark.parametrize("seed", range(3))
def test_with_its_own_alone_it_is_the_gradient_of_the_kl_in_each_state(seed, kept):
    """λ = 0: Σ_s d(s) ∇ β KL(π(· | s) ‖ π_T(· | s)), the states as often as they are met, without gradient."""
    student, teacher = tables(seed)
    sets = torch.ones_like(student, dtype=torch.bool) if kept is None else kept
    free = student.clone().requires_grad_()
    met = state_frequency(student, sets)
    assert float(met.sum()) == pytest.approx(LENGTH)
    loss = COEFFICIENT * (met * state_kl(free, teacher, sets, sets)).sum()
    (wanted,) = torch.autograd.grad(loss, free)
    assert torch.allclose(expected_gradient(student, teacher, 0.0, kept), wanted, atol=1e-12)
    assert not torch.allclose(expected_gradient(student, teacher, 1.0, kept), wanted, atol=1e-2)


def test_renormalising_the_teacher_over_kept_sets_changes_only_how_earlier_tokens_are_led():
    """log Σ_S π_T is one number for a whole state: with λ = 0 it moves nothing in expectation, with λ = 1 it does."""
    (student, teacher), kept = tables(5), kept_sets()
    both = [expected_gradient(student, teacher, 0.0, kept, whole) for whole in (False, True)]
    assert torch.allclose(both[0], both[1], atol=1e-12)
    both = [expected_gradient(student, teacher, 1.0, kept, whole) for whole in (False, True)]
    assert float((both[0] - both[1]).abs().max()) > 0.01
    # Whole, the KL cannot fall below −log Σ_S π_T, however well the student has learnt.
    everything = torch.ones_like(kept)
    least = state_kl(teacher, teacher, kept, everything)
    left_out = masked(teacher, everything).exp().masked_fill(kept, 0.0).sum(-1)
    assert torch.allclose(least, -torch.log1p(-left_out))
    assert torch.allclose(state_kl(teacher, teacher, kept, kept), torch.zeros(len(kept), dtype=torch.float64))


def test_other_estimators_as_an_advantage_have_another_gradient():
    """k3 adds π_T / π − 1: the gradient of KL(π ‖ π_T) less that of KL(π_T ‖ π). So the advantage takes k1 always."""
    student, teacher = tables(7)
    sets, met = (
        torch.ones_like(student, dtype=torch.bool),
        state_frequency(student, torch.ones_like(student) > 0),
    )
    free = student.clone().requires_grad_()
    reverse, forward = state_kl(free, teacher, sets, sets), state_kl(teacher, free, sets, sets)
    (wanted,) = torch.autograd.grad(COEFFICIENT * (met * (reverse - forward)).sum(), free)
    got = expected_gradient(student, teacher, 0.0, estimator="k3")
    assert torch.allclose(got, wanted, atol=1e-12)
    assert float((got - expected_gradient(student, teacher, 0.0)).abs().max()) > 0.05
