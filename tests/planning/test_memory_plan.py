"""The plan's bytes against those of real tensors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from proxlm.config import LoraSettings, ModelSettings, OptimiserSettings, RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import Request, SamplingParams
from proxlm.models.actor_critic import actor_critic_of
from proxlm.models.forward import response_states
from proxlm.planning.memory import Share, activations, kv_bytes, learning_parts, logit_bytes, memory_of
from proxlm.planning.shape import Shape, shape_of
from proxlm.planning.work import MOMENTS, Work
from proxlm.train.common.optimiser import Optimiser
from proxlm.types import Sequences
from small_models import tiny_model


def bytes_of(tensors: Any) -> int:
    """Of the storages, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def shape(**sizes: Any) -> Shape:
    given = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
    return shape_of(LlamaConfig(**given, num_attention_heads=4, **sizes), "tiny")


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("critic", ["separate", "shared", "adapter"])
@pytest.mark.parametrize("type", ["llama", "qwen3", "gpt2"])
def test_weights_and_moments_are_counted_exactly(tokenizer, type, critic, lora):
    if critic == "adapter" and not lora:
        pytest.skip("adapters need LoRA")
    settings = ModelSettings(critic=critic, lora=LoraSettings(rank=lora), device="cpu")
    model = tiny_model(tokenizer, type)
    sizes = shape_of(model.network.config, type)
    if lora:
        from proxlm.models.adapters import add_lora

        model = add_lora(model, settings.lora)
    models = actor_critic_of(model, settings)
    work = Work(sizes, sizes, critic=critic, rank=lora)
    assert work.of_policy == sum(p.numel() for _, p in models.policy_parameters())
    assert work.of_critic == sum(p.numel() for _, p in models.critic_parameters())
    networks = [models.policy.network, models.value_head, models.critic_trunk]
    networks += [] if models.reference is None else [models.reference.network]
    held = bytes_of(p for network in networks if network is not None for p in network.parameters())
    learning = [models.policy_parameters(), models.critic_parameters()]
    state = [Optimiser(named, OptimiserSettings()).state_tensors() for named in learning]
    steps = sum(4 for tensors in state for name in tensors if name.startswith("step."))
    moments = bytes_of(t for tensors in state for t in tensors.values()) - steps
    kept = memory_of(work).kept
    assert kept["moments"] == moments
    assert sum(kept.values()) - moments == held


@pytest.mark.parametrize("name", [name for name in MOMENTS if name not in ("adafactor", "lbfgs", "muon")])
def test_moments_of_every_optimiser(name):
    parameters = [("a", torch.nn.Parameter(torch.zeros(30, 20))), ("b", torch.nn.Parameter(torch.zeros(7)))]
    state = Optimiser(parameters, OptimiserSettings(name=name)).state_tensors().values()
    assert sum(t.numel() for t in state if t.numel() > 1) == MOMENTS[name] * 607


def test_keys_and_values_are_those_of_the_cache(tokenizer):
    model = tiny_model(tokenizer)
    sizes = shape_of(model.network.config, "tiny")
    engine = NativeEngine(model, RolloutSettings(batch_size=3))
    engine.submit(Request(i, [5, 6, 7, 8], SamplingParams(max_new_tokens=9)) for i in range(3))
    engine.step()
    cache = engine._scheduler.decoder.cache  # the only holder of these tensors
    assert bytes_of(cache.layers) == kv_bytes(sizes, rows=3, length=13)


def test_logits_stay_within_the_budget():
    small, large = shape(), replace(shape(), vocabulary=2**20)
    assert logit_bytes(small, 100, entropy=False) == 4 * 100 * 512
    assert logit_bytes(small, 100, entropy=True) == 2 * 4 * 100 * 512
    assert logit_bytes(large, 1e6, entropy=False) == 4 * 2**23


