"""The training pass without padding against transformers' own: states and gradients of every type."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from block_types import CONFIGS, SIZES, model_of
from proxlm.config import LoraSettings, ModelSettings
from proxlm.errors import ModelError
from proxlm.kernels import attention, blocks, fused, products
from proxlm.models import forward
from proxlm.models.forward import response_states
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import add_lora, wrap
from proxlm.types import Sequences
from small_models import tiny_model

pytestmark = pytest.mark.checklist(32)

RAGGED = Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], [[3, 4, 5, 6], [7, 8], [1]])
FULL = Sequences.from_lists([[1, 2, 3], [4, 5, 6]], [[3, 4, 5, 6], [9, 9, 9, 1]])


def numbers(model: LanguageModel, sequences: Sequences, twice: bool) -> dict[str, Tensor]:
    """States, and the gradients of a fixed sum of them; twice: by transformers' forward."""
    model.network.zero_grad()
    states, final = response_states(model, sequences, twice=twice)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(s.shape, generator=draw, dtype=torch.float64) for s in (states, final)]
    ((states.double() * weights[0]).sum() + (final.double() * weights[1]).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}
    return {"states": states.detach(), "final": final.detach(), **gradients}


def expect_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = float((found[name].float() - tensor.float()).abs().max())
        assert worst <= tolerance * max(1.0, float(tensor.abs().max())), name


@pytest.mark.parametrize("sequences", [RAGGED, FULL], ids=["ragged", "full"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_states_and_gradients_are_those_of_transformers(name: str, sequences: Sequences) -> None:
    model = model_of(name)
    assert forward.runs_ragged(model, model.trunk)
    expect_equal(numbers(model, sequences, twice=False), numbers(model, sequences, twice=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_activation_checkpointing_changes_no_number(name: str) -> None:
    plain = model_of(name)
    found = numbers(replace(plain, activation_checkpointing=True), RAGGED, twice=False)
    expect_equal(found, numbers(plain, RAGGED, twice=False), tolerance=0.0)


def test_activation_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        model, held = replace(model_of("llama"), activation_checkpointing=checkpointing), list[Tensor]()
        weights = {p.data_ptr() for p in model.network.parameters()}

        def keep(tensor: Tensor, held: list[Tensor] = held, weights: set[int] = weights) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            response_states(model, RAGGED)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        kept.append(sum(storages.values()))
    assert kept[1] < kept[0] / 3


def test_activation_checkpointing_is_refused_where_it_would_do_nothing(tokenizer) -> None:
    network = tiny_model(tokenizer, "bloom").network
    with pytest.raises(
        ModelError, match=r"activation_checkpointing is for llama.*this is bloom; set it to false"
    ):
        wrap(network, tokenizer, ModelSettings(policy="x", device="cpu", activation_checkpointing=True))


def test_adapters_learn_as_they_do_in_transformers() -> None:
    model = add_lora(model_of("llama"), LoraSettings(rank=4))
    with torch.no_grad():
        for name, p in model.network.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    found = numbers(model, RAGGED, twice=False)
    assert sum("lora" in name for name in found) == 2 * 2 * 7
    expect_equal(found, numbers(model, RAGGED, twice=True))


def test_bf16_is_as_near_as_transformers() -> None:
    full, half = model_of("llama"), model_of("llama", bfloat16=True)
    exact = numbers(full, RAGGED, twice=True)
    ours, theirs = (numbers(half, RAGGED, twice) for twice in (False, True))
    for name, tensor in exact.items():
        limit = 3 * float((theirs[name] - tensor).norm())
        assert 0 < float((ours[name] - tensor).norm()) < limit, name


def test_in_training_mode_transformers_runs_and_so_does_dropout() -> None:
    config = copy.deepcopy(CONFIGS["gpt2"])
    config.resid_pdrop = 0.5
    model = LanguageModel(AutoModelForCausalLM.from_config(config).train(), None, torch.device("cpu"))
    one, other = (response_states(model, RAGGED)[0].detach() for _ in range(2))
    assert float((one - other).abs().max()) > 0.01


def test_the_last_block_computes_the_wanted_states_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).eval()
    model, seen = LanguageModel(network, None, torch.device("cpu")), list[int]()

    def gated_mlp(x: Tensor, *weights: Tensor) -> Tensor:
        seen.append(x.shape[-2])
        return products.gated_mlp(x, *weights)

    monkeypatch.setattr(blocks, "gated_mlp", gated_mlp)
    response_states(model, RAGGED)
    assert seen == [17, 7 + 3]


@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_the_parts_of_a_block_have_the_derivatives_of_their_formulas(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(*shape, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(*shape, 4, dtype=torch.float64)
    place = torch.tensor([3, 0, 4])[: shape[0]]
    check = torch.autograd.gradcheck
    assert check(lambda a, w: fused.rms_norm(a, w, 1e-3), (x, weight))
    assert check(fused.gated_silu, (x, y))
    cos, sin = torch.cat([angle.cos(), angle.cos()], -1), angle.sin()
    assert check(lambda a: fused.rotated(a, cos, sin), (x,))
    assert check(lambda a: fused.spread(a[: len(place)], place, 6), (x,))
    assert check(lambda a: fused.gathered(a, torch.tensor([1, 0])), (x,))
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(fused.rms_norm(x, weight, 1e-3), expected)
    torch.testing.assert_close(fused.gated_silu(x, y), x * torch.sigmoid(x) * y)
    points = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    turned = torch.cat([points.real, points.imag], -1)
    torch.testing.assert_close(fused.rotated(x, cos, sin), turned)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
def test_plain_attention_is_the_fused_one_with_its_derivatives(heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 5, count, 3, dtype=torch.float64, requires_grad=True)
        for count in (heads[0], heads[1], heads[1])
    )
    plain = attention.causal_attention(q, k, v, 0.7)
    fused_one = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (q, k, v)), is_causal=True, scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(plain, fused_one.transpose(1, 2).flatten(2))
    assert torch.autograd.gradcheck(lambda *given: attention.causal_attention(*given, 0.7), (q, k, v))


@pytest.mark.parametrize("length", [attention.SHORT, attention.SHORT + 1])
def test_short_and_long_rows_have_the_same_attention(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 2, 4) for _ in range(3))
    shares = torch.einsum("bthd,bshd->bhts", q, k).mul(0.5)
    shares = shares.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", shares, v).flatten(2)
    torch.testing.assert_close(attention.causal_attention(q, k, v, 0.5), expected)


def test_the_gated_mlp_has_the_derivatives_of_its_formula() -> None:
    torch.manual_seed(0)
    x, gate, up, down = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4), (5, 4), (5, 4), (4, 5))
    )
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(products.gated_mlp(x, gate, up, down), expected)
    assert torch.autograd.gradcheck(products.gated_mlp, (x, gate, up, down))
