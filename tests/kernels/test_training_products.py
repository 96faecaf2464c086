"""LoRA in training passes: the derivatives of its formula, and sums over micro-batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from block_types import CONFIGS, model_of
from proxlm.config import LoraSettings
from proxlm.kernels.training_products import lora_product
from proxlm.models.adapters import add_lora
from proxlm.models.forward import response_states
from proxlm.models.language_model import LanguageModel
from proxlm.types import Sequences

BATCHES = [
    Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], [[3, 4, 5, 6], [7, 8], [1]]),
    Sequences.from_lists([[1, 1, 3], [4, 5, 6]], [[3, 4, 5, 6], [9, 9, 9, 1]]),
]


def summed(model: LanguageModel, before_each: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
    """Gradients of a fixed sum of the states of both batches."""
    draw = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        before_each()
        states, _ = response_states(model, batch)
        (states * torch.randn(states.shape, generator=draw)).sum().backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


def expect_sums(model: LanguageModel) -> dict[str, Tensor]:
    """Gradients of both batches, accumulated, are those of each of them added up; returns them."""
    found = summed(model)
    apart = list[dict[str, Tensor]]()

    def take() -> None:
        apart.append({n: p.grad.clone() for n, p in model.network.named_parameters() if p.grad is not None})
        model.network.zero_grad(set_to_none=True)

    model.network.zero_grad(set_to_none=True)
    apart.append(summed(model, take))
    parts = [part for part in apart if part]
    assert len(parts) == len(BATCHES)
    for key, tensor in found.items():
        total = sum(part[key] for part in parts if key in part)
        assert float((total - tensor).abs().max()) <= 2e-6 * max(1.0, float(tensor.abs().max())), key
    return found


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients_of_micro_batches_add_up(name: str, bfloat16: bool) -> None:
    found = expect_sums(model_of(name, bfloat16=bfloat16))
    assert any(float(tensor.abs().max()) > 0.1 for tensor in found.values())


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_gradients_of_adapters_add_up(name: str, bfloat16: bool) -> None:
    model = model_of(name, bfloat16=bfloat16)
    targets = ["c_attn", "c_fc"] if name == "gpt2" else ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = add_lora(model, LoraSettings(rank=3, alpha=6.0, targets=targets))
    with torch.no_grad():
        for key, p in model.network.named_parameters():
            if "lora_B" in key:
                p.normal_(std=0.3)
    assert all("lora_" in key for key in expect_sums(model))


def test_a_lora_product_has_the_derivatives_of_its_formula() -> None:
    torch.manual_seed(0)
    shapes = ((2, 5, 6), (4, 6), (3, 6), (4, 3))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *parts: lora_product(*parts, 0.7), leaves)
    x, weight, a, b = leaves
    torch.testing.assert_close(lora_product(*leaves, 0.7), x @ (weight + 0.7 * b @ a).T)


def test_an_adapter_is_two_small_products_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's own modules are not called, which make two more tensors of the output's size."""
    from peft.tuners.lora import Linear

    model = add_lora(model_of("llama"), LoraSettings(rank=3, alpha=6.0))
    monkeypatch.setattr(Linear, "forward", lambda *_, **__: pytest.fail("PEFT's forward"))
    assert summed(model)


def test_frozen_weights_get_no_gradient() -> None:
    model = model_of("llama")
    for name, p in model.network.named_parameters():
        p.requires_grad_("layers.1" in name and "up_proj" not in name)
    found = expect_sums(model)
    assert all("layers.1" in name and "up_proj" not in name for name in found)
