"""New tokens: rows that are means, everything else as it was, and transformers loads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import proxlm
from proxlm.config import LoraSettings, ModelSettings, TokenizerSettings
from proxlm.data.tokenizer import decode, train_tokenizer
from proxlm.engine.agreement import check_engine
from proxlm.errors import ConfigError, ModelError
from proxlm.models.load import language_model_of
from proxlm.models.vocabulary import extend_vocabulary
from small_models import TEXTS, tiny_model

NEW = ["moonlight", "明月", " small dog"]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
@pytest.mark.parametrize("type", ["llama", "gpt2", "lstm", "t5", "bart"])
def test_each_new_row_is_the_mean_of_its_pieces(type: str, kind: str, tmp_path: Any) -> None:
    settings = TokenizerSettings(kind=kind, whole_han=0 if kind == "bpe" else 1)  # type: ignore[arg-type]
    tokenizer = train_tokenizer(TEXTS * 9, 330, 64, type in ("t5", "bart"), settings)
    model = tiny_model(tokenizer, type)
    network = model.network
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in NEW]
    before = network.get_input_embeddings().weight.detach().clone()
    head = network.get_output_embeddings().weight.detach().clone()
    size = len(tokenizer)
    assert extend_vocabulary(model, [*NEW, NEW[0], "a"]) == NEW
    after, of_head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    assert torch.equal(after[:size], before[:size])
    assert torch.equal(of_head[:size], head[:size])
    for i, ids in enumerate(pieces):
        assert tokenizer(NEW[i], add_special_tokens=False)["input_ids"] == [size + i]
        torch.testing.assert_close(after[size + i], before[ids].mean(0))
        torch.testing.assert_close(of_head[size + i], head[ids].mean(0))
    check_engine(model)
    proxlm.save(model, tmp_path / "model")
    again = proxlm.load_model(str(tmp_path / "model"))
    assert torch.equal(again.network.get_input_embeddings().weight, after)
    assert (
        decode(again.tokenizer, again.tokenizer("a 明月.", add_special_tokens=False)["input_ids"])
        == "a 明月."
    )


def test_an_untied_head_has_rows_of_its_own(tokenizer: Any, tmp_path: Any) -> None:
    new = proxlm.NewModelSettings(
        vocabulary=320, hidden=32, layers=1, heads=2, context=64, tie_embeddings=False
    )
    model = proxlm.new_model(TEXTS * 9, new, ModelSettings(device="cpu"))
    ids = model.tokenizer("明月", add_special_tokens=False)["input_ids"]
    extend_vocabulary(model, ["明月"])
    rows, head = model.network.get_input_embeddings().weight, model.network.get_output_embeddings().weight
    assert rows.data_ptr() != head.data_ptr()
    torch.testing.assert_close(head[-1], head[ids].mean(0))
    torch.testing.assert_close(rows[-1], rows[ids].mean(0))
    proxlm.save(model, tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(plain.get_output_embeddings().weight, head)
    assert AutoTokenizer.from_pretrained(tmp_path / "m").tokenize("明月") == ["明月"]


def test_rows_that_are_there_already_are_used(tokenizer: Any) -> None:
    model = tiny_model(train_tokenizer(TEXTS * 9, 300, 64))
    size = len(model.tokenizer)
    model.network.resize_token_embeddings(size + 20, mean_resizing=False)
    ids = model.tokenizer("明月", add_special_tokens=False)["input_ids"]
    extend_vocabulary(model, ["明月"])
    rows = model.network.get_input_embeddings().weight
    assert rows.shape[0] == size + 20
    torch.testing.assert_close(rows[size], rows[ids].mean(0))


def test_what_cannot_be_extended() -> None:
    model = tiny_model(train_tokenizer(TEXTS * 9, 300, 64))
    with pytest.raises(ConfigError, match="is empty"):
        extend_vocabulary(model, ["good", " "])
    settings = ModelSettings(device="cpu", lora=LoraSettings(rank=2))
    adapted = language_model_of(model.network, model.tokenizer, settings)
    with pytest.raises(ModelError, match="has adapters"):
        extend_vocabulary(adapted, ["good"])
