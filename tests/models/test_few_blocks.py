"""A large model is compared with its first blocks, which hold one of each kind, and is whole afterwards."""

from __future__ import annotations

import pytest
import torch

from causal_types import sharp_network, small_config
from proxlm.config import ModelSettings
from proxlm.engine.agreement import check_engine
from proxlm.errors import ModelError
from proxlm.models import few_blocks as module
from proxlm.models.few_blocks import few_blocks
from proxlm.models.load import wrap


def blocks(network, **settings) -> list[int]:
    """How many blocks each stack of a network is left."""
    with few_blocks(network, large=0, **settings):
        return [len(m) for m in network.modules() if isinstance(m, torch.nn.ModuleList)]


@pytest.mark.parametrize(
    ("model_type", "settings", "wanted"),
    [
        ("llama", {"num_hidden_layers": 6}, [2]),
        ("gpt_neox", {"num_hidden_layers": 6}, [2]),
        (
            "gemma3_text",
            {"num_hidden_layers": 8, "sliding_window_pattern": 6},
            [6],
        ),  # the sixth sees everything
        ("deepseek_v3", {"num_hidden_layers": 7, "first_k_dense_replace": 3}, [4]),  # the fourth has experts
    ],
)
def test_one_of_each_kind_is_left(model_type, settings, wanted) -> None:
    network = sharp_network(small_config(model_type, **settings))
    names = [name for name, _ in network.named_parameters()]
    assert blocks(network)[:1] == wanted
    assert [name for name, _ in network.named_parameters()] == names
    with few_blocks(network) as cut:  # a small network
        assert not cut


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "olmo2", "gemma3_text", "mamba", "mixtral", "bloom"])
def test_a_large_model_is_compared_with_few_blocks(tokenizer, monkeypatch, model_type) -> None:
    monkeypatch.setattr(module, "LARGE", 0)
    network = sharp_network(small_config(model_type, num_hidden_layers=8, n_layer=8))
    ran: list[int] = []
    stack = max((m for m in network.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    stack[-1].register_forward_hook(lambda *_: ran.append(1))
    model = wrap(network, tokenizer, ModelSettings(policy=model_type, device="cpu"))
    check_engine(model)
    assert (model.agrees, model.cached) == ("engine", True)
    assert not ran
    network(torch.tensor([[5, 6, 7]]))
    assert ran


@pytest.mark.parametrize("model_type", ["xlnet", "bert", "xlm"])
def test_what_is_refused_is_refused_of_the_whole_model(tokenizer, monkeypatch, model_type) -> None:
    monkeypatch.setattr(module, "LARGE", 0)
    network = sharp_network(small_config(model_type, num_hidden_layers=4, n_layer=4))
    with pytest.raises(ModelError, match=f"model type {model_type}"):
        wrap(network, tokenizer, ModelSettings(policy=model_type, device="cpu"))
