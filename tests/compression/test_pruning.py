"""Pruning: how much becomes 0, what stays of a smaller model, and that zeros stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from proxlm.compression.blocks import block_influence, without_blocks
from proxlm.compression.cost import distances
from proxlm.compression.magnitude import block_matrices, prune_magnitude, share_of_zeros, zeros_held
from proxlm.compression.structured import importance, kept_sizes, without_heads_and_channels
from proxlm.config import MagnitudeSettings, StructuredSettings
from proxlm.errors import ModelError
from small_models import TEXTS, tiny_model


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return tiny_model(tokenizer)


def logits(network: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.arange(20)[None] * 7 % 300 if ids is None else ids).logits


@pytest.fixture
def rows(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in TEXTS]


# --- magnitude ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_smallest_weights_of_each_matrix_become_0_and_no_others(tokenizer: Any, kind: str) -> None:
    network = tiny_model(tokenizer, kind).network
    before = {name: w.detach().clone() for name, w, _ in block_matrices(network)}
    outside = {name: p.detach().clone() for name, p in network.named_parameters() if name not in before}
    prune_magnitude(network, MagnitudeSettings(sparsity=0.3), "tiny")
    for name, w, _ in block_matrices(network):
        zeros = w == 0
        assert int(zeros.sum()) == int(0.3 * w.numel())
        assert before[name][zeros].abs().max() <= before[name][~zeros].abs().min()
        assert torch.equal(w[~zeros], before[name][~zeros])
    assert all(torch.equal(p, outside[n]) for n, p in network.named_parameters() if n in outside)


def test_over_the_whole_model_matrices_of_small_weights_lose_more(model: Any) -> None:
    small = model.network.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        small.mul_(0.01)
    prune_magnitude(model.network, MagnitudeSettings(sparsity=0.2, scope="model"), "tiny")
    weights = [w for _, w, _ in block_matrices(model.network)]
    total = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == int(0.2 * total)
    assert int((small == 0).sum()) == small.numel()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_two_of_four_neighbours_along_the_inputs_stay(tokenizer: Any, kind: str) -> None:
    network = tiny_model(tokenizer, kind).network
    prune_magnitude(network, MagnitudeSettings(pattern="2:4"), "tiny")
    for _, w, turned in block_matrices(network):
        groups = (w.T if turned else w).reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all()


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_zeros_stay_0_through_training_and_the_rest_learns(model: Any, rows: Any, name: str) -> None:
    from proxlm.config import OptimiserSettings
    from proxlm.train.common.optimiser import Optimiser

    network = model.network.requires_grad_(True)
    prune_magnitude(network, MagnitudeSettings(sparsity=0.5), "tiny")
    before = {n: w.detach().clone() for n, w, _ in block_matrices(network)}
    optimiser = Optimiser(list(network.named_parameters()), OptimiserSettings(name=name, lr=1e-2))
    with zeros_held(network):
        for step in range(3):
            ids = torch.tensor([rows[0]])
            network(input_ids=ids, labels=ids).loss.backward()
            optimiser.step(step, 3)
    for n, w, _ in block_matrices(network):
        assert torch.equal(w == 0, before[n] == 0)
        assert not torch.equal(w, before[n])
    network(input_ids=ids, labels=ids).loss.backward()
    optimiser.step(0, 1)
    assert share_of_zeros(network) < 0.01, "only inside the block are they held"


# --- blocks ---


def test_influence_is_one_minus_the_cosine_and_a_block_that_does_nothing_has_none(
    tokenizer: Any, rows: Any
) -> None:
    network = tiny_model(tokenizer, "qwen3").network
    with torch.no_grad():
        for part in (network.model.layers[0].self_attn.o_proj, network.model.layers[0].mlp.down_proj):
            part.weight.zero_()
    first, second = block_influence(network, rows, "tiny")
    assert first == pytest.approx(0.0, abs=1e-12)
    states = [
        network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0].detach()
        for ids in rows
    ]
    after = []
    network.model.layers[1].register_forward_hook(
        lambda _m, _i, out: after.append((out[0] if isinstance(out, tuple) else out)[0])
    )
    for ids in rows:
        logits(network, torch.tensor([ids]))
    cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in zip(states, after, strict=True)])
    assert second == pytest.approx(1 - float(cosines.mean()), abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_without_a_block_that_does_nothing_the_logits_stay(tokenizer: Any, kind: str) -> None:
    network = tiny_model(tokenizer, kind).network
    blocks = network.transformer.h if kind == "gpt2" else network.model.layers
    ends = (
        (blocks[0].attn.c_proj, blocks[0].mlp.c_proj)
        if kind == "gpt2"
        else (blocks[0].self_attn.o_proj, blocks[0].mlp.down_proj)
    )
    with torch.no_grad():
        for part in ends:
            part.weight.zero_()
            if getattr(part, "bias", None) is not None:
                part.bias.zero_()
    smaller = without_blocks(network, [0], "tiny")
    assert smaller.config.num_hidden_layers == 1
    assert torch.allclose(logits(smaller), logits(network), atol=1e-6)
    with pytest.raises(ModelError, match=r"has 2 blocks; blocks.drop must leave one"):
        without_blocks(network, [0, 1], "tiny")


# --- heads and channels ---


def grouped(tokenizer: Any, kind: str) -> Any:
    """A model with 4 heads of queries and 2 of keys and values, 64 channels."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.mul_(4.0) if p.dim() == 2 else p.add_(0.1 if name.endswith("bias") else 0.0)
    return network


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_heads_and_channels_that_do_nothing_are_found_and_can_go(
    tokenizer: Any, rows: Any, kind: str
) -> None:
    network = grouped(tokenizer, kind)
    gone = torch.arange(0, 64, 2)
    with torch.no_grad():
        for place, layer in enumerate(network.model.layers):
            group = place % 2  # another one in each block
            layer.self_attn.o_proj.weight[:, group * 16 : group * 16 + 16] = 0.0
            layer.mlp.down_proj.weight[:, gone] = 0.0
    found = importance(network, rows, "tiny")
    for place, (heads, channels) in enumerate(found):
        group = place % 2
        assert heads.view(2, 2)[group].tolist() == [0.0, 0.0]
        assert heads.view(2, 2)[1 - group].min() > 0
        assert not channels[gone].any()
        assert channels[gone + 1].min() > 0
    smaller = without_heads_and_channels(network, found, StructuredSettings(heads=0.5, channels=0.5), "tiny")
    config = smaller.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 32)
    assert torch.allclose(logits(smaller), logits(network), atol=1e-5)
    _, kl, same = distances(network, smaller, rows)
    assert kl < 1e-9
    assert same == 1.0


