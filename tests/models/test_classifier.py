"""Classifiers to train: a head on the trunk of every kind of model, and what is saved of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from proxlm.config import LoraSettings, ModelSettings
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError, ModelError
from proxlm.models.classifier import Classifier, load_classifier, save_classifier
from proxlm.models.model_types import register_model_types
from proxlm.models.save import save_language_model
from proxlm.models.score_units import begin_at, units_of
from proxlm.models.source import ModelSource
from proxlm.train.supervised.labelled_texts import LabelledTexts, all_outputs, outputs_of
from small_models import TEXTS, tiny_model

DECODERS = ["llama", "gpt2", "qwen3", "lstm"]
OTHERS = ["bert", "distilbert", "roberta", "bart", "t5"]


@pytest.fixture(scope="module")
def tokenizers() -> dict[bool, Any]:
    return {two: train_tokenizer(TEXTS * 20, 300, 64, two) for two in (False, True)}


def saved(kind: str, tokenizers: dict[bool, Any], folder: Path) -> str:
    """A small random language model of the type, in a folder."""
    if kind in DECODERS:
        save_language_model(tiny_model(tokenizers[False], kind), folder)
        return str(folder)
    tokenizer = tokenizers[kind in ("bart", "t5")]
    sizes: dict[str, Any] = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        "bart": {
            "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        },
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    }  # fmt: skip
    special = {
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "decoder_start_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes[kind], **special)
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if kind in ("bart", "t5") else AutoModelForMaskedLM
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(path: str, labels: int = 1, **model: Any) -> Classifier:
    torch.manual_seed(1)
    return load_classifier(ModelSource(ModelSettings(policy=path, device="cpu", **model)), labels)


def texts_of(model: Classifier) -> LabelledTexts:
    rows = [list(model.tokenizer(text)["input_ids"]) for text in TEXTS]
    return LabelledTexts.of([(rows[:2], (0.0,), ()), (rows[2:], (0.0,), ())], 2)


@pytest.mark.parametrize("kind", [*DECODERS, *OTHERS])
def test_it_learns_is_saved_and_scores_the_same_in_transformers(kind, tokenizers, tmp_path):
    model = loaded(saved(kind, tokenizers, tmp_path / "start"))
    texts = texts_of(model)
    start = all_outputs(model, texts, 10**6)
    if kind in DECODERS:
        assert not start.any()  # a head of zeros
    parameters = [p for _, p in model.trainable()]
    optimiser = torch.optim.Adam(parameters, 5e-3)
    for _ in range(25):
        outputs = outputs_of(model, texts, [0, 1])
        loss = -torch.nn.functional.logsigmoid(outputs[:, 0, 0] - outputs[:, 1, 0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5
    save_classifier(model, tmp_path / "end")
    register_model_types()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "end").eval()
    with torch.no_grad():
        alone = [float(again(torch.tensor([texts.row(i, k)])).logits) for i in range(2) for k in range(2)]
    assert all_outputs(model, texts, 10**6).flatten().tolist() == pytest.approx(alone, abs=1e-4)
    more = loaded(str(tmp_path / "end"))  # a classifier keeps its head
    assert torch.allclose(all_outputs(more, texts, 10**6), all_outputs(model, texts, 10**6), atol=1e-5)


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", ["llama", "lstm", "gpt2", "bert", "roberta", "bart", "t5"])
def test_units_are_folded_into_what_is_saved_and_taken_out_again(kind, lora, tokenizers, tmp_path):
    """Saved: mean + scale × output, in transformers alone; the model itself is the same bits as before."""
    if lora:
        pytest.importorskip("peft")
        if kind == "lstm":
            pytest.skip("its layers take no adapters")
    more = {"lora": LoraSettings(rank=lora)} if lora else {}
    model = loaded(saved(kind, tokenizers, tmp_path / "start"), 2, **more)
    texts = texts_of(model)
    head, scores = model.output_layer, torch.tensor([[70.0, 0.1], [90.0, 0.5], [80.0, float("nan")]])
    units, wanted = units_of(scores, ["a", "b"], head.bias is not None)
    assert units.scale.tolist() == pytest.approx([200**0.5 / 3**0.5, 0.2])
    in_head = [80.0, 0.3] if head.bias is not None else [0.0, 0.0]
    assert units.mean.tolist() == pytest.approx(in_head)
    if head.bias is None:
        begin_at(model, *texts.batch([0, 1], model.pad_id), wanted)
        begun = units.in_units(all_outputs(model, texts, 10**6).flatten(0, 1))
        assert begun.mean(0).tolist() == pytest.approx([80.0, 0.3], rel=0.3)
    with torch.no_grad():
        for _, p in model.trainable():
            p.add_(0.1 * torch.randn_like(p))
    before = all_outputs(model, texts, 10**6)
    with units.folded_into(head):
        save_classifier(model, tmp_path / "end")
    assert torch.equal(all_outputs(model, texts, 10**6), before)
    again = loaded(str(tmp_path / "end"), 2)
    assert not again.new_head
    found = all_outputs(again, texts, 10**6)
    assert torch.allclose(found.double(), units.in_units(before), atol=2e-3, rtol=1e-4)
    units.taken_out_of(again.output_layer)
    assert torch.allclose(all_outputs(again, texts, 10**6), before, atol=2e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "bert", "distilbert", "roberta"])
def test_a_classifier_of_tokens_is_saved_and_the_same_in_transformers(kind, tokenizers, tmp_path):
    torch.manual_seed(1)
    source = ModelSource(ModelSettings(policy=saved(kind, tokenizers, tmp_path / "start"), device="cpu"))
    model = load_classifier(source, 2, per_token=True)
    assert model.new_head
    row = list(model.tokenizer(TEXTS[0])["input_ids"])
    texts = LabelledTexts.of([([row], (1.0, 0.0), (3, 5)), ([row[:4]], (1.0,), (2,))], 1)
    with torch.no_grad():
        for _, p in model.trainable():
            p.add_(0.1 * torch.randn_like(p))
    save_classifier(model, tmp_path / "end")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "end").eval()
    found = all_outputs(model, texts, 10**6)
    with torch.no_grad():
        alone = again(torch.tensor([row])).logits[0, [3, 5]]
        short = again(torch.tensor([row[:4]])).logits[0, 2]
    assert torch.allclose(found[0], alone, atol=1e-5)
    assert torch.allclose(found[1, 0], short, atol=1e-5)
    assert texts.targets([0, 1])[0].tolist() == [1.0, 0.0]
    assert texts.select([1]).targets([0]).tolist() == [[1.0]]
    source = ModelSource(ModelSettings(policy=str(tmp_path / "end"), device="cpu"))
    assert not load_classifier(source, 2, per_token=True).new_head


@pytest.mark.parametrize("kind", ["lstm", "bart"])
def test_types_without_a_classifier_of_tokens_are_refused(kind, tokenizers, tmp_path):
    source = ModelSource(ModelSettings(policy=saved(kind, tokenizers, tmp_path / "start"), device="cpu"))
    with pytest.raises(ModelError):
        load_classifier(source, 2, per_token=True)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_numbers_do_not_depend_on_the_passes(kind, tokenizers, tmp_path):
    model = loaded(saved(kind, tokenizers, tmp_path / "start"))
    with torch.no_grad():
        for _, p in model.trainable():
            p.add_(0.1 * torch.randn_like(p))
    texts = texts_of(model)
    assert torch.allclose(all_outputs(model, texts, 1), all_outputs(model, texts, 10**6), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_lora_learns_beside_the_trunk_and_is_merged_into_what_is_saved(kind, tokenizers, tmp_path):
    pytest.importorskip("peft")
    model = loaded(saved(kind, tokenizers, tmp_path / "start"), lora=LoraSettings(rank=2))
    learning = [name for name, _ in model.trainable()]
    assert any("lora_A" in name for name in learning)
    head = [name for name in learning if "lora_" not in name]
    assert head
    assert all(model.network.base_model_prefix + "." not in name for name in head)
    with torch.no_grad():
        for _, p in model.trainable():
            p.add_(0.2 * torch.randn_like(p))
    texts = texts_of(model)
    before = all_outputs(model, texts, 10**6)
    save_classifier(model, tmp_path / "end")
    assert torch.equal(all_outputs(model, texts, 10**6), before)  # saving changes nothing
    whole = loaded(str(tmp_path / "end"))
    assert torch.allclose(all_outputs(whole, texts, 10**6), before, atol=1e-4)
    assert not any("lora" in name for name, _ in whole.trainable())


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_only_the_top_blocks_and_the_head_learn(kind, tokenizers, tmp_path):
    model = loaded(saved(kind, tokenizers, tmp_path / "start"), train_layers=1)
    learning = [name for name, _ in model.trainable()]
    assert learning
    assert not any(".0." in name or "embed" in name for name in learning)
    assert any(".1." in name for name in learning)
    assert any(name.startswith(("score", "classifier")) for name in learning)


def test_several_outputs(tokenizers, tmp_path):
    path = saved("llama", tokenizers, tmp_path / "start")
    model = loaded(path, labels=3)
    assert all_outputs(model, texts_of(model), 10**6).shape == (2, 2, 3)


def test_what_cannot_be(tokenizers, tmp_path):
    path = saved("llama", tokenizers, tmp_path / "start")
    with pytest.raises(ConfigError, match="the trunk"):
        loaded(path, lora=LoraSettings(rank=2, targets=["nothing"]))
    with pytest.raises(ConfigError, match=r"model\.lora\.rank = 99: must be at most"):
        loaded(path, lora=LoraSettings(rank=99))
    with pytest.raises(ConfigError, match=r"model\.train_layers = 2"):
        loaded(path, train_layers=2)
    with pytest.raises(ModelError):
        loaded(str(tmp_path))
    network = AutoModelForSeq2SeqLM.from_pretrained(saved("t5", tokenizers, tmp_path / "t5"))
    with pytest.raises(ModelError, match="pass a classifier, a causal language model, or a folder"):
        load_classifier(ModelSource(ModelSettings(device="cpu"), network, tokenizers[True]))
