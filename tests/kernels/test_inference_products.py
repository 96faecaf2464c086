"""Products with copied weights against the layers they were copied from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from proxlm.kernels import inference_products
from proxlm.kernels.inference_products import PACKED_SIZE, can_pack, inference_product
from proxlm.kernels.padded_row_counts import ROW_COUNTS, with_padded_rows

LARGE, SMALL = (384, 400), (8, 12)  # inputs, outputs: above and below the size that is packed


def layers(kind: str, inputs: int, outputs: int, bias: bool) -> list[nn.Module]:
    torch.manual_seed(0)
    if kind == "conv":
        made = [Conv1D(width, inputs) for width in (outputs, outputs // 2)]
        for layer in made:
            nn.init.normal_(layer.bias)
        return list(made)
    return [nn.Linear(inputs, width, bias=bias) for width in (outputs, outputs // 2)]


@torch.no_grad()
def wanted(modules: list[nn.Module], x: Tensor) -> Tensor:
    return torch.cat([copy.deepcopy(module).double()(x.double()) for module in modules], -1).float()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("size", [LARGE, SMALL])
@pytest.mark.parametrize(("kind", "bias"), [("linear", False), ("linear", True), ("conv", True)])
@torch.no_grad()
def test_it_is_what_the_layers_give(
    kind: str, bias: bool, size: tuple[int, int], packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packing:
        monkeypatch.setattr(inference_products, "can_pack", lambda *_: False)
    modules = layers(kind, *size, bias)
    product = inference_product(modules)
    assert product is not None
    for shape in (
        (1, size[0]),
        (1, 1, size[0]),
        (7, size[0]),
        (3, 5, size[0]),
        (8, 8, size[0]),
        (3, 100, size[0]),
        (1, size[0]),
    ):
        x = torch.randn(shape)
        torch.testing.assert_close(product(x), wanted(modules, x), atol=2e-5, rtol=0)


@pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this build of torch has no oneDNN"
)
@torch.no_grad()
def test_in_large_matrices_a_row_depends_on_no_other_row() -> None:
    (layer,) = layers("linear", *LARGE, False)[:1]
    assert layer.weight.numel() > PACKED_SIZE
    product, x = inference_product([layer]), torch.randn(64, LARGE[0])
    assert product is not None
    torch.testing.assert_close(product(x[:1]), wanted([layer], x[:1]), atol=2e-5, rtol=0)
    whole = product(x)
    for rows in (1, 2, 3, 17, 63):
        assert torch.equal(product(x[:rows]), whole[:rows])


@pytest.mark.parametrize("size", [LARGE, SMALL])
@torch.no_grad()
def test_the_weights_own_dtype_is_kept(size: tuple[int, int]) -> None:
    modules = [layer.double() for layer in layers("linear", *size, False)]
    product = inference_product(modules)
    assert product is not None
    for rows in (9, 9, 1):
        x = torch.randn(rows, size[0], dtype=torch.float64)
        torch.testing.assert_close(product(x), torch.cat([module(x) for module in modules], -1))


@pytest.mark.parametrize("size", [LARGE, SMALL])
@torch.no_grad()
def test_weights_rounded_to_bf16(size: tuple[int, int]) -> None:
    modules = layers("linear", *size, True)
    product = inference_product(modules, "bfloat16")
    assert product is not None
    x = torch.randn(9, size[0])
    rounded = [copy.deepcopy(module).bfloat16().float() for module in modules]
    for _ in range(2):
        found = product(x)
        assert found.dtype == torch.bfloat16
        expected = wanted(rounded, x.bfloat16().float())
        torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2**-7)


def test_layers_that_are_more_than_linear_are_left_to_themselves() -> None:
    plain = nn.Linear(4, 4)
    assert inference_product([plain, nn.Linear(4, 4, bias=False)]) is None
    assert inference_product([nn.Sequential(plain)]) is None
    assert inference_product([plain], "bfloat16") is not None


@torch.no_grad()
def test_products_meet_few_numbers_of_rows() -> None:
    """oneDNN never frees what it compiles for one."""
    met, weight = set[int](), torch.randn(6, 5)

    def product(x: Tensor) -> Tensor:
        met.add(len(x))
        return x @ weight

    for rows in range(1, 700):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(with_padded_rows(x, product), x @ weight)
    assert met == set(ROW_COUNTS)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@torch.no_grad()
def test_adapters_are_folded_in_while_they_are_in_force(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    network = nn.ModuleDict({"one": layers(kind, 12, 8, True)[0]})
    settings = peft.LoraConfig(r=3, target_modules=["one"], fan_in_fan_out=kind == "conv")
    adapted = peft.inject_adapter_in_model(settings, network).eval()["one"]
    nn.init.normal_(adapted.lora_B["default"].weight)
    x = torch.randn(5, 12)
    product = inference_product([adapted])
    assert product is not None
    torch.testing.assert_close(product(x), adapted(x), atol=1e-5, rtol=0)
    assert float((adapted(x) - adapted.base_layer(x)).abs().max()) > 0.1
    adapted.enable_adapters(False)
    bare = inference_product([adapted])
    assert bare is not None
    torch.testing.assert_close(bare(x), adapted.base_layer(x), atol=1e-5, rtol=0)
    adapted.enable_adapters(True)
    adapted.train()  # dropout would be on
    assert inference_product([adapted]) is None


@torch.no_grad()
def test_an_adapter_that_does_more_is_left_to_itself() -> None:
    peft = pytest.importorskip("peft")
    network = nn.ModuleDict({"one": layers("linear", 12, 8, True)[0]})
    settings = peft.LoraConfig(r=3, target_modules=["one"], use_dora=True)
    assert inference_product([peft.inject_adapter_in_model(settings, network).eval()["one"]]) is None
