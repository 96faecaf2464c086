"""Adapters: which layers they may sit on, and that the saved policy is the one in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from model_types import logits_of, tiny_network
from proxlm.config import LoraSettings, ModelSettings
from proxlm.errors import ConfigError, ModelError
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora, reference_active
from proxlm.models.forward import token_outputs
from proxlm.models.load import language_model_of, load_language_model
from proxlm.models.save import ADAPTER_FOLDER, save_language_model
from proxlm.types import Sequences

TOKENS = [5, 9, 30, 7, 40, 41, 3, 8, 77]
LLAMA = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "one": ["v_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "embedding": ["embed_tokens"],
    "head": ["lm_head"],
    "both ends": ["embed_tokens", "lm_head"],
    "every linear": [],
    "everything": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "embed_tokens",
        "lm_head",
    ],
}
TARGETS = {
    "llama": LLAMA,
    "qwen2": {"every linear": [], "embedding": ["embed_tokens"]},
    "gemma2": {
        "attention": LLAMA["attention"],
        "every linear": [],
        "embedding": ["embed_tokens"],
        "head": ["lm_head"],
    },
    "gpt2": {"attention": ["c_attn", "c_proj"], "mlp": ["c_fc"], "every linear": [], "embedding": ["wte"]},
    "gpt_neox": {"attention": ["query_key_value"], "every linear": [], "head": ["lm_head"]},
    "bloom": {"attention": ["query_key_value"], "every linear": [], "embedding": ["word_embeddings"]},
    "opt": {
        "attention": ["q_proj", "out_proj"],
        "mlp": ["fc1"],
        "embedding": ["embed_tokens"],
    },
    "mixtral": {"attention": LLAMA["attention"], "every linear": []},
    "cohere": {"every linear": [], "head": ["lm_head"]},
    "phi3": {"attention": ["qkv_proj"], "mlp": ["gate_up_proj"]},
    "t5": {
        "attention": ["q", "k", "v", "o"],
        "every linear": [],
        "head": ["lm_head"],
        "embedding": ["shared"],
    },
}
# Targets whose weight another layer has as well, if the model is tied.
ENDS = {"embed_tokens", "lm_head", "wte", "word_embeddings", "shared"}
CASES = [
    pytest.param(kind, tied, targets, id=f"{kind}-{'tied' if tied else 'untied'}-{name}")
    for kind, sets in TARGETS.items()
    for tied in (True, False)
    for name, targets in sets.items()
]


def model_of(tokenizer, kind, tied, **settings):
    network = tiny_network(kind, tokenizer, tie_word_embeddings=tied)
    return language_model_of(network, tokenizer, ModelSettings(policy=kind, device="cpu", **settings))


def trained(model, std=0.2):
    """As after some training: every adapter does something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in model.trainable():
            p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model


def loaded(folder, **settings):
    return load_language_model(ModelSettings(policy=str(folder), device="cpu", **settings))


def close(found, wanted):
    return float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize(("kind", "tied", "targets"), CASES)
def test_the_saved_policy_is_the_one_in_memory_or_the_target_is_refused(
    tokenizer, tmp_path, kind, tied, targets
):
    model = model_of(tokenizer, kind, tied)
    bare = logits_of(model.network, TOKENS)
    shared = model.network.get_input_embeddings().weight is model.network.get_output_embeddings().weight
    alias = kind == "t5" and "shared" in targets  # encoder's and decoder's are the same
    if (shared and ENDS & set(targets)) or alias:
        with pytest.raises(
            ConfigError, match=r"model\.lora\.targets = .* shares its weight with .*leave it out"
        ):
            add_lora(model, LoraSettings(rank=2, targets=targets))
        # The caller's network is as it was.
        assert torch.equal(logits_of(model.network, TOKENS), bare)
        assert all(p.requires_grad for p in model.network.parameters())
        return
    model = trained(add_lora(model, LoraSettings(rank=2, targets=targets)))
    wanted = logits_of(model.network, TOKENS)
    assert not close(wanted, bare)
    save_language_model(model, tmp_path)
    assert torch.equal(logits_of(model.network, TOKENS), wanted)
    merged = loaded(tmp_path)
    assert close(logits_of(merged.network, TOKENS), wanted)
    # Our own passes see the adapters as the model's own forward does.
    rows = Sequences.from_lists([TOKENS[:3], TOKENS[:5]], [TOKENS[3:], TOKENS[5:]])
    with torch.no_grad():
        ours, theirs = token_outputs(model, rows).logprobs, token_outputs(merged, rows).logprobs
    assert float((ours - theirs).abs().max()) < 1e-3


@pytest.mark.parametrize("targets", [t for t in LLAMA.values() if t])
def test_every_adapter_learns(tokenizer, targets):
    """Each target has parameters that learn, a gradient reaches them, and nothing else learns."""
    model = add_lora(model_of(tokenizer, "llama", False), LoraSettings(rank=2, targets=targets))
    names = [name for name, _ in model.trainable()]
    assert all(any(f"{target}.lora_" in name for name in names) for target in targets)
    assert {id(p) for p in model.network.parameters() if p.requires_grad} == {
        id(p) for _, p in model.trainable()
    }
    trained(model)
    rows = Sequences.from_lists([TOKENS[:3]], [TOKENS[3:]])
    token_outputs(model, rows).logprobs.sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for _, p in model.trainable())


