"""Documents on disk: the same parts, splits and tokens as texts in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.data import documents as documents_module
from proxlm.data import supervised
from proxlm.data import text as text_module
from proxlm.data.documents import Documents
from proxlm.data.on_disk import NumbersOnDisk
from proxlm.data.supervised import SFTExample, pretrain_blocks
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import DataError
from proxlm.train.supervised.batches import TokenBatches
from proxlm.train.supervised.examples import Examples

Write = Callable[..., str]
ROOT = Path(__file__).parents[2]
# Real text of both languages: Markdown, formulas, Chinese.
REAL = [(ROOT / name).read_text(encoding="utf-8")[:30_000] for name in ("docs/theory.md", "README.zh.md")]


@given(st.lists(st.text(st.characters() | st.sampled_from("\n  你")), max_size=5), st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_documents_and_their_parts_are_the_texts(texts: list[str], longest: int) -> None:
    documents = Documents(texts)
    assert len(documents) == len(texts)
    assert list(documents) == texts
    for i, text in enumerate(texts):
        parts = list(documents.parts(i, longest))
        assert "".join(parts) == text
        assert all(0 < len(part.encode("utf-8", "surrogatepass")) <= longest for part in parts)


@pytest.mark.parametrize("longest", [300, 1000, 4000])
def test_parts_have_the_tokens_of_the_whole(longest: int) -> None:
    documents = Documents(REAL)
    parts = [part for i in range(2) for part in documents.parts(i, longest)]
    assert len(parts) > sum(map(len, REAL)) / longest
    whole, made = train_tokenizer(REAL, 500, 64), train_tokenizer(parts, 500, 64)
    assert made.get_vocab() == whole.get_vocab()
    ids = [i for part in parts for i in made(part, add_special_tokens=False)["input_ids"]]
    assert ids == [i for text in REAL for i in whole(text, add_special_tokens=False)["input_ids"]]


def test_long_documents_give_the_same_blocks(
    monkeypatch: pytest.MonkeyPatch, stories: Any, chatml: Any
) -> None:
    texts = [*REAL, "short", "<|im_end|> is text here"]
    made = train_tokenizer(REAL, 500, 64)
    for tokenizer in (made, chatml, stories):
        monkeypatch.setattr(supervised, "_BYTES_AT_ONCE", 2**20)
        whole = pretrain_blocks(tokenizer, texts, 7)
        monkeypatch.setattr(supervised, "_BYTES_AT_ONCE", 2000)
        assert torch.equal(pretrain_blocks(tokenizer, texts, 7), whole)


@given(
    st.lists(st.text(st.sampled_from("ab\n 你é🙂"), min_size=2, max_size=80), min_size=1, max_size=3),
    st.floats(0.01, 0.3),
)
@settings(max_examples=100, deadline=None)
def test_the_split_does_not_depend_on_how_much_is_read_at_once(texts: list[str], share: float) -> None:
    before = documents_module._READ_AT_ONCE
    found = [[list(part) for part in Documents(texts).split(share, 3)]]
    try:
        documents_module._READ_AT_ONCE = 9
        found.append([list(part) for part in Documents(texts).split(share, 3)])
    finally:
        documents_module._READ_AT_ONCE = before
    assert found[0] == found[1]
    if len(texts) * share < 1:
        assert [a + b for a, b in zip(*found[0], strict=True)] == texts


def test_a_document_taken_away_leaves_its_place_to_the_next() -> None:
    documents = Documents(["one"])
    documents.append(["two ", "parts"])
    documents.drop_last()
    documents.append(["3"])
    assert list(documents) == ["one", "3"]
    assert list(documents.select([1, 0, 1])) == ["3", "one", "3"]
    assert sorted(documents.shuffled(0)) == ["3", "one"]
    with pytest.raises(DataError, match="one record cannot be split"):
        Documents(["x"]).split(0.9, 0)


def test_cleaning_in_parts_is_cleaning_the_whole(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = "\ufeffa\r\r\nb\r\x00\nc\r\n e\u0301\x07\n\n\u0301x\ry" + "你\u0300\n" * 50 + "end\r"
    path = write("a.txt", raw)
    (whole,) = read_texts([path], [])
    monkeypatch.setattr(text_module, "_CLEANED_AT_ONCE", 3)
    assert list(read_texts([path], [])) == [whole]
    assert whole.startswith("a\nb\nc\n é\n\n\u0301x\ny你")


def test_numbers_on_disk_come_back() -> None:
    for dtype, numbers in ((torch.int32, [0, -1, 2**31 - 1]), (torch.bool, [True, False, True])):
        stored = NumbersOnDisk(dtype)
        assert stored.tensor().tolist() == []
        stored.extend(numbers)
        stored.extend(iter(numbers * 100_000))
        assert len(stored) == 300_003
        tensor = stored.tensor()
        assert tensor.dtype == dtype
        assert tensor.tolist() == numbers * 100_001
        tensor[0] = 1  # in memory alone
        assert stored.tensor()[0] == numbers[0]


def rows() -> Iterator[SFTExample | None]:
    yield SFTExample((1, 2), (3, 4, 5), (True, False, True))
    yield None
    yield SFTExample((6,), (7,), (True,))


def test_examples_on_disk_by_hand() -> None:
    every = Examples.from_rows(rows())
    assert every.lengths.tolist() == [5, 0, 2]
    kept = every.select(range(3))
    assert len(kept) == 2
    sequences, mask = kept.batch([1, 0])
    assert sequences.tokens.tolist() == [6, 7, 1, 2, 3, 4, 5]
    assert sequences.tokens.dtype == torch.int64
    assert (sequences.offsets.tolist(), sequences.prompt_lengths.tolist()) == ([0, 2, 7], [1, 2])
    assert mask.tolist() == [True, True, False, True]
    with pytest.raises(DataError, match="no record that can be used is left"):
        every.select([1])
    blocks = Examples.from_blocks(torch.arange(6, dtype=torch.int32).view(2, 3))
    sequences, mask = blocks.batch([1])
    assert (sequences.tokens.tolist(), sequences.prompt_lengths.tolist()) == ([3, 4, 5], [1])
    assert mask.tolist() == [True, True]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_batches_keep_to_the_budget_and_deal_every_row_once(
    lengths: list[int], budget: int, seed: int
) -> None:
    examples = Examples.from_rows(SFTExample((0,), (0,) * (n - 1), (True,) * (n - 1)) for n in lengths)
    batches = TokenBatches(examples.lengths, budget, seed)
    dealt: list[list[int]] = []
    while batches.order.epoch < 2 or len(batches.order.pending):
        dealt.append(batches.next())
    ends = [i for i in range(len(dealt)) if sorted(chain(*dealt[: i + 1])) == list(range(len(lengths)))]
    assert ends  # the first epoch ends with a batch
    assert sorted(chain(*dealt)) == sorted([*range(len(lengths))] * 2)
    for batch in dealt:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
    for i, (batch, following) in enumerate(pairwise(dealt)):
        if i != ends[0]:
            assert sum(lengths[j] for j in [*batch, following[0]]) > budget
    again = TokenBatches(examples.lengths, budget, seed)
    again.skip(len(dealt) - 1)
    assert again.next() == dealt[-1]