@pytest.mark.parametrize("sizes", [{}, {"num_key_value_heads": 2}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_a_pass_keeps(tokenizer, sizes, checkpointing):
    """Bytes of all tensors that autograd keeps, parameters left out; rows of one length."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        **sizes,
    )
    network = LlamaForCausalLM(config).eval()
    model = replace(tiny_model(tokenizer), network=network, activation_checkpointing=checkpointing)
    batch = Sequences.from_lists([[5] * 12] * 6, [[7] * 20] * 6)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        states, _ = response_states(model, batch)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    held = bytes_of([states, *(t for t in kept if t.untyped_storage().data_ptr() not in weights)])
    shape = shape_of(config, "tiny")
    work = Work(shape, shape, prompt=12, response=20, limit=20, checkpointing=checkpointing)
    planned = activations(shape, work, 6, own=True)
    if checkpointing:  # the plan has the block that is computed again in it
        planned -= activations(shape, replace(work, checkpointing=False), 6, own=True) / 3
    assert planned == pytest.approx(held, rel=0.15 if checkpointing else 0.03)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", (16, 64, 256)),
        ("response", (8.0, 32.0, 64.0)),
        ("pass_tokens", (512, 2048, 8192)),
        ("slots", (4, 16, 64)),
        ("rank", (2, 8, 32)),
        ("limit", (64, 128, 512)),
    ],
)
def test_memory_grows_with_every_size(field, values):
    # Rows are all in one pass, or those of a pass that holds fewer of the longer ones would need less.
    work = Work(shape(), shape(), responses=8 if field in ("prompt", "response") else 64, pass_tokens=4096)
    phases = [memory_of(replace(work, **{field: value})) for value in values]
    for less, more in pairwise(phases):
        assert sum(less.kept.values()) <= sum(more.kept.values())
        assert all(sum(less.phases[p].values()) <= sum(more.phases[p].values()) for p in less.phases)
    assert phases[0].phases != phases[-1].phases or phases[0].kept != phases[-1].kept


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"])
def test_memory_grows_with_the_model(name):
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
    found = []
    for times in (1, 2, 4):
        larger = shape_of(LlamaConfig(**{**sizes, name: sizes[name] * times}, num_attention_heads=4), "tiny")
        found.append(memory_of(Work(larger, larger)).peak)
    assert found == sorted(set(found))


def test_sharding_divides_what_learns_in_blocks_and_nothing_else():
    sizes = shape()
    work = Work(sizes, sizes)
    whole, half = memory_of(work).kept, memory_of(work, Share(2, sharded=True)).kept
    assert whole["policy"] - half["policy"] == 4 * sizes.blocks / 2
    assert whole["critic"] - half["critic"] == 4 * sizes.blocks / 2
    assert whole["moments"] - half["moments"] == 2 * (4 + 4) * sizes.blocks / 2
    assert half["reference"] == half["sampling copy"] == 4 * sizes.parameters


def test_gradients_are_as_large_as_what_learns():
    assert learning_parts({"policy": 3.0, "critic": 2.0}, 10.0, 3.0) == {
        "policy": 3.0, "critic": 2.0, "gradients": 5.0, "optimiser": 10.0, "reference": 3.0,
    }  # fmt: skip
    assert learning_parts({"policy": 3.0}, 0.0) == {"policy": 3.0, "gradients": 3.0}


def test_checkpointing_and_bf16_make_a_sharded_pass_smaller():
    sizes, half = shape(), Share(2, sharded=True)
    work = Work(sizes, sizes)
    plain, kept, low = (
        memory_of(one, half).phases["update"]
        for one in (work, replace(work, checkpointing=True), replace(work, bfloat16=True))
    )
    assert kept["activations"] < plain["activations"]
    assert low["gathered weights"] == plain["gathered weights"] * 3 / 4
    assert (
        activations(sizes, replace(work, checkpointing=True), 4, own=False)
        < activations(sizes, work, 4, own=False) / 1.5
    )
