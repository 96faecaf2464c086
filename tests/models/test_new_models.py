"""New models by name: the numbers that they begin with, their activation, their norms, and what of them learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from proxlm.config import (
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    PretrainConfig,
    SFTConfig,
    TextSettings,
    WordVectorSettings,
    validate,
)
from proxlm.errors import ConfigError
from proxlm.models.load import build_language_model, check_named_parts
from proxlm.models.save import save_language_model

TEXT = TextSettings(train=["a.txt"])


def build(tokenizer, type="llama", model=None, **new):
    torch.manual_seed(0)
    sizes = {"hidden": 96, "layers": 3, "heads": 4, "context": 64} | new
    return build_language_model(
        NewModelSettings(type=type, **sizes), tokenizer, model or ModelSettings(device="cpu")
    )


def matrices(model):
    """Linear layers as (name, matrix [out, in])."""
    for name, module in model.network.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            yield name, module.weight.detach()
        elif type(module).__name__ == "Conv1D":
            yield name, module.weight.detach().T


# Deviation of a matrix [out, in].
DEVIATIONS = {
    "normal": lambda out, into: 0.05,
    "xavier-uniform": lambda out, into: math.sqrt(2 / (into + out)),
    "xavier-normal": lambda out, into: math.sqrt(2 / (into + out)),
    "he-uniform": lambda out, into: math.sqrt(2 / into),
    "he-normal": lambda out, into: math.sqrt(2 / into),
}


@pytest.mark.parametrize("type", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", list(DEVIATIONS))
def test_matrices_have_the_deviation_of_their_name(tokenizer, type, name):
    model = build(tokenizer, type, initialisation=name, std=0.05)
    found = list(matrices(model))
    assert len(found) >= 4 * 3
    for key, matrix in found:
        expected = DEVIATIONS[name](*matrix.shape)
        assert float(matrix.std()) == pytest.approx(expected, rel=0.05), key
        assert abs(float(matrix.mean())) < 0.05 * expected, key
        if name.endswith("uniform"):  # within ±√3 deviations
            assert math.sqrt(3) * 0.97 < float(matrix.abs().max()) / expected <= math.sqrt(3) * 1.000001, key
        else:
            assert float(matrix.abs().max()) > 3 * expected, key
    assert float(model.network.get_input_embeddings().weight.detach().std()) == pytest.approx(0.05, rel=0.05)
    for key, p in model.network.named_parameters():
        if key.endswith("bias") and "relative" not in key:
            assert not p.any(), key


def test_each_gate_of_an_lstm_is_a_matrix_and_its_forget_gate_stays_open(tokenizer):
    model = build(tokenizer, "lstm", initialisation="xavier-uniform")
    for name, p in model.network.model.lstm.named_parameters():
        if p.dim() == 2:
            for gate in p.chunk(4):
                assert float(gate.detach().abs().max()) == pytest.approx(
                    math.sqrt(6 / (96 + 96)), rel=0.02
                ), name
    bias = model.network.model.lstm.bias_ih_l0
    assert bias[96:192].tolist() == [1.0] * 96
    assert not bias[:96].any()


@pytest.mark.parametrize(
    ("type", "number"), [("llama", 6), ("gpt2", 6), ("qwen3", 6), ("gpt_neox", 6), ("bart", 9)]
)
def test_what_adds_to_the_residual_stream_is_divided_by_the_root_of_its_number(tokenizer, type, number):
    """√(2 · layers) in a decoder; a block of BART's decoder adds three times."""
    plain = build(tokenizer, type, initialisation="normal")
    scaled = build(tokenizer, type, initialisation="normal", scale_residual=True)
    other = dict(matrices(scaled))
    ratios = {name: float((other[name] / matrix).mean()) for name, matrix in matrices(plain)}
    smaller = {name: ratio for name, ratio in ratios.items() if ratio < 0.99}
    in_decoder = {name: ratio for name, ratio in smaller.items() if "encoder." not in name}
    assert len(in_decoder) == number
    assert list(in_decoder.values()) == pytest.approx([1 / math.sqrt(number)] * number, rel=1e-5)
    assert all(abs(ratio - 1) < 1e-6 for name, ratio in ratios.items() if name not in smaller)


