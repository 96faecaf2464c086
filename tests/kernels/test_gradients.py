"""Gradients added where they are kept are those that autograd adds up."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from block_types import CONFIGS, model_of
from proxlm.config import LoraSettings
from proxlm.kernels.gradients import are_in_place, embedded, gradients_in_place
from proxlm.kernels.products import adapted, gated_mlp, projected
from proxlm.models.forward import response_states
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import add_lora
from proxlm.types import Sequences

BATCHES = [
    Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], [[3, 4, 5, 6], [7, 8], [1]]),
    Sequences.from_lists([[1, 1, 3], [4, 5, 6]], [[3, 4, 5, 6], [9, 9, 9, 1]]),
]


def summed(model: LanguageModel) -> dict[str, Tensor]:
    """Gradients of a fixed sum of the states of both batches."""
    draw = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        states, _ = response_states(model, batch)
        (states * torch.randn(states.shape, generator=draw)).sum().backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


def expect_the_same_in_place(model: LanguageModel) -> dict[str, Tensor]:
    """Sums in place against autograd's, which are returned."""
    plain = summed(model)
    model.network.zero_grad(set_to_none=True)
    with gradients_in_place():
        found = summed(model)
    assert found.keys() == plain.keys()
    for key, tensor in plain.items():
        assert float((found[key] - tensor).abs().max()) <= 2e-6 * max(1.0, float(tensor.abs().max())), key
    return plain


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_sums_over_micro_batches_are_those_of_autograd(name: str, bfloat16: bool) -> None:
    model = model_of(name, bfloat16=bfloat16)
    plain = expect_the_same_in_place(model)
    assert any(float(tensor.abs().max()) > 0.1 for tensor in plain.values())


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_sums_of_adapters_are_those_of_autograd(name: str, bfloat16: bool) -> None:
    model = model_of(name, bfloat16=bfloat16)
    targets = ["c_attn", "c_fc"] if name == "gpt2" else ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = add_lora(model, LoraSettings(rank=3, alpha=6.0, targets=targets))
    with torch.no_grad():
        for key, p in model.network.named_parameters():
            if "lora_B" in key:
                p.normal_(std=0.3)
    assert all("lora_" in key for key in expect_the_same_in_place(model))


def test_an_adapted_product_has_the_derivatives_of_its_formula() -> None:
    torch.manual_seed(0)
    shapes = ((2, 5, 6), (4, 6), (3, 6), (4, 3))
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *parts: adapted(*parts, 0.7), given)
    x, weight, a, b = given
    torch.testing.assert_close(adapted(*given, 0.7), x @ (weight + 0.7 * b @ a).T)


def test_an_adapter_is_two_small_products_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's own modules are not called, which make two more tensors of the output's size."""
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "forward", lambda *_, **__: pytest.fail("PEFT's forward"))
    model = add_lora(model_of("llama"), LoraSettings(rank=3, alpha=6.0))
    assert summed(model)


def test_what_is_frozen_gets_no_gradient() -> None:
    model = model_of("llama")
    for name, p in model.network.named_parameters():
        p.requires_grad_("layers.1" in name and "up_proj" not in name)
    found = expect_the_same_in_place(model)
    assert all("layers.1" in name and "up_proj" not in name for name in found)


@pytest.mark.parametrize("padding", [None, 3])
def test_embeddings(padding: int | None) -> None:
    torch.manual_seed(0)
    module, tokens = nn.Embedding(6, 4, padding_idx=padding), torch.tensor([[1, 3, 1], [5, 3, 3]])
    other, given = copy.deepcopy(module), torch.randn(2, 3, 4)
    with gradients_in_place():
        found = embedded(module, tokens)
    assert torch.equal(found, other(tokens))
    for _ in range(2):
        other(tokens).backward(given)
        with gradients_in_place():
            y = embedded(module, tokens)
        y.backward(given)
    assert module.weight.grad is not None
    assert torch.equal(module.weight.grad, other.weight.grad)
    assert float(module.weight.grad[1].abs().max()) > 0
    assert bool(module.weight.grad[3].any()) == (padding is None)


def test_products_have_the_derivatives_of_their_formulas() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, size, bias=False, dtype=torch.float64) for size in (4, 3, 6)]
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)

    def of(x: Tensor, *weights: Tensor) -> Tensor:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        return torch.cat(projected(x, *(layer.weight for layer in layers)), -1)

    assert torch.autograd.gradcheck(lambda a: of(a, *(layer.weight for layer in layers)), (x,))
    leaves = [layer.weight.detach().clone().requires_grad_() for layer in layers]
    given = [torch.randn(2, 5, len(leaf), dtype=torch.float64) for leaf in leaves]
    expected = torch.autograd.grad([F.linear(x, leaf) for leaf in leaves], leaves, given)
    for layer, leaf in zip(layers, leaves, strict=True):
        layer.weight = nn.Parameter(leaf.detach())
    torch.autograd.backward(projected(x, *(layer.weight for layer in layers)), given)
    for layer, gradient in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weight.grad, gradient)


def test_a_mlp_adds_to_what_is_there() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((8, 6), (8, 6), (6, 8))]
    x = torch.randn(5, 6)
    gated_mlp(x, *weights).sum().backward()
    once = [weight.grad.clone() for weight in weights if weight.grad is not None]
    with gradients_in_place():
        y = gated_mlp(x, *weights)
    y.sum().backward()
    for weight, gradient in zip(weights, once, strict=True):
        torch.testing.assert_close(weight.grad, 2 * gradient)


def test_it_ends_with_its_block_even_where_that_fails() -> None:
    def fails() -> None:
        with gradients_in_place():
            assert are_in_place()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert not are_in_place()
