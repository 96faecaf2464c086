"""Loading, building, adapting and saving models; what is wrong with one is said in a line."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxlm.config import LoraSettings, ModelSettings, NewModelSettings
from proxlm.errors import ConfigError, ModelError
from proxlm.models.actor_critic import ValueHead, make_actor_critic
from proxlm.models.adapters import add_lora, reference_active
from proxlm.models.agreement import check_forward
from proxlm.models.forward import micro_batches, pad_right, response_states, token_outputs
from proxlm.models.load import (
    build_language_model,
    load_language_model,
    resolve_device,
)
from proxlm.models.save import save_language_model
from proxlm.types import Sequences
from small_models import TEXTS, tiny_model


@pytest.fixture
def saved(tokenizer, tmp_path):
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    return tmp_path / "model"


def batch():
    return Sequences.from_lists([[3, 4, 5], [6], [7, 8]], [[9], [10, 11, 12], [13, 14]])


@pytest.mark.checklist(32)
def test_padding_by_hand():
    padded, place = pad_right(batch())
    assert padded.tolist() == [[3, 4, 5, 9], [6, 10, 11, 12], [7, 8, 13, 14]]
    short = batch().select(torch.tensor([2, 1]))
    assert pad_right(Sequences.from_lists([[1, 2], [3]], [[4], [5]]))[0].tolist() == [[1, 2, 4], [3, 5, 0]]
    assert padded.flatten()[place].tolist() == batch().tokens.tolist()
    assert short.tokens.tolist() == [7, 8, 13, 14, 6, 10, 11, 12]


@pytest.mark.checklist(32)
def test_logprobs_are_those_of_the_models_own_forward(tokenizer):
    model, sequences = tiny_model(tokenizer), batch()
    with torch.no_grad():
        got = token_outputs(model, sequences, temperature=0.7, entropy=True)
        wanted, entropies = [], []
        for row, prompt in (([3, 4, 5, 9], 3), ([6, 10, 11, 12], 1), ([7, 8, 13, 14], 2)):
            logits = model.network(torch.tensor([row])).logits[0] / 0.7
            logp = torch.log_softmax(logits, -1)
            wanted += [float(logp[t - 1, row[t]]) for t in range(prompt, 4)]
            entropies += [float(-(logp[t - 1].exp() * logp[t - 1]).sum()) for t in range(prompt, 4)]
    assert got.logprobs.tolist() == pytest.approx(wanted, abs=1e-5)
    assert got.entropy is not None
    assert got.entropy.tolist() == pytest.approx(entropies, abs=1e-5)


def test_states_of_the_first_response_token_and_of_the_end(tokenizer):
    model = tiny_model(tokenizer)
    with torch.no_grad():
        states, final = response_states(model, batch())
        own = model.trunk(torch.tensor([[6, 10, 11, 12]])).last_hidden_state[0]
    assert torch.allclose(states[1:4], own[:3], atol=1e-6)
    assert torch.allclose(final[1], own[3], atol=1e-6)


def test_micro_batches_cover_rows_within_the_budget():
    lengths = torch.tensor([5, 1, 9, 3, 3, 30])
    groups = micro_batches(lengths, 12)
    assert sorted(i for g in groups for i in g.tolist()) == list(range(6))
    assert [g.tolist() for g in groups] == [[1, 3, 4], [0], [2], [5]]


def test_micro_batches_are_few_and_even():
    # 6 groups of 12 would do for 64 rows of 80 tokens; the last one would hold 4.
    sizes = [len(rows) for rows in micro_batches(torch.full((64,), 80), 1024)]
    assert sizes == [11, 11, 11, 11, 11, 9]
    # As many groups as when each takes all it can, with a smaller largest one.
    lengths = torch.tensor([10, 10, 10, 10, 20, 20])
    groups = micro_batches(lengths, 60)
    assert [[int(lengths[i]) for i in rows] for rows in groups] == [[10, 10, 10, 10], [20, 20]]
    assert micro_batches(torch.tensor([], dtype=torch.int64), 60) == []


@pytest.mark.checklist(11)
def test_value_head_starts_at_zero(tokenizer):
    models = make_actor_critic(tiny_model(tokenizer), "separate")
    assert models.values(batch()).tolist() == [0] * 6
    assert ValueHead(4)(torch.randn(3, 4)).tolist() == [0] * 3


def test_critics_share_or_do_not_share_weights(tokenizer):
    shared = make_actor_critic(tiny_model(tokenizer), "shared")
    separate = make_actor_critic(tiny_model(tokenizer), "separate")
    assert shared.shared
    assert not separate.shared
    assert {n for n, _ in shared.critic_parameters()} == {"head.linear.weight", "head.linear.bias"}
    policy = {p.data_ptr() for _, p in separate.policy_parameters()}
    critic = [p for n, p in separate.critic_parameters() if n.startswith("trunk")]
    assert critic
    assert not policy & {p.data_ptr() for p in critic}
    reference = separate.reference
    assert reference is not None
    assert not any(p.requires_grad for p in reference.network.parameters())


def test_saved_model_loads_with_transformers_and_with_us(tokenizer, saved):
    model = tiny_model(tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    ours = load_language_model(ModelSettings(policy=str(saved), device="cpu"))
    for name, value in model.network.state_dict().items():
        assert torch.equal(theirs[name], value)
        assert torch.equal(ours.network.state_dict()[name], value)
    assert AutoTokenizer.from_pretrained(saved)(TEXTS[3]).input_ids == tokenizer(TEXTS[3]).input_ids
    assert ours.turn_end.tokens == {tokenizer.eos_token_id}
    assert ours.context == 128


def test_lora_merges_into_an_ordinary_model(tokenizer, tmp_path, saved):
    model = add_lora(
        load_language_model(ModelSettings(policy=str(saved), device="cpu")), LoraSettings(rank=2)
    )
    with torch.no_grad():
        for name, p in model.trainable():
            if "lora_B" in name:
                p.normal_(std=0.3)
        adapted = token_outputs(model, batch()).logprobs
        with reference_active(model):
            bare = token_outputs(model, batch()).logprobs
        save_language_model(model, tmp_path / "merged")
        merged = load_language_model(ModelSettings(policy=str(tmp_path / "merged"), device="cpu"))
        assert torch.allclose(token_outputs(merged, batch()).logprobs, adapted, atol=1e-4)
        assert torch.equal(token_outputs(tiny_model(tokenizer), batch()).logprobs, bare)
        assert torch.equal(token_outputs(model, batch()).logprobs, adapted)
    assert not torch.allclose(adapted, bare, atol=1e-2)


def test_lora_names_its_target(tokenizer):
    model = tiny_model(tokenizer)
    adapted = add_lora(model, LoraSettings(rank=2, targets=["q_proj"]))
    assert all("q_proj" in name for name, _ in adapted.trainable())
    with pytest.raises(ConfigError, match=r"model\.lora\.targets = \['nothing'\]"):
        add_lora(tiny_model(tokenizer), LoraSettings(rank=2, targets=["nothing"]))


def test_new_models_have_the_asked_shape(tokenizer):
    new = NewModelSettings(type="qwen3", hidden=48, layers=3, heads=4, context=64, intermediate=80)
    config = build_language_model(new, tokenizer, ModelSettings(device="cpu")).network.config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (48, 3, 12)
    assert (config.intermediate_size, config.max_position_embeddings) == (80, 64)
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id
    with pytest.raises(ConfigError, match=r'new\.type = "lama"'):
        build_language_model(NewModelSettings(type="lama"), tokenizer, ModelSettings(device="cpu"))


def test_bfloat16_keeps_weights_and_logprobs_in_float32(tokenizer):
    model = tiny_model(tokenizer, precision="bfloat16")
    got = token_outputs(model, batch())
    assert got.logprobs.dtype == torch.float32
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    exact = token_outputs(tiny_model(tokenizer), batch()).logprobs
    assert 0 < float((got.logprobs - exact).abs().max().detach()) < 0.5


def test_a_model_that_changes_its_logits_is_refused(tokenizer):
    model = tiny_model(tokenizer)
    model.network.register_forward_hook(lambda m, a, output: setattr(output, "logits", output.logits * 2))
    with pytest.raises(ModelError, match="model type llama differ by"):
        check_forward(model)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r'^device = "abacus"'):
        resolve_device("abacus")


@pytest.mark.parametrize("damage", ["missing folder", "no weights", "no eos", "pickle only"])
def test_what_is_wrong_with_a_model_is_said_in_a_line(saved, damage):
    if damage == "missing folder":
        saved = saved / "not" / "here"
    elif damage == "no weights":
        (saved / "model.safetensors").unlink()
    elif damage == "pickle only":
        (saved / "model.safetensors").unlink()
        torch.save({}, saved / "pytorch_model.bin")
    else:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (saved / name).exists():
                config = json.loads((saved / name).read_text())
                (saved / name).write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    with pytest.raises(ModelError) as caught:
        load_language_model(ModelSettings(policy=str(saved), device="cpu"))
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "model_type",
    [
        "bamba",
        "cpmant",
        "dbrx",
        "dots3_note_text",
        "falcon",
        "fsmt",
        "llama4_text",
        "prophetnet",
        "reformer",
        "xlnet",
    ],
)
def test_a_new_model_of_a_type_that_cannot_be_one_is_refused_in_a_line(tokenizer, model_type):
    """By the type's own code, whatever it raises, or by the comparison with transformers."""
    new = NewModelSettings(type=model_type, hidden=32, layers=1, heads=4, context=64)
    with pytest.raises((ConfigError, ModelError), match=model_type) as caught:
        build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    assert len(str(caught.value)) <= 300
