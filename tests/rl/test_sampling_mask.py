"""The kept set of each token: exact, small, and what renormalising over it gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.logprobs import chunked_logprobs, logprobs_and_entropy
from proxlm.rl.sampling_mask import SamplingMask, mask_logits

pytestmark = pytest.mark.checklist(34)
# Around the sizes at which an id takes another byte, and a bitmap another one.
SIZES = [1, 2, 3, 8, 9, 100, 255, 256, 257, 300, 65536, 65537]


def sets(seed, rows, size):
    """kept [rows, size]: from one token to all of them."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.zeros(rows, size, dtype=torch.bool)
    for row in range(rows):
        count = 1 + int(torch.rand((), generator=generator).pow(3) * size) if row else size
        kept[row, torch.randperm(size, generator=generator)[:count]] = True
    return kept


def bytes_by_hand(count, size):
    width = 1 if size <= 256 else 2 if size <= 65536 else 3
    return 0 if count == size else min(count * width, math.ceil(size / 8))


@given(st.sampled_from(SIZES), st.integers(0, 5), st.integers(0, 10**6))
def test_the_sets_come_back_exactly_and_take_the_fewest_bytes(size, rows, seed):
    kept = sets(seed, rows, size) if rows else torch.ones(0, size, dtype=torch.bool)
    mask = SamplingMask.of(kept)
    assert len(mask) == rows
    assert torch.equal(mask.dropped(), ~kept)
    assert torch.equal(mask.counts(), kept.sum(-1))
    assert mask.offsets.diff().tolist() == [bytes_by_hand(int(row.sum()), size) for row in kept]
    assert len(mask.data) == int(mask.offsets[-1]) <= rows * math.ceil(size / 8)
    assert mask.data.dtype == torch.uint8


@pytest.mark.parametrize("size", [40, 300, 70000])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 18, 19, 20, 2916, 2917, 5833])
def test_both_forms_around_the_size_where_they_meet(size, count):
    if count > size:
        return
    kept = torch.zeros(2, size, dtype=torch.bool)
    kept[0, -count:] = kept[1, :count] = True
    mask = SamplingMask.of(kept)
    assert torch.equal(mask.dropped(), ~kept)
    assert mask.counts().tolist() == [count, count]


def test_by_hand():
    """V = 300: ids of two bytes, the low one first; V = 20: three bytes of bits, the first token the lowest bit."""
    kept = torch.zeros(2, 300, dtype=torch.bool)
    kept[0, [3, 258]] = kept[1, 0] = True
    mask = SamplingMask.of(kept)
    assert mask.data.tolist() == [3, 0, 2, 1, 0, 0]
    assert mask.offsets.tolist() == [0, 4, 6]
    kept = torch.zeros(1, 20, dtype=torch.bool)
    kept[0, [0, 2, 3, 9, 19]] = True
    assert SamplingMask.of(kept).data.tolist() == [1 + 4 + 8, 2, 8]
    assert SamplingMask.of(torch.ones(4, 20, dtype=torch.bool)).data.tolist() == []


@pytest.mark.parametrize("size", [20, 300])
def test_spans_selections_and_joins_carry_the_sets(size):
    kept = sets(1, 7, size)
    mask = SamplingMask.of(kept)
    assert torch.equal(mask.dropped(slice(2, 5)), ~kept[2:5])
    assert torch.equal(mask.dropped(slice(0, 0)), ~kept[:0])
    rows = torch.tensor([6, 0, 0, 3])
    assert torch.equal(mask.select(rows).dropped(), ~kept[rows])
    parts = [mask.select(torch.arange(3)), SamplingMask.whole(2, size), mask.select(torch.arange(3, 7))]
    joined = SamplingMask.join(parts)
    everything = torch.ones(2, size, dtype=torch.bool)
    assert torch.equal(joined.dropped(), ~torch.cat([kept[:3], everything, kept[3:]]))
    assert joined.counts()[3:5].tolist() == [size, size]
    again = SamplingMask.from_pieces(size, joined.split())
    assert torch.equal(again.data, joined.data)
    assert torch.equal(again.offsets, joined.offsets)
    assert again.vocabulary == size
    assert len(SamplingMask.from_pieces(size, [])) == 0
    assert SamplingMask.whole(2, size).offsets.tolist() == [0, 0, 0]
    assert joined.to(torch.device("cpu")).offsets.tolist() == joined.offsets.tolist()