def test_a_layer_whose_weight_is_used_past_its_forward_is_refused(tokenizer):
    """In Jamba's Mamba blocks some weights are read directly: adapters beside them would do nothing there."""
    with pytest.raises(ModelError, match="adapters on model type jamba give logits that differ by"):
        add_lora(model_of(tokenizer, "jamba", True), LoraSettings(rank=2))
    add_lora(model_of(tokenizer, "jamba", True), LoraSettings(rank=2, targets=["gate_proj"]))


def test_a_layer_that_cannot_have_adapters_is_refused(tokenizer):
    with pytest.raises(ModelError, match="a layer with adapters cannot run"):
        add_lora(model_of(tokenizer, "phimoe", True), LoraSettings(rank=2))


def test_a_model_that_has_adapters_already_is_refused(tokenizer):
    network = tiny_network("llama", tokenizer)
    get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="a model with PEFT adapters; pass what its merge_and_unload"):
        language_model_of(network, tokenizer, ModelSettings(policy="mine", device="cpu"))


@pytest.fixture
def base(tokenizer, tmp_path):
    network = tiny_network("llama", tokenizer)
    network.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def peft_adapter(base, folder, std=0.2, **settings):
    """An adapter as another trainer saves it; returns its logits."""
    import peft

    network = AutoModelForCausalLM.from_pretrained(base)
    kind = settings.pop("kind", "LoraConfig")
    if kind == "LoraConfig":
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    adapted = get_peft_model(network, getattr(peft, kind)(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * std)
    adapted.eval().save_pretrained(folder)
    return logits_of(network, TOKENS)


KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "alpha and rank patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "head of its own": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding of its own": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "biases": {"bias": "all"},
    "loha": {"kind": "LoHaConfig", "r": 4, "target_modules": ["q_proj", "up_proj"]},
    "ia3": {
        "kind": "IA3Config",
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "oft": {"kind": "OFTConfig", "target_modules": ["q_proj"], "oft_block_size": 4, "r": 0},
}
CONTINUED = ("lora", "rslora", "dora", "alpha and rank patterns", "embedding and head")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        *((kind, False) for kind in KINDS),
        *((kind, True) for kind in KINDS if "own" in kind or "head" in kind),
    ],
)
def test_an_adapter_folder_is_merged_into_its_base(tokenizer, tmp_path, kind, tied):
    network = tiny_network("llama", tokenizer, tie_word_embeddings=tied)
    network.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    wanted = peft_adapter(tmp_path / "base", tmp_path / "adapter", **copy.deepcopy(KINDS[kind]))
    model = loaded(tmp_path / "adapter")
    assert model.adapters is None
    assert close(logits_of(model.network, TOKENS), wanted)
    assert not close(logits_of(network, TOKENS), wanted)
    assert all(p.requires_grad for p in model.network.parameters())
    save_language_model(model, tmp_path / "saved")
    assert close(logits_of(loaded(tmp_path / "saved").network, TOKENS), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_continued_or_refused_by_name(tokenizer, base, tmp_path, kind):
    wanted = peft_adapter(base, tmp_path / "adapter", **copy.deepcopy(KINDS[kind]))
    lora = LoraSettings(rank=4)
    if kind not in CONTINUED:
        with pytest.raises(
            (ModelError, ConfigError), match=r"model\.lora\.rank = 0 to merge it into its base"
        ):
            loaded(tmp_path / "adapter", lora=lora)
        return
    model = loaded(tmp_path / "adapter", lora=lora)
    assert close(logits_of(model.network, TOKENS), wanted)
    # The reference is the policy at its start, also after it has learnt.
    models = make_actor_critic(model, "adapter")
    rows = Sequences.from_lists([TOKENS[:3]], [TOKENS[3:]])
    with torch.no_grad():
        start = token_outputs(model, rows).logprobs
        assert torch.equal(models.reference_logprobs(rows, 1.0), start)
        learned = {id(p) for p in model.network.parameters() if p.requires_grad}
        for _, p in model.trainable():
            p.add_(0.05)
        after = logits_of(model.network, TOKENS)
        assert torch.equal(models.reference_logprobs(rows, 1.0), start)
        with reference_active(model):
            assert close(logits_of(model.network, TOKENS), wanted)
    assert not close(after, wanted)
    assert {id(p) for p in model.network.parameters() if p.requires_grad} == learned
    # And saved again: merged, and as an adapter that PEFT and we read.
    save_language_model(model, tmp_path / "saved")
    assert close(logits_of(loaded(tmp_path / "saved").network, TOKENS), after)
    again = loaded(tmp_path / "saved" / ADAPTER_FOLDER, lora=lora)
    assert torch.equal(logits_of(again.network, TOKENS), after)
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "saved" / ADAPTER_FOLDER
    )
    assert close(logits_of(theirs.get_base_model().eval(), TOKENS), after)


@pytest.mark.parametrize("targets", [[], ["q_proj"], ["embed_tokens"]])
def test_a_rank_beyond_every_matrix_is_refused_and_the_largest_is_named(tokenizer, targets):
    model = model_of(tokenizer, "llama", False)
    head = model.network.get_output_embeddings()
    sides = {
        name: min(module.weight.shape)
        for name, module in model.network.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and module is not head
        and (name.endswith(targets[0]) if targets else isinstance(module, torch.nn.Linear))
    }  # fmt: skip
    most = max(sides.values())
    with pytest.raises(
        ConfigError, match=rf"model\.lora\.rank = 1000000: must be at most {most}, .*matrix model"
    ):
        add_lora(model, LoraSettings(rank=10**6, targets=targets))
    assert not any("lora_" in name for name, _ in model.network.named_parameters())
    assert add_lora(model, LoraSettings(rank=most, targets=targets)).adapters is not None
