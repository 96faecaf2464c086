"""Which weights learn: the top blocks, or all but what patterns name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from proxlm.config import DataSettings, LoraSettings, ModelSettings, PPOConfig, RewardSettings, validate
from proxlm.errors import ConfigError
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.frozen import freeze, frozen_blocks
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from small_models import tiny_model


def learning(model):
    return {name for name, p in model.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("llama", "layers.1."),
        ("gpt2", ".h.1."),
        ("gpt_neox", "layers.1."),
        ("opt", "layers.1."),
        ("t5", "decoder.block.1."),
    ],
)
def test_the_top_block_learns_and_nothing_else(tokenizer, family, part):
    model = tiny_model(tokenizer, family)
    freeze(model.network, 1)
    names = {name for name, _ in model.network.named_parameters() if part in name}
    assert learning(model) == names
    assert names
    assert frozen_blocks(model) == (1 if family in ("llama", "gpt2") else 0)


@pytest.mark.parametrize(
    ("patterns", "below"),
    [
        (["*embed_tokens*", "*.layers.0.*"], 1),
        (["*.layers.0.*"], 0),  # the embeddings learn
        (["*embed_tokens*"], 0),
        (["*embed_tokens*", "*layernorm*", "*.self_attn.*"], 0),
        (["*embed_tokens*", "*.layers.*"], 1),  # the final norm alone learns; the last block runs again
    ],
)
def test_patterns(tokenizer, patterns, below):
    model = tiny_model(tokenizer)
    everything = learning(model)
    freeze(model.network, patterns=patterns)
    assert learning(model) < everything
    assert any("embed_tokens" in name for name in learning(model)) != ("*embed_tokens*" in patterns)
    assert frozen_blocks(model) == below


def test_adapters_sit_on_the_top_blocks_alone(tokenizer):
    model = add_lora(tiny_model(tokenizer), LoraSettings(rank=2), train_layers=1)
    names = [name for name, _ in model.trainable()]
    assert len(names) == 2 * 7
    assert all("layers.1." in name for name in names)
    assert frozen_blocks(model) == 1
    chosen = add_lora(
        tiny_model(tokenizer), LoraSettings(rank=2, targets=["q_proj", "mlp.up_proj"]), train_layers=1
    )
    assert len(chosen.trainable()) == 2 * 2
    everywhere = add_lora(tiny_model(tokenizer), LoraSettings(rank=2))
    assert frozen_blocks(everywhere) == 0


def test_the_adapter_of_a_critic_counts_as_learning(tokenizer):
    model = add_lora(tiny_model(tokenizer), LoraSettings(rank=2), train_layers=1)
    make_actor_critic(model, "adapter")
    assert frozen_blocks(model) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train_layers": 2}, "model.train_layers = 2: the model has 2 blocks"),
        ({"train_layers": 9}, "set it to fewer, or to 0"),
        ({"patterns": ["layers.7.*"]}, 'model.freeze: "layers.7.*" fits no weight'),
        ({"patterns": ["*"]}, "leaves no weight that learns"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer, arguments, words):
    with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
        freeze(tiny_model(tokenizer).network, **arguments)


def test_no_target_in_the_top_blocks_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="no layer nothing in the top 1 blocks"):
        add_lora(tiny_model(tokenizer), LoraSettings(rank=2, targets=["nothing"]), train_layers=1)


def test_freeze_with_adapters_is_refused_before_a_model_is_loaded():
    model = ModelSettings(policy="x", freeze=["*"], lora=LoraSettings(rank=2))
    with pytest.raises(ConfigError, match=r"with model\.lora nothing but the adapters learns"):
        validate(PPOConfig(model=model, data=DataSettings(prompts="x"), reward=RewardSettings(use="length")))


@torch.no_grad()
def test_a_loaded_model_has_the_settings(tokenizer, tmp_path):
    save_language_model(tiny_model(tokenizer), tmp_path)
    model = load_language_model(ModelSettings(policy=str(tmp_path), device="cpu", train_layers=1))
    assert model.frozen_blocks == 1
    assert {name.split(".layers.")[1][0] for name in learning(model)} == {"1"}
    adapted = load_language_model(
        ModelSettings(policy=str(tmp_path), device="cpu", train_layers=1, lora=LoraSettings(rank=2))
    )
    assert adapted.frozen_blocks == 1
    save_language_model(adapted, tmp_path / "trained")
    lora, again = LoraSettings(rank=2), str(tmp_path / "trained" / "adapter")
    further = ModelSettings(policy=again, device="cpu", lora=lora)
    for layers in (0, 1):
        continued = load_language_model(replace(further, train_layers=layers))
        assert [name for name, _ in continued.trainable()] == [name for name, _ in adapted.trainable()]
        assert continued.frozen_blocks == 1
    assert load_language_model(ModelSettings(policy=str(tmp_path), device="cpu")).frozen_blocks == 0
