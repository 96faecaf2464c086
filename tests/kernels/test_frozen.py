"""Products with copied weights against the layers they were copied from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from proxlm.kernels import frozen
from proxlm.kernels.few_shapes import ROWS, in_few_shapes
from proxlm.kernels.frozen import PACKED_SIZE, FrozenProduct, can_pack, one_product
from proxlm.kernels.matrices import matrix_of

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
        monkeypatch.setattr(frozen, "can_pack", lambda *given: False)
    modules = layers(kind, *size, bias)
    product = one_product(modules)
    assert isinstance(product, FrozenProduct)
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
def test_large_matrices_are_packed_and_rows_then_stand_alone() -> None:
    (layer,) = layers("linear", *LARGE, False)[:1]
    assert layer.weight.numel() > PACKED_SIZE
    product, x = FrozenProduct([matrix_of(layer)]), torch.randn(64, LARGE[0])
    product(x[:1])
    assert product.packed is None  # one row alone has the other layout
    whole = product(x)
    assert product.packed is not None
    assert product.columns is None
    for rows in (2, 3, 17, 63):
        assert torch.equal(product(x[:rows]), whole[:rows])


@torch.no_grad()
def test_small_matrices_and_other_dtypes_are_not_packed() -> None:
    small, large = (
        FrozenProduct([matrix_of(layer) for layer in layers("linear", *size, False)])
        for size in (SMALL, LARGE)
    )
    small(torch.randn(9, SMALL[0]))
    assert small.packed is None
    double = FrozenProduct([matrix_of(layer.double()) for layer in layers("linear", *LARGE, False)])
    double(torch.randn(9, LARGE[0], dtype=torch.float64))
    assert double.packed is None
    assert large.packs == can_pack(torch.device("cpu"), torch.float32)


def test_layers_that_are_more_than_linear_are_left_to_themselves() -> None:
    plain = nn.Linear(4, 4)
    assert one_product([plain, nn.Linear(4, 4, bias=False)]) is None
    assert one_product([nn.Sequential(plain)]) is None
    assert one_product([plain], "bfloat16") is not None


@torch.no_grad()
def test_products_meet_few_numbers_of_rows() -> None:
    """oneDNN never frees what it compiles for one."""
    met, weight = set[int](), torch.randn(6, 5)

    def product(x: Tensor) -> Tensor:
        met.add(len(x))
        return x @ weight

    for rows in range(1, 700):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(in_few_shapes(x, product), x @ weight)
    assert met == set(ROWS)


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
    product = one_product([adapted])
    assert product is not None
    torch.testing.assert_close(product(x), adapted(x), atol=1e-5, rtol=0)
    assert float((adapted(x) - adapted.base_layer(x)).abs().max()) > 0.1
    adapted.enable_adapters(False)
    bare = one_product([adapted])
    assert bare is not None
    torch.testing.assert_close(bare(x), adapted.base_layer(x), atol=1e-5, rtol=0)
    adapted.enable_adapters(True)
    adapted.train()  # dropout would be on
    assert one_product([adapted]) is None


@torch.no_grad()
def test_an_adapter_that_does_more_is_left_to_itself() -> None:
    peft = pytest.importorskip("peft")
    network = nn.ModuleDict({"one": layers("linear", 12, 8, True)[0]})
    settings = peft.LoraConfig(r=3, target_modules=["one"], use_dora=True)
    assert one_product([peft.inject_adapter_in_model(settings, network).eval()["one"]]) is None
