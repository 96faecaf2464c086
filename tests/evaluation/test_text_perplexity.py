"""Bits per byte of text: every token is predicted once, with the numbers of transformers' own forward."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import proxlm
from proxlm.config import load_config
from proxlm.data.documents import Documents
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError
from proxlm.evaluation.perplexity import evaluate_texts, ratio, windows
from proxlm.models.language_model import LanguageModel
from small_models import TEXTS, tiny_model
from story_model import STORIES, sentencepiece_tokenizer


@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_every_token_but_the_first_is_predicted_once(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    found = list(windows(tokens, window, stride))
    assert [i for part in found for i in range(part.predicted, part.end)] == list(range(1, tokens))
    assert all(0 < part.end - part.start <= window and part.start < part.predicted for part in found)
    for part in found[1:]:
        assert part.predicted - part.start == window - stride
        assert part.end - part.predicted <= stride


def by_transformers(model: LanguageModel, text: str, window: int, stride: int) -> tuple[float, int]:
    """The negative log-prob of a text and its tokens, as transformers' page on perplexity computes it."""
    body = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    first = model.tokenizer.bos_token_id
    ids = torch.tensor([[model.tokenizer.eos_token_id if first is None else first, *body]])
    total, before = 0.0, 1
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        part = ids[:, begin:end]
        with torch.no_grad():
            logprobs = model.network(input_ids=part, use_cache=False).logits.double().log_softmax(-1)
        chosen = logprobs[:, :-1].gather(-1, part[:, 1:, None])[0, :, 0]
        total -= float(chosen[before - begin - 1 :].sum())
        before = end
        if end == ids.shape[1]:
            break
    return total, len(body)


@pytest.mark.parametrize("make", [lambda: train_tokenizer(TEXTS * 20, 320, 64), sentencepiece_tokenizer])
@pytest.mark.parametrize(("window", "stride"), [(64, 32), (16, 15), (9, 4)])
def test_bits_per_byte_are_those_of_transformers(make: Any, window: int, stride: int) -> None:
    model = tiny_model(make())
    texts = [*STORIES[:4], TEXTS[3] * 3, "a"]
    found = evaluate_texts("m", model, Documents(texts), window, stride, micro_batch_tokens=100)
    wanted = [by_transformers(model, text, window, stride) for text in texts]
    for row, (nats, tokens), text in zip(found.responses, wanted, texts, strict=True):
        assert row["nats"] == pytest.approx(nats, rel=1e-5)
        assert (row["tokens"], row["bytes"]) == (tokens, len(text.encode()))
    nats, tokens = (sum(column) for column in zip(*wanted, strict=True))
    size = sum(len(text.encode()) for text in texts)
    means = found.means()
    assert means["text/bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert means["text/perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert means["text/bytes_per_token"] == pytest.approx(size / tokens)
    assert "text/changed_documents" not in means


def test_a_uniform_model_needs_the_bits_of_its_vocabulary() -> None:
    """So bits per byte of two tokenizers are on one scale: tokens per byte times log2 of the vocabulary."""
    for size in (300, 330):
        model = tiny_model(train_tokenizer(TEXTS * 20, size, 64))
        with torch.no_grad():
            model.network.get_output_embeddings().weight.zero_()
        found = evaluate_texts("m", model, Documents(TEXTS), 64, 32)
        rate = found.means()["text/bits_per_byte"]
        vocabulary = len(model.network.get_output_embeddings().weight)
        assert rate == pytest.approx(math.log2(vocabulary) / found.means()["text/bytes_per_token"], rel=1e-6)
        assert found.means()["text/perplexity"] == pytest.approx(vocabulary, rel=1e-5)


def test_the_interval_of_a_ratio_covers_it() -> None:
    draw = random.Random(0)
    inside = 0
    for _ in range(400):
        sizes = [draw.uniform(1, 5) for _ in range(40)]
        numbers = [size * 2 + draw.gauss(0, size) for size in sizes]
        found = ratio(numbers, sizes)
        assert found.mean == pytest.approx(sum(numbers) / sum(sizes))
        inside += found.low <= 2 <= found.high
    assert 0.92 <= inside / 400 <= 0.98
    assert ratio([3.0], [2.0]).low == 1.5
    equal = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert equal.low == pytest.approx(equal.high) == pytest.approx(2)


def test_a_tokenizer_that_loses_text_is_named() -> None:
    backend = Backend(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "</s>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    found = evaluate_texts("m", tiny_model(words), Documents(["the cat", "the dog"]), 16, 8)
    assert found.means()["text/changed_documents"] == 1
    assert [row["changed"] for row in found.responses] == [False, True]


def test_files_of_models_with_other_tokenizers(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(STORIES[:3]):
        (folder / f"{i}.txt").write_text(text)
    models = [tiny_model(train_tokenizer(TEXTS * 20, 320, 64)), tiny_model(sentencepiece_tokenizer())]
    config = load_config(
        "evaluate", overrides={"model.policy": "m", "perplexity.text": [str(folder)], "perplexity.window": 32}
    )
    first, second = proxlm.evaluate(models, config=config)
    assert (first.prompts, second.prompts) == (3, 3)
    assert [row["bytes"] for row in first.responses] == [row["bytes"] for row in second.responses]
    assert [row["tokens"] for row in first.responses] != [row["tokens"] for row in second.responses]
    assert {row["window"] for row in first.responses} == {32}
    seq2seq = tiny_model(train_tokenizer(TEXTS * 20, 320, 64, encoder_decoder=True), "t5")
    with pytest.raises(ConfigError, match="an encoder–decoder has no perplexity"):
        proxlm.evaluate([seq2seq], config=config)
    wide = load_config(
        "evaluate",
        overrides={"model.policy": "m", "perplexity.text": [str(folder)], "perplexity.window": 256},
    )
    with pytest.raises(ConfigError, match="longer than the context of 128"):
        proxlm.evaluate(models[:1], config=wide)


def test_intervals_of_two_documents_stay_where_numbers_can_be(tokenizer: Any) -> None:
    """One text that is foreseen and one that is not: Student's interval of two is far wider than their range."""
    texts = ["The cat sat on the mat and looked at the moon. " * 8, "处"]
    found = evaluate_texts("it", tiny_model(tokenizer), Documents(texts), 64, 32).metrics
    assert found["text/perplexity"].low >= 1.0
    assert all(
        found[name].low >= 0.0
        for name in ("text/bits_per_byte", "text/document_bits_per_byte", "text/bytes_per_token")
    )
