"""Folders of PEFT adapters as policies: where the base is, and what is refused, by name."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_types import logits_of, tiny_network
from proxlm.config import LoraSettings, ModelSettings, RewardSettings
from proxlm.errors import ConfigError, ModelError
from proxlm.models.actor_critic import critic_from, make_actor_critic
from proxlm.models.load import load_language_model
from proxlm.models.source import ModelSource
from proxlm.rewards import build_reward
from small_models import tiny_model

TOKENS = [5, 9, 30, 7, 40]


@pytest.fixture
def adapter(tokenizer, tmp_path):
    """An adapter of rank 4 beside its base, which it names by its path."""
    tiny_network("llama", tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(network, settings)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def loaded(folder, **lora):
    return load_language_model(ModelSettings(policy=str(folder), device="cpu", lora=LoraSettings(**lora)))


def change(adapter, **settings):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_the_base_is_found_from_here_in_the_folder_and_beside_it(adapter, tmp_path, monkeypatch):
    wanted = logits_of(loaded(adapter).network, TOKENS)
    assert not torch.equal(wanted, logits_of(loaded(tmp_path / "base").network, TOKENS))
    change(adapter, base_model_name_or_path="base")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert torch.equal(logits_of(loaded(adapter).network, TOKENS), wanted)  # beside it
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits_of(loaded("adapter").network, TOKENS), wanted)  # from here
    monkeypatch.chdir(elsewhere)
    shutil.move(tmp_path / "base", adapter / "base")
    assert torch.equal(logits_of(loaded(adapter).network, TOKENS), wanted)  # in it


def test_configuration_and_tokenizer_are_the_bases_where_the_adapter_has_none(adapter, tokenizer):
    source = ModelSource(ModelSettings(policy=str(adapter), device="cpu"))
    assert source.context == 64
    assert source.tokenizer.get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(adapter)
    template = adapter / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    assert loaded(adapter).tokenizer.chat_template == template.read_text()


@pytest.mark.parametrize("rank", [0, 4])
def test_the_same_policy_merged_and_continued(adapter, rank):
    model = loaded(adapter, rank=rank)
    assert (model.adapters is None) == (rank == 0)
    merged = loaded(adapter)
    assert torch.allclose(logits_of(model.network, TOKENS), logits_of(merged.network, TOKENS), atol=1e-4)
    names = [name for name, _ in model.trainable()]
    assert len(names) == (2 * 2 * 2 if rank else len(list(merged.network.parameters())))


SETTINGS = {
    "no such folder": (
        {"base_model_name_or_path": "/not/here"},
        'on the base "/not/here", which is not there',
    ),
    "no base": ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
    "a type of tomorrow": ({"peft_type": "MAGIC"}, "peft_type MAGIC, which PEFT .* does not know"),
    "a setting of tomorrow": (
        {"use_magic": True},
        "with the setting use_magic, which PEFT .* does not know; update",
    ),
    "other targets": ({"target_modules": ["k_proj", "v_proj"]}, r"missing: .*k_proj.*unknown: .*q_proj"),
    "other rank": ({"r": 2}, r"of another shape: .*do its settings and its base"),
    "targets that are not there": ({"target_modules": ["w1"]}, "does not fit its base"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_fit_are_named(adapter, case):
    settings, message = SETTINGS[case]
    change(adapter, **settings)
    with pytest.raises(ModelError, match=message) as raised:
        loaded(adapter)
    assert str(adapter) in str(raised.value)


def test_weights_that_do_not_fit_are_named(adapter):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    for changed, message in (
        ({name: t for name, t in weights.items() if name != first}, "missing: "),
        ({**weights, "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, "unknown: "),
        ({**weights, first: weights[first][:, :-1].clone()}, "of another shape: "),
    ):
        save_file(changed, file)
        for rank in (0, 4):
            with pytest.raises(ModelError, match=message):
                loaded(adapter, rank=rank)
    file.unlink()
    with pytest.raises(ModelError, match=r"with no weights; adapter_model\.safetensors is needed"):
        loaded(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelError, match="with only pickled weights, which can run code"):
        loaded(adapter)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"base_model_name_or_path": 7}'])
def test_a_configuration_that_is_none(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match="a PEFT adapter"):
        loaded(adapter)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_configuration_that_is_a_pipe(adapter):
    (adapter / "adapter_config.json").unlink()
    os.mkfifo(adapter / "adapter_config.json")
    with pytest.raises(ModelError, match="not a regular file"):
        loaded(adapter)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 8}, r"model\.lora\.rank = 8: the adapter in .* has 4"),
        ({"rank": 4, "alpha": 32.0}, r"model\.lora\.alpha = 32\.0: the adapter in .* has 8"),
        ({"rank": 4, "targets": ["k_proj"]}, r"model\.lora\.targets: the adapter in .* has its own"),
    ],
)
def test_settings_other_than_the_adapters_are_refused(adapter, lora, message):
    with pytest.raises(ConfigError, match=message):
        loaded(adapter, **lora)


def test_its_own_settings_may_be_given(adapter):
    assert loaded(adapter, rank=4, alpha=8.0, targets=["v_proj", "q_proj"]).adapters is not None


def test_a_folder_that_is_both_is_refused(adapter, tmp_path):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(tmp_path / "base" / name, adapter)
    with pytest.raises(ModelError, match="holds both a whole model and a PEFT adapter"):
        loaded(adapter)


def test_the_config_of_the_base_beside_the_adapter_makes_no_difference(adapter, tmp_path):
    wanted = logits_of(loaded(adapter).network, TOKENS)
    shutil.copy(tmp_path / "base" / "config.json", adapter)
    assert torch.equal(logits_of(loaded(adapter).network, TOKENS), wanted)


def test_an_adapter_on_an_adapter_is_refused(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "second")
    change(tmp_path / "second", base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="which is an adapter, where a whole model is needed"):
        loaded(tmp_path / "second")
    change(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="which is an adapter, where a whole model is needed"):
        loaded(adapter)


def test_prompts_that_are_learnt_cannot_be_merged(adapter, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(network, settings).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelError, match="of type PROMPT_TUNING, which cannot be merged"):
        loaded(tmp_path / "prompt")
    with pytest.raises(ModelError, match="of type PROMPT_TUNING; only LORA can be continued"):
        loaded(tmp_path / "prompt", rank=4)


def test_an_adapter_is_no_reward_model_and_no_critic(adapter, tokenizer):
    with pytest.raises(ModelError, match="a PEFT adapter, where a whole model is needed"):
        build_reward(RewardSettings(use="reward_model", args={"path": str(adapter)}))
    with pytest.raises(ModelError, match="a PEFT adapter, where a whole model is needed"):
        critic_from(make_actor_critic(tiny_model(tokenizer), "separate"), str(adapter))


def test_an_adapter_of_a_base_with_another_tokenizer_is_refused(adapter, tokenizer, tmp_path):
    """The same shapes, other tokens: ids would mean something else to the base."""
    tokenizer.save_pretrained(adapter)
    assert loaded(adapter) is not None
    file = adapter / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=r"its tokenizer is not that of the base .*: 2 tokens differ"):
        loaded(adapter)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).unlink()
    assert loaded(adapter) is not None  # the base has none: the adapter's is the only one
