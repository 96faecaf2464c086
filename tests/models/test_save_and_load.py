"""A loaded model is the saved model: logits, ties, precision, generation config, tokenizer, file modes."""

from __future__ import annotations

import copy
import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from model_types import CAUSAL_TYPES, TWO_SIDED_TYPES, logits_of, tiny_network
from proxlm.config import ModelSettings
from proxlm.data.tokenizer import load_tokenizer
from proxlm.errors import ModelError
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import language_model_of, load_language_model
from proxlm.models.save import save_language_model
from proxlm.models.weights import read_network
from small_models import tiny_model

TOKENS = [5, 9, 30, 7, 40, 41, 3, 8, 77]


def loaded(folder, **settings):
    return load_language_model(ModelSettings(policy=str(folder), device="cpu", **settings))


def as_model(network, tokenizer, **more):
    return LanguageModel(network, tokenizer, torch.device("cpu"), **more)


@pytest.mark.parametrize("model_type", CAUSAL_TYPES + TWO_SIDED_TYPES)
def test_a_saved_model_gives_the_same_logits(tokenizer, tmp_path, model_type):
    network = tiny_network(model_type, tokenizer)
    wanted = logits_of(network, TOKENS)
    save_language_model(as_model(network, tokenizer), tmp_path)
    kind = AutoModelForSeq2SeqLM if network.config.is_encoder_decoder else AutoModelForCausalLM
    back = read_network(kind, str(tmp_path), "model")
    assert float((logits_of(back, TOKENS) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert float((wanted[0] - wanted[1]).abs().max()) > 1e-3
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_ties_made_or_cut_by_hand_are_kept(tokenizer, tmp_path, model_type, tied, declared):
    """The weights in memory decide, not what the configuration says of them."""
    network = tiny_network(model_type, tokenizer, tie_word_embeddings=declared)
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    head.weight = embedding.weight if tied else nn.Parameter(torch.randn(embedding.weight.shape) * 0.3)
    wanted = logits_of(network, TOKENS)
    save_language_model(as_model(network, tokenizer), tmp_path)
    back = loaded(tmp_path)
    assert torch.equal(logits_of(back.network, TOKENS), wanted)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(theirs, TOKENS), wanted)


@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5"])
def test_a_model_is_saved_in_the_precision_of_its_source(tokenizer, tmp_path, model_type, source):
    network = tiny_network(model_type, tokenizer).to(getattr(torch, source))
    network.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    model = loaded(tmp_path / "source", save_dtype="source")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    save_language_model(model, tmp_path / "saved")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "saved"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == getattr(torch, source)
        assert torch.equal(after[name], tensor)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == source
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    # By default as in memory.
    save_language_model(loaded(tmp_path / "source"), tmp_path / "plain")
    assert {t.dtype for t in load_file(tmp_path / "plain" / "model.safetensors").values()} == {torch.float32}


def test_a_weight_beyond_the_precision_is_not_saved_as_infinity(tokenizer, tmp_path, capsys):
    network = tiny_network("llama", tokenizer)
    with torch.no_grad():
        network.model.layers[0].mlp.down_proj.weight[0, 0] = 7e4
    save_language_model(as_model(network, tokenizer, save_dtype=torch.float16), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert float(weights["model.layers.0.mlp.down_proj.weight"][0, 0]) == 7e4
    assert "saved in float32" in capsys.readouterr().out


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_every_file_has_the_mode_that_the_umask_gives(tokenizer, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_language_model(tiny_model(tokenizer), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~umask}


def test_generation_config_and_chat_template_travel(tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    model.network.generation_config.update(
        temperature=0.6, top_p=0.9, do_sample=True, eos_token_id=[1, 7], repetition_penalty=1.1
    )
    save_language_model(model, tmp_path / "first")
    chat = AutoTokenizer.from_pretrained(tmp_path / "first")
    chat.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat.save_pretrained(tmp_path / "first")
    save_language_model(loaded(tmp_path / "first"), tmp_path / "second")
    back = loaded(tmp_path / "second")
    wanted = model.network.generation_config.to_dict()
    assert back.network.generation_config.to_dict() == wanted
    assert back.tokenizer.chat_template == chat.chat_template


def test_the_templates_own_end_of_a_turn_is_in_the_saved_generation_config(tokenizer, tmp_path):
    """A base model trained in a chat format: its turns end with the token that it learnt, elsewhere too."""
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    model = tiny_model(chat)
    end = chat.convert_tokens_to_ids("<|im_end|>")
    save_language_model(model, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [
        chat.eos_token_id,
        end,
    ]
    back = loaded(tmp_path)
    assert back.turn_end.tokens == model.turn_end.tokens == {chat.eos_token_id, end}
    assert (model.turn_end.own, back.turn_end.own, back.turn_end.default) == (end, end, end)


def test_a_generation_config_that_transformers_would_not_save_does_not_end_a_run_at_its_end(
    tokenizer, tmp_path
):
    """Llama 2's has a temperature without sampling. As it was loaded it is kept; changed, it is refused at once."""
    save_language_model(tiny_model(tokenizer), tmp_path / "first")
    file = tmp_path / "first" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.6, "do_sample": False}))
    model = loaded(tmp_path / "first")
    save_language_model(model, tmp_path / "second")
    assert json.loads((tmp_path / "second" / "generation_config.json").read_text())["temperature"] == 0.6
    network = tiny_network("llama", tokenizer)
    network.generation_config.temperature = 0.5
    with pytest.raises(ModelError, match="its generation config could not be saved again"):
        language_model_of(network, tokenizer, ModelSettings(policy="mine", device="cpu"))


@pytest.mark.parametrize("model_type", ["qwen2", "phi3", "internlm3", "nemotron"])
def test_the_tokenizer_is_the_saved_one_whatever_class_its_type_had_once(tokenizer, tmp_path, model_type):
    save_language_model(as_model(tiny_network(model_type, tokenizer), tokenizer), tmp_path)
    back = loaded(tmp_path).tokenizer
    for text in ("12 345 cats", "  two  spaces\n\n", "<|endoftext|> don't", "春眠不觉晓"):
        assert back(text).input_ids == tokenizer(text).input_ids