def test_the_probabilities_of_the_sets_go_with_them():
    kept, mass = sets(3, 4, 20), torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    mask = SamplingMask.of(kept, mass)
    assert mask.mass.dtype == torch.float32
    assert mask.mass.tolist() == mass.tolist()
    assert mask.select(torch.tensor([2, 0, 0])).mass.tolist() == [0.75, 0.25, 0.25]
    joined = SamplingMask.join([mask, SamplingMask.whole(2, 20)])
    assert joined.mass.tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
    again = SamplingMask.from_pieces(20, joined.split())
    assert again.mass.tolist() == joined.mass.tolist()
    assert again.mass.dtype == torch.float32
    assert joined.to(torch.device("cpu")).mass.tolist() == joined.mass.tolist()
    unknown = SamplingMask.of(kept)
    assert unknown.mass.shape == (4,)
    assert bool(unknown.mass.isnan().all())


def test_what_cannot_be_a_mask_is_refused():
    with pytest.raises(ValueError, match="empty set"):
        SamplingMask.of(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"vocabularies of \[3, 4\] tokens"):
        SamplingMask.join([SamplingMask.whole(1, 4), SamplingMask.whole(2, 3)])
    with pytest.raises(ValueError, match="mask of 4 tokens, but logits of 5"):
        mask_logits(torch.zeros(2, 5), SamplingMask.whole(2, 4))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_renormalised_log_probs_by_hand(temperature):
    """log π_S(a) = log π(a) − log π(S); H is of π_S; gradients are those of the formula by autograd in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 30, generator=generator, dtype=torch.float64)).requires_grad_()
    kept = sets(2, 6, 30)
    tokens = torch.stack([row.nonzero()[0, 0] for row in kept])
    found, entropy = logprobs_and_entropy(mask_logits(logits, SamplingMask.of(kept)), tokens, temperature)
    p = (logits / temperature).softmax(-1)
    mass = (p * kept).sum(-1)
    wanted = p.gather(-1, tokens[:, None])[:, 0].log() - mass.log()
    share = torch.where(kept, p / mass[:, None], 0.0)
    spread = -torch.where(kept, share * share.clamp(min=1e-300).log(), 0.0).sum(-1)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert entropy is not None
    assert torch.allclose(entropy, spread, rtol=0, atol=1e-12)
    factors = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((factors[0] * found + factors[1] * entropy).sum(), logits)[0]
    exact = torch.autograd.grad((factors[0] * wanted + factors[1] * spread).sum(), logits)[0]
    assert torch.allclose(got, exact, rtol=0, atol=1e-11)
    assert (got[~kept] == 0).all()


def test_without_a_mask_the_logits_are_the_same_tensor():
    logits = torch.randn(2, 5)
    assert mask_logits(logits, None) is logits
    assert torch.equal(mask_logits(logits, SamplingMask.whole(2, 5)), logits)


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 7])
def test_chunks_take_their_own_sets(chunk):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    head = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    kept = sets(4, 6, 30)
    tokens = torch.stack([row.nonzero()[-1, 0] for row in kept])
    mask = SamplingMask.of(kept)
    wanted, spread = logprobs_and_entropy((hidden @ head).masked_fill(~kept, -torch.inf), tokens)
    found, entropy = chunked_logprobs(hidden, lambda h: h @ head, tokens, 1.0, True, chunk, mask)
    assert spread is not None
    assert entropy is not None
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(entropy, spread, rtol=0, atol=1e-12)
    exact = torch.autograd.grad((wanted + spread).sum(), hidden)[0]
    got = torch.autograd.grad((found + entropy).sum(), hidden)[0]
    assert torch.allclose(got, exact, rtol=0, atol=1e-12)


@pytest.mark.checklist(46)
@pytest.mark.parametrize(("size", "wider"), [(3, 3), (3, 8), (8, 9), (256, 257), (300, 310), (300, 70000)])
def test_the_same_sets_in_a_wider_vocabulary(size, wider):
    """Of a head with more rows: what the set was is kept, and the rows behind it are in no set."""
    kept = sets(1, 5, size)
    mask = SamplingMask.of(kept).over(wider)
    assert mask.vocabulary == wider
    assert torch.equal(mask.dropped()[:, :size], ~kept)
    assert bool(mask.dropped()[:, size:].all())
    assert torch.equal(mask.counts(), kept.sum(-1))


@pytest.mark.checklist(46)
def test_no_sets_in_a_narrower_vocabulary():
    with pytest.raises(ValueError, match="sets of 9 tokens do not fit in 8"):
        SamplingMask.of(torch.ones(1, 9, dtype=torch.bool)).over(8)