def test_importance_is_the_first_order_change_of_the_loss(tokenizer: Any, rows: Any) -> None:
    """Of one text of two tokens only the first predicts, so it is |d loss| for a gate at that place."""
    network = grouped(tokenizer, "llama")
    ids = rows[0][:2]
    (heads, channels), _ = importance(network, [ids], "tiny")

    def loss(part: Any, index: slice, gate: float) -> float:
        with torch.no_grad():
            kept = part.weight[:, index].clone()
            part.weight[:, index] *= gate
            found = -logits(network, torch.tensor([ids]))[0, 0].double().log_softmax(-1)[ids[1]]
            part.weight[:, index] = kept
        return float(found)

    def slope(part: Any, index: slice, step: float = 1e-2) -> float:
        return abs(loss(part, index, 1 + step) - loss(part, index, 1 - step)) / (2 * step)

    layer = network.model.layers[0]
    for head in range(4):
        found = slope(layer.self_attn.o_proj, slice(head * 8, head * 8 + 8))
        assert float(heads[head]) * 2 == pytest.approx(found, rel=2e-2, abs=1e-4)
    for channel in range(0, 64, 9):
        found = slope(layer.mlp.down_proj, slice(channel, channel + 1))
        assert float(channels[channel]) * 2 == pytest.approx(found, rel=2e-2, abs=1e-4)


def test_other_types_are_refused_by_name(tokenizer: Any, rows: Any) -> None:
    with pytest.raises(ModelError, match="model type gpt2; heads and channels are left out of llama"):
        importance(tiny_model(tokenizer, "gpt2").network, rows, "tiny")


@pytest.mark.parametrize(
    ("groups", "channels", "settings", "kept"),
    [
        (3, 1536, StructuredSettings(heads=0.3, channels=0.3), (2, 1088)),
        (1, 64, StructuredSettings(heads=0.9, channels=0.9), (1, 32)),
        (4, 172, StructuredSettings(heads=0.5, channels=0.25), (2, 129)),
        (8, 64, StructuredSettings(heads=0.3, channels=0.0), (6, 64)),
        (4, 64, StructuredSettings(heads=0.6, channels=0.0), (2, 64)),
    ],
)
def test_what_stays_is_a_multiple_of_32_where_it_was_one(
    groups: int, channels: int, settings: Any, kept: Any
) -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(
        num_key_value_heads=groups,
        num_attention_heads=3 * groups,
        intermediate_size=channels,
        hidden_size=576,
    )
    assert kept_sizes(config, settings) == kept


# --- what it costs ---


def test_distances_are_perplexity_kl_and_agreement(model: Any, tokenizer: Any, rows: Any) -> None:
    other = tiny_model(tokenizer, seed=1).network
    perplexity, kl, same = distances(model.network, other, rows)
    nats, divergences, agreed = [], [], []
    for ids in rows:
        p, q = (
            logits(n, torch.tensor([ids]))[0, :-1].double().log_softmax(-1) for n in (model.network, other)
        )
        nats.append(-q.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0])
        divergences.append((p.exp() * (p - q)).sum(-1))
        agreed.append(p.argmax(-1) == q.argmax(-1))
    assert perplexity == pytest.approx(float(torch.cat(nats).mean().exp()), rel=1e-5)
    assert kl == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-5)
    assert same == pytest.approx(float(torch.cat(agreed).double().mean()))
    assert distances(model.network, model.network, rows)[1] == 0.0
