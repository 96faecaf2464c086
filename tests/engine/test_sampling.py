"""Filters by hand, and sampling against the distribution it should have."""

from __future__ import annotations

import pytest
import torch

from proxlm.engine.sampling import Distribution, Kept, filter_logits, sample, sample_rows

P = torch.tensor([[0.1, 0.4, 0.3, 0.2]])


def kept(top_k=0, top_p=1.0, min_p=0.0, p=P):
    return (filter_logits(p.log(), top_k, top_p, min_p) > -torch.inf).tolist()


@pytest.mark.checklist(34)
def test_filters_by_hand():
    assert kept() == [[True] * 4]
    assert kept(top_k=2) == [[False, True, True, False]]
    assert kept(top_k=9) == [[True] * 4]
    assert kept(top_p=0.7) == [[False, True, True, False]]
    assert kept(top_p=0.71) == [[False, True, True, True]]
    assert kept(top_p=0.01) == [[False, True, False, False]]
    assert kept(min_p=0.6) == [[False, True, True, False]]
    assert kept(min_p=0.99) == [[False, True, False, False]]
    # After top-k the two left have 4/7 and 3/7: 0.5 of that is the first alone.
    assert kept(top_k=2, top_p=0.5) == [[False, True, False, False]]


def test_filters_act_on_rows_apart():
    two = torch.cat([P, P.flip(-1)])
    assert kept(top_k=1, p=two) == [[False, True, False, False], [False, False, True, False]]


@pytest.mark.checklist(33)
@pytest.mark.checklist(34)
@pytest.mark.parametrize(
    ("distribution", "wanted"),
    [
        (Distribution(), [0.1, 0.4, 0.3, 0.2]),
        (Distribution(top_k=2), [0, 4 / 7, 3 / 7, 0]),
        (Distribution(temperature=0.5), [1 / 30, 16 / 30, 9 / 30, 4 / 30]),
    ],
)
def test_inverts_the_distribution_and_reports_its_logprob(distribution, wanted):
    """On an even grid of uniforms each token is taken exactly its share of times."""
    n = 3000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, logprobs = sample(P.log().expand(n, 4), grid, distribution)
    share = torch.bincount(tokens, minlength=4) / n
    assert share.tolist() == pytest.approx(wanted, abs=1.1 / n)
    assert logprobs.exp().tolist() == pytest.approx([wanted[t] for t in tokens.tolist()], abs=1e-6)


def test_the_ends_of_the_unit_interval():
    p = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    assert sample(p, torch.tensor([0.0]).double(), Distribution())[0].tolist() == [1]
    for top in (1 - 2**-53, 1.0):
        assert sample(p, torch.tensor([top], dtype=torch.float64), Distribution())[0].tolist() == [2]


def test_greedy_takes_the_likeliest_and_reports_its_plain_logprob():
    tokens, logprobs = sample(P.log(), torch.tensor([0.99]).double(), Distribution(temperature=0))
    assert tokens.tolist() == [1]
    assert float(logprobs.exp()) == pytest.approx(0.4)


@pytest.mark.parametrize("size", [4096, 4097, 10_000])  # one block, several, the last one full or not
def test_large_vocabularies_are_inverted_by_blocks(size):
    draw = torch.Generator().manual_seed(size)
    logits = torch.randn(200, size, generator=draw) * 3
    logits[:, ::3] = -torch.inf
    logits[:, -300:] = -torch.inf
    uniform = torch.rand(200, generator=draw, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    tokens, logprobs = sample(logits, uniform, Distribution())
    p = torch.softmax(logits.double(), -1)
    upper = p.cumsum(-1).gather(1, tokens[:, None])[:, 0]
    chosen = p.gather(1, tokens[:, None])[:, 0]
    assert bool((chosen > 0).all())
    # The uniform number lies in the token's own piece of [0, 1), but for the rounding of exponentials.
    assert float((uniform - upper).max()) < 1e-6
    assert float((upper - chosen - uniform).max()) < 1e-6
    torch.testing.assert_close(logprobs, chosen.log().float(), atol=2e-6, rtol=0)


@pytest.mark.checklist(34)
@pytest.mark.parametrize("size", [300, 10_000])
def test_rows_with_their_own_distributions_get_what_a_batch_of_their_kind_gets(size):
    """Bit for bit, for each row: the other rows' temperatures and filters do not matter."""
    draw = torch.Generator().manual_seed(size)
    logits, uniform = torch.randn(12, size, generator=draw) * 3, torch.rand(12, generator=draw).double()
    kinds = [
        Distribution(),
        Distribution(0),
        Distribution(0.7),
        Distribution(1.3, 5),
        Distribution(1, 0, 0.8, 0.01),
    ]
    mixed = [kinds[i % len(kinds)] for i in range(12)]
    tokens, logprobs = sample_rows(logits, uniform, mixed)
    for kind in kinds:
        alike_tokens, alike_logprobs = sample_rows(logits, uniform, [kind] * 12)
        rows = torch.tensor([distribution == kind for distribution in mixed])
        assert torch.equal(tokens[rows], alike_tokens[rows])
        assert torch.equal(logprobs[rows], alike_logprobs[rows])


@pytest.mark.checklist(34)
@pytest.mark.parametrize("size", [300, 10_000])
def test_what_the_filters_keep_and_its_probability(size):
    """The mass is that of the unfiltered softmax at the temperature, over the tokens that can be sampled."""
    draw = torch.Generator().manual_seed(size)
    logits, uniform = torch.randn(10, size, generator=draw) * 3, torch.rand(10, generator=draw).double()
    filtered = [Distribution(1.3, 5), Distribution(0.7, 0, 0.8), Distribution(1, 0, 1, 0.05)]
    kinds = [Distribution(), Distribution(0), *filtered]
    mixed = [kinds[i % 5] for i in range(10)]
    kept = Kept.empty(10, size, logits.device)
    sample_rows(logits, uniform, mixed, kept)
    for row, kind in enumerate(mixed):
        p = torch.softmax(logits[row].double() / (kind.temperature or 1), -1)
        assert float(kept.mass[row]) == pytest.approx(float(p[kept.sets[row]].sum()), abs=1e-6)
        alone = Kept.empty(1, size, logits.device)
        sample(logits[row : row + 1], uniform[row : row + 1], kind, alone)
        assert torch.equal(alone.sets[0], kept.sets[row])
        assert torch.equal(alone.mass[0], kept.mass[row])
    assert kept.mass[:2].tolist() == [1, 1]
    assert kept.sets[2].sum() == 5
    assert (
        float(kept.mass[3])
        >= 0.8
        > float(kept.mass[3] - torch.softmax(logits[3] / 0.7, -1)[kept.sets[3]].min())
    )
