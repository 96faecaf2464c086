"""Which rows a step learns: curriculum by length, mixtures by tokens, both; pure functions of seed and counters."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch

from proxlm.config import SupervisedSettings, TextSettings
from proxlm.config.mixture import mixture_problems, shares_of, source_names
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.supervised.batches import Curriculum, MixedBatches, Mixture, TokenBatches, batches_of


def lengths_of(count, seed=0):
    return torch.randint(1, 40, (count,), generator=torch.Generator().manual_seed(seed))


def test_without_a_curriculum_the_order_is_one_permutation_an_epoch():
    lengths = lengths_of(50)
    batches = TokenBatches(lengths, 60, 7)
    dealt = list(chain(*(batches.next() for _ in range(60))))
    for epoch in range(2):
        generator = torch.Generator().manual_seed(derive_seed(7, Purpose.EXAMPLES, epoch))
        assert dealt[50 * epoch : 50 * (epoch + 1)] == torch.randperm(50, generator=generator).tolist()


@pytest.mark.parametrize("start", [0.05, 0.3, 1.0])
def test_short_rows_come_first_and_their_share_grows_linearly(start):
    lengths, steps = lengths_of(200), 20
    curriculum = Curriculum(steps, start)
    batches, ordered = TokenBatches(lengths, 80, 3, curriculum), lengths.sort().values
    longest = []
    for step in range(steps):
        share = start + (1 - start) * step / steps
        assert curriculum.share(step) == pytest.approx(share)
        batch = batches.next()
        longest.append(int(lengths[batch].max()))
        allowed = sum(rank / 200 < share for rank in range(200))
        assert longest[-1] <= int(ordered[allowed - 1])
        assert len(set(batch)) == len(batch)
    if start < 0.5:
        assert max(longest[:3]) < max(longest[-5:])
    after = [batches.next() for _ in range(200)]
    first_epoch = list(chain(*after))[:200]
    assert sorted(first_epoch) == list(range(200))  # from here on, all rows, once an epoch


def test_under_a_curriculum_every_row_that_is_short_enough_comes_once_before_any_comes_again():
    lengths = torch.tensor([1, 2, 3, 4, 50, 60, 70, 80])
    batches = TokenBatches(lengths, 4, 0, Curriculum(10**6, 0.45))
    dealt = list(chain(*(batches.next() for _ in range(24))))
    assert set(dealt) == {0, 1, 2, 3}
    for i in range(0, len(dealt) - 3, 4):
        assert set(dealt[i : i + 4]) == {0, 1, 2, 3}


def mixture(shares, counts):
    source = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(9))
    return Mixture(tuple(f"s{i}" for i in range(len(counts))), source[order], tuple(shares))


@pytest.mark.parametrize("curriculum", [None, Curriculum(30, 0.2)])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_the_tokens_of_each_source_are_within_a_row_of_its_share(shares, curriculum):
    mixed = mixture(shares, [60, 7, 31][: len(shares)])
    lengths = lengths_of(len(mixed.source))
    batches = MixedBatches(lengths, 90, 1, mixed, curriculum)
    tokens, rows = [0] * len(shares), Counter()
    for _ in range(80):
        batch = batches.next()
        assert len(batch) == 1 or int(lengths[batch].sum()) <= 90
        for row in batch:
            tokens[int(mixed.source[row])] += int(lengths[row])
            rows[row] += 1
        for share, found in zip(shares, tokens, strict=True):
            assert abs(found - share * sum(tokens)) <= 2 * 39
    for i, name in enumerate(mixed.names):
        own = [rows[int(row)] for row in torch.nonzero(mixed.source == i)[:, 0]]
        if curriculum is None:  # each row was read as often as its source, or once less
            assert max(own) - min(own) <= 1
        size = int(lengths[mixed.source == i].sum())
        assert batches.read()[name] == pytest.approx(tokens[i] / size)


def test_a_source_that_repeats_has_another_order_each_time():
    mixed = Mixture(("a", "b"), torch.tensor([0] * 20 + [1] * 20), (0.5, 0.5))
    batches = MixedBatches(torch.ones(40, dtype=torch.int64), 8, 0, mixed)
    dealt = [row for row in chain(*(batches.next() for _ in range(10))) if row < 20]
    assert sorted(dealt[:20]) == sorted(dealt[20:40]) == list(range(20))
    assert dealt[:20] != dealt[20:40]


@pytest.mark.parametrize("kind", ["mixture", "curriculum", "both"])
def test_a_resume_draws_the_same_rows(kind):
    mixed = None if kind == "curriculum" else mixture((0.7, 0.3), [40, 9])
    train = SupervisedSettings(
        batch_tokens=70, curriculum_steps=0 if kind == "mixture" else 15, curriculum_start=0.2
    )
    lengths = lengths_of(49)
    whole = batches_of(lengths, train, 5, mixed)
    dealt = [whole.next() for _ in range(40)]
    for done in (1, 14, 15, 16, 31):
        again = batches_of(lengths, train, 5, mixed)
        again.skip(done)
        assert [again.next() for _ in range(40 - done)] == dealt[done:]
        assert again.read() == whole.read()
    assert [batches_of(lengths, train, 6, mixed).next() for _ in range(3)] != dealt[:3]


def test_shares_by_weights_and_by_temperature():
    text = TextSettings(train=["a/stories.txt", "b/poems.jsonl.gz"], weights={"stories": 3.0, "poems": 1.0})
    assert shares_of(text, [1, 1000]) == [0.75, 0.25]
    tempered = TextSettings(train=["a", "b"], temperature=2.0)
    assert shares_of(tempered, [100, 900]) == pytest.approx([0.25, 0.75])  # 10 : 30
    assert shares_of(TextSettings(train=["a", "b"], temperature=1e6), [1, 1000]) == pytest.approx(
        [0.5, 0.5], abs=1e-5
    )


def test_names_of_sources():
    paths = [
        "x/stories.txt",
        "poems.jsonl.gz",
        "folder/",
        "hf:owner/name",
        "reasoning-gym:chain_sum",
        ".hidden",
    ]
    assert source_names(paths) == ["stories", "poems", "folder", "name", "chain_sum", ".hidden"]


@pytest.mark.parametrize(
    ("settings", "key", "why"),
    [
        ({"train": ["a"], "weights": {"a": 1.0}}, "text.weights", "two entries"),
        ({"train": ["a", "x/a.txt"], "temperature": 2.0}, "text.temperature", "called a"),
        ({"train": ["a", "b"], "weights": {"a": 1.0}}, "text.weights", "each of a, b"),
        ({"train": ["a", "b"], "weights": {"a": 1.0, "b": 1.0, "c": 1.0}}, "text.weights", "each of a, b"),
        ({"train": ["a", "b"], "weights": {"a": 1.0, "b": 0.0}}, "text.weights.b", "more than 0"),
        (
            {"train": ["a", "b"], "weights": {"a": 1.0, "b": 1.0}, "temperature": 2.0},
            "text.temperature",
            "not with",
        ),
    ],
)
def test_a_mixture_that_cannot_be(settings, key, why):
    ((found, message),) = mixture_problems(TextSettings(**settings))
    assert found == key
    assert why in message


def test_no_mixture_has_no_problems():
    assert mixture_problems(TextSettings(train=["a", "a"])) == []