ACTIVATIONS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("type", ["llama", "gpt2", "t5", "bart"])
def test_the_activation_is_in_the_graph_and_in_the_saved_model(tokenizer, type, name, tmp_path):
    model = build(tokenizer, type, activation=name, layers=1)
    mlp = {"llama": "layers.0.mlp", "gpt2": "h.0.mlp", "t5": "DenseReluDense", "bart": "decoder.layers.0"}[
        type
    ]
    block = next(m for n, m in model.network.named_modules() if n.endswith(mlp))
    x, act = torch.randn(2, 3, 96), ACTIVATIONS[name]
    if type == "llama":
        expected = block.down_proj(act(block.gate_proj(x)) * block.up_proj(x))
    elif type == "gpt2":
        expected = block.c_proj(act(block.c_fc(x)))
    elif type == "t5":
        expected = block.wo(act(block.wi(x)))
    if type == "bart":
        assert torch.allclose(block.activation_fn(x), act(x), atol=1e-6)
    else:
        assert torch.allclose(block(x), expected, atol=1e-6)
    if type in ("gpt2", "t5"):  # what transformers makes of the saved configuration
        save_language_model(model, tmp_path)
        kind = AutoModelForSeq2SeqLM if type == "t5" else AutoModelForCausalLM
        again = kind.from_pretrained(tmp_path)
        block = next(m for n, m in again.named_modules() if n.endswith(mlp))
        assert torch.allclose(block.act(x), act(x), atol=1e-6)


def test_the_kind_of_activation_changes_training(tokenizer):
    ids = torch.arange(3, 23)[None]
    logits = [build(tokenizer, activation=name).network(ids).logits for name in ("silu", "tanh", "type")]
    assert torch.equal(logits[0], logits[2])  # llama's own is silu
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@pytest.mark.parametrize("type", ["llama", "gpt2", "gpt_neox"])
def test_norms_add_the_epsilon_that_was_asked_for(tokenizer, type):
    model = build(tokenizer, type, norm_eps=0.5)
    norms = [m for m in model.network.modules() if "norm" in builtin_name(m)]
    assert len(norms) == 3 * 2 + 1
    x = torch.randn(5, 96)
    for norm in norms:
        centred = x if type == "llama" else x - x.mean(-1, keepdim=True)
        assert torch.allclose(
            norm(x), centred / (centred.square().mean(-1, keepdim=True) + 0.5).sqrt(), atol=1e-5
        )


def builtin_name(module):
    return type(module).__name__.lower()


@pytest.mark.parametrize(
    ("type", "new", "message"),
    [
        ("bloom", {"activation": "relu"}, "new.activation: bloom has no activation to choose"),
        ("bart", {"norm_eps": 1e-3}, "new.norm_eps: bart has no ε to choose"),
        ("llamma", {"initialisation": "normal"}, 'new.type = "llamma": cannot be built'),
        ("mixtral", {"initialisation": "normal"}, "weights that are no linear layers"),
        (
            "lstm",
            {"initialisation": "normal", "scale_residual": True},
            "new.scale_residual: it is not known",
        ),
    ],
)
def test_what_a_type_does_not_have_is_refused(tokenizer, type, new, message):
    with pytest.raises(ConfigError, match=message):
        build(tokenizer, type, layers=1, **new)


def test_it_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"scratch\.activation: bloom has no"):
        check_named_parts(NewModelSettings(type="bloom", activation="relu"), "scratch")
    check_named_parts(NewModelSettings(activation="relu", norm_eps=1e-3))
    for new in ({"activation": "relu"}, {"norm_eps": 0.1}):
        with pytest.raises(ConfigError, match=r"lstm has none"):
            validate(PretrainConfig(new=NewModelSettings(type="lstm", **new), text=TEXT))


@pytest.mark.parametrize(
    ("settings", "learns"),
    [({"train_layers": 1}, ".layers.2."), ({"freeze": ["*embed*", "*.mlp.*", "*norm*"]}, "self_attn")],
)
def test_a_part_of_a_new_model_learns(tokenizer, settings, learns):
    model = build(tokenizer, model=ModelSettings(device="cpu", **settings))
    names = [name for name, _ in model.trainable()]
    assert names
    assert all(learns in name for name in names)
    everything = [name for name, _ in build(tokenizer).trainable()]
    assert names == [name for name in everything if learns in name]


def test_sections_of_new_models_say_what_cannot_be():
    def refused(config, message):
        with pytest.raises(ConfigError, match=message):
            validate(config)

    vectors = {"file": "a.vec", "train": "cbow"}
    for make in (
        lambda new: PretrainConfig(new=new, text=TEXT),
        lambda new: SFTConfig(scratch=new, text=TEXT),
    ):
        refused(make(NewModelSettings(embeddings=WordVectorSettings(**vectors))), "not both")
        refused(make(NewModelSettings(embeddings=WordVectorSettings(freeze=True))), "tie_embeddings = false")
        refused(make(NewModelSettings(embeddings=WordVectorSettings(std=1.0))), "scales word vectors")
        refused(make(NewModelSettings(embeddings=WordVectorSettings(window=3))), "has no effect")
        refused(make(NewModelSettings(std=0.5)), "std = 0.5: has no effect with")
    refused(
        PretrainConfig(text=TEXT, optim=OptimiserSettings(rates={"*": -1.0})),
        r"optim\.rates.*must be more",
    )
    refused(
        PretrainConfig(text=TEXT, optim=OptimiserSettings(name="lbfgs", weight_decay=0, layer_decay=0.5)),
        "one step for all weights",
    )
