"""A loaded model is trained as it was loaded: settings that ask for another one are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import proxlm
from proxlm.errors import ConfigError
from proxlm.models.source import ModelSource
from small_models import TEXTS
from test_public_api import SMALL, config, lengths


@pytest.fixture(scope="module")
def policy():
    return proxlm.new_model(TEXTS * 5, SMALL, proxlm.ModelSettings(device="cpu"))


ASKED = {
    "precision": ({"precision": "bfloat16"}, 'model.precision = "bfloat16": .* computes in float32'),
    "packed": ({"packed": True}, "model.packed = true: .* is not packed"),
    "save_dtype": ({"save_dtype": "bfloat16"}, 'model.save_dtype = "bfloat16": .* is saved in float32'),
    "device": ({"device": "meta"}, 'model.device = "meta": .* is on cpu'),
    "checkpointing": (
        {"activation_checkpointing": True},
        "model.activation_checkpointing = true: .* keeps all",
    ),
    "train_layers": ({"train_layers": 1}, "model.train_layers = 1: .* learns as a whole"),
    "freeze": ({"freeze": ["embed"]}, r'model.freeze = \["embed"\]: .* learns as a whole'),
    "lora": ({"lora": proxlm.LoraSettings(rank=4)}, "model.lora.rank = 4: .* has no adapters"),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_setting_that_asks_for_another_model_is_refused_by_name(policy, tmp_path, case) -> None:
    settings, message = ASKED[case]
    asked = replace(config(tmp_path), model=proxlm.ModelSettings(**settings))
    with pytest.raises(ConfigError, match=message):
        proxlm.PPOTrainer(policy, lengths, ["a"], asked)


@pytest.mark.parametrize("case", ["precision", "packed", "save_dtype", "checkpointing"])
def test_what_it_was_loaded_with_is_what_the_run_records(policy, tmp_path, case) -> None:
    ((name, value),) = ASKED[case][0].items()
    proxlm.save(policy, tmp_path / "model")
    settings = proxlm.ModelSettings(device="cpu", **{name: value})
    loaded = proxlm.load_model(tmp_path / "model", settings)
    for given in (settings, proxlm.ModelSettings()):
        assert getattr(ModelSource(given, loaded).settings, name) == value
    assert ModelSource(settings, loaded).load() is loaded


def test_adapters_of_another_rank_are_refused(policy, tmp_path) -> None:
    proxlm.save(policy, tmp_path / "model")
    settings = proxlm.ModelSettings(device="cpu", lora=proxlm.LoraSettings(rank=2))
    loaded = proxlm.load_model(tmp_path / "model", settings)
    assert ModelSource(settings, loaded).settings.lora.rank == 2
    with pytest.raises(ConfigError, match=r"model.lora.rank = 4: .* has adapters of rank 2"):
        ModelSource(proxlm.ModelSettings(lora=proxlm.LoraSettings(rank=4)), loaded)


LORA = proxlm.LoraSettings(rank=2, alpha=8.0)
# How it was loaded, what is asked of it then, and what is said; None: it is as asked.
PARTS = {
    "the same block": ({"train_layers": 1}, {"train_layers": 1}, None),
    "more blocks": ({"train_layers": 1}, {"train_layers": 2}, "train_layers = 2: .* other weights that learn"),
    "fewer blocks": ({"train_layers": 2}, {"train_layers": 1}, "train_layers = 1: .* other weights that learn"),
    "the same pattern": ({"freeze": ["*embed*"]}, {"freeze": ["*embed*"]}, None),
    "another pattern": ({"freeze": ["*embed*"]}, {"freeze": ["*mlp*"]}, "freeze = .* other weights that learn"),
    "a pattern in a block": ({"train_layers": 1}, {"freeze": ["*mlp*"]}, "freeze = .* other weights that learn"),
    "adapters on a block": ({"lora": LORA, "train_layers": 1}, {"lora": LORA, "train_layers": 1}, None),
    "adapters everywhere": (
        {"lora": LORA}, {"lora": LORA, "train_layers": 1}, "train_layers = 1: .* other weights that learn",
    ),
    "another alpha": (
        {"lora": LORA}, {"lora": proxlm.LoraSettings(rank=2, alpha=99.0)}, "alpha = 99.0: .* of alpha 8",
    ),
    "its alpha": ({"lora": LORA}, {"lora": proxlm.LoraSettings(rank=2)}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_another_part_than_the_one_that_learns_is_refused(tmp_path, case) -> None:
    loaded_with, asked, message = PARTS[case]
    policy = proxlm.new_model(TEXTS * 5, replace(SMALL, layers=3), proxlm.ModelSettings(device="cpu"))
    proxlm.save(policy, tmp_path / "model")
    loaded = proxlm.load_model(tmp_path / "model", proxlm.ModelSettings(device="cpu", **loaded_with))
    if message is None:
        assert ModelSource(proxlm.ModelSettings(**asked), loaded).load() is loaded
    else:
        with pytest.raises(ConfigError, match=message):
            ModelSource(proxlm.ModelSettings(**asked), loaded)


def test_a_policy_saved_in_bfloat16_is_saved_so_from_python_too(policy, tmp_path) -> None:
    proxlm.save(policy, tmp_path / "model")
    loaded = proxlm.load_model(tmp_path / "model", proxlm.ModelSettings(device="cpu", save_dtype="bfloat16"))
    run = proxlm.PPOTrainer(
        loaded, lengths, ["the cat", "a dog", "a bird", "the sun"], config(tmp_path, steps=1)
    ).train()
    from safetensors.torch import load_file

    kinds = {tensor.dtype for tensor in load_file(run.model / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert 'save_dtype = "bfloat16"' in (run.folder / "config.toml").read_text()
