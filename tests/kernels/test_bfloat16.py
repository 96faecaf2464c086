"""bf16 on a processor that has no instructions for it: the numbers are those of the instructions."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from block_types import model_of
from proxlm.config import LoraSettings
from proxlm.engine.kv_cache import SlotDecoder
from proxlm.kernels import attention, products
from proxlm.kernels.linear_head import linear_head_logprobs
from proxlm.kernels.widened import widen_products
from proxlm.models import language_model
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.forward import head_backward, head_logprobs, response_states, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import add_lora
from proxlm.types import Sequences
from small_models import tiny_model

BF16 = torch.bfloat16
RAGGED = Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], [[3, 4, 5, 6], [7, 8], [1]])


def instructions(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    instructions(monkeypatch, False)
    widen_products()
    torch.manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def test_products_are_rounded_once() -> None:
    a, b, c = drawn(70, 90), drawn(90, 50), drawn(70, 50)
    batch, other, more = drawn(3, 20, 30), drawn(3, 30, 10), drawn(3, 20, 10)
    exact = a.float() @ b.float()
    pairs = {
        "mm": (a @ b, exact),
        "of a turned matrix": (a @ b.T.contiguous().T, exact),
        "linear": (F.linear(a, b.T), exact),
        "linear with bias": (
            F.linear(a, b.T.contiguous(), c[0]),
            torch.addmm(c[0].float(), a.float(), b.float()),
        ),
        "addmm": (
            torch.addmm(c, a, b, beta=0.5, alpha=2.0),
            torch.addmm(c.float(), a.float(), b.float(), beta=0.5, alpha=2.0),
        ),
        "addmm_": (c.clone().addmm_(a, b), torch.addmm(c.float(), a.float(), b.float())),
        "mm.out": (torch.mm(a, b, out=c.new_empty(70, 50)), exact),
        "bmm": (batch @ other, torch.bmm(batch.float(), other.float())),
        "baddbmm": (
            torch.baddbmm(more, batch, other, alpha=0.3),
            torch.baddbmm(more.float(), batch.float(), other.float(), alpha=0.3),
        ),
        "baddbmm_": (
            more.clone().baddbmm_(batch, other),
            torch.baddbmm(more.float(), batch.float(), other.float()),
        ),
    }
    for name, (found, expected) in pairs.items():
        assert found.dtype == BF16, name
        assert torch.equal(found, expected.bfloat16()), name


def test_gradients_of_products_are_rounded_once() -> None:
    a, b, given = drawn(70, 90).requires_grad_(), drawn(90, 50).requires_grad_(), drawn(70, 50)
    (a @ b).backward(given)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, (given.float() @ b.detach().float().T).bfloat16())
    assert torch.equal(b.grad, (a.detach().float().T @ given.float()).bfloat16())


def test_other_dtypes_and_errors_are_torchs_own() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [2.0**-20]])
    assert (a @ b).item() == 3 + 2**-19
    assert (a.double() @ b.double()).item() == 3 + 2**-19
    assert (a.long() @ b.long()).item() == 3
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        drawn(3, 4) @ drawn(3, 4)
    with pytest.raises(RuntimeError, match="same dtype"):
        drawn(3, 4) @ torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(drawn(3, 4), drawn(4, 3), out=torch.empty(3, 3))


def test_fused_attention_is_float32_inside() -> None:
    q, k, v, given = (drawn(2, 3, 11, 8) for _ in range(4))
    mask = torch.ones(11, 11).tril().bool()
    results = []
    for dtype in (BF16, torch.float32):
        leaves = [part.detach().to(dtype).requires_grad_() for part in (q, k, v)]
        attended = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
        attended.backward(given.to(dtype))
        results.append((attended.detach(), *(leaf.grad for leaf in leaves)))
    half, whole = results
    assert torch.equal(half[0], whole[0].bfloat16())
    for found, expected in zip(half[1:], whole[1:], strict=True):
        assert found is not None
        assert expected is not None
        assert found.dtype == BF16
        assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


@pytest.mark.parametrize("length", [5, attention.SHORT + 1])
def test_scores_are_not_rounded(length: int) -> None:
    """Scores of 1000 and 1001 are one number in bf16, whose steps are 4 there."""
    k = torch.zeros(1, length, 1, 2)
    k[..., 0] = 1.0
    k[0, 0, 0, 1] = 1.0
    q = torch.tensor([1000.0, 1.0]).expand(1, length, 1, 2)
    v = torch.zeros(1, length, 1, 2)
    v[0, 0, 0, 0] = 1.0
    with torch.autocast("cpu", BF16):
        attended = attention.causal_attention(q, k, v, 1.0)
    assert attended.dtype == BF16
    shares = torch.e / (torch.e + torch.arange(length))
    torch.testing.assert_close(attended[0, :, 0].float(), shares, rtol=2**-7, atol=0.0)


def test_the_head_rounds_what_goes_in_and_nothing_else() -> None:
    hidden, weight = torch.randn(7, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    tokens = torch.randint(40, (7,))
    logprobs, _ = linear_head_logprobs(hidden, weight, tokens, 1.0, False, 3, bfloat16=True)
    h, w = (part.detach().bfloat16().float() for part in (hidden, weight))
    torch.testing.assert_close(logprobs, (h @ w.T).log_softmax(-1)[torch.arange(7), tokens])
    logprobs.sum().backward()
    of_logits = (F.one_hot(tokens, 40) - (h @ w.T).softmax(-1)).bfloat16().float()
    for found, expected in ((hidden.grad, of_logits @ w), (weight.grad, of_logits.T @ h)):
        # Of a gradient whose last bits of float32 differ one in a hundred is rounded to the other side.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-2)
        assert found is not None
        assert float((found - expected).norm()) < 1e-3 * float(expected.norm())


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    """Of the mean log-prob of the response tokens."""
    model.network.zero_grad()
    states, _ = response_states(model, RAGGED)
    loss = lambda span, logprobs, entropy: logprobs.sum() / 7  # noqa: E731
    states.backward(head_backward(model, states, RAGGED.response_tokens, 1.0, False, loss))
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "llama with adapters"])
def test_gradients_are_as_near_to_float32_as_bf16_can_be(name: str) -> None:
    """bf16 has 8 bits: 0.4% at most from one rounding, and some dozens of them follow each other."""
    model = model_of(name.split()[0])
    if "adapters" in name:
        model = add_lora(model, LoraSettings(rank=4))
        for parameter_name, p in model.network.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(p, std=0.1)
    exact, found = gradients(model), gradients(replace(model, bfloat16=True))
    assert exact.keys() == found.keys()
    # An adapter's gradient goes through two more products, one of them of rank 4: over six draws of the adapters the
    # largest error was 2.5 to 3.9%, with PEFT's own modules 2.2 to 3.5%, the mean 1.7 and 1.8%.
    limit = 0.08 if "adapters" in name else 0.04
    for parameter_name, expected in exact.items():
        assert found[parameter_name].dtype == torch.float32
        error = float((found[parameter_name] - expected).norm() / expected.norm())
        # The keys' bias has no effect on attention but for rounding.
        assert 0 < error < limit or float(expected.norm()) < 1e-5, (parameter_name, error)


class Slow(TorchDispatchMode):
    """bf16 products that no wide kernel stands in for."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.wide = set[str](), 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = function.__name__.removesuffix(".default")
        if any(part in name for part in ("mm", "mv", "dot", "conv", "attention", "linear", "rnn", "lstm")):
            tensors = [part for part in given if isinstance(part, Tensor)]
            if tensors and tensors[0].dtype == BF16:
                known = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_", "mm.out")
                if name in known or "flash_attention_for_cpu" in name:
                    self.wide += 1
                else:
                    self.found.add(name)
        return function(*given, **(named or {}))


@pytest.mark.parametrize("type", ["llama", "gpt2", "lstm", "bloom", "t5"])
def test_no_slow_product_is_left_in_a_pass(tokenizer, type: str) -> None:
    model = tiny_model(tokenizer, type, precision="bfloat16")
    models = make_actor_critic(model, "separate")
    with Slow() as seen:
        outputs = token_outputs(model, RAGGED)
        (outputs.logprobs.sum() + models.values(RAGGED).sum()).backward()
        models.reference_logprobs(RAGGED, 1.0)
    assert seen.found == set()
    assert seen.wide > 10


@torch.no_grad()
def test_the_decoder_has_the_trainers_logits() -> None:
    model = replace(model_of("llama"), bfloat16=True)
    decoder, rows = SlotDecoder(model), [[1, 2, 3, 3, 4, 5, 6], [4, 7, 8]]
    logits = decoder.logits(decoder.add(rows, room=1))
    assert logits.dtype == torch.float32
    sequences = Sequences.from_lists(rows, [[9], [11]])
    states, _ = response_states(model, sequences)
    trained, _ = head_logprobs(model, states, sequences.response_tokens, 1.0, False)
    found = logits.log_softmax(-1)[torch.arange(2), sequences.response_tokens]
    torch.testing.assert_close(found, trained, rtol=0.0, atol=0.05)
    # The same states have the same logits but for the order of sums.
    torch.testing.assert_close(decoder.logits(states), model.logits(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("there", [True, False])
def test_with_instructions_nothing_changes(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    instructions(monkeypatch, there)
    installed: list[bool] = []
    monkeypatch.setattr(language_model, "widen_products", lambda: installed.append(True))
    full = model_of("llama")
    assert not full.widened
    assert not installed
    half = replace(copy.copy(full), bfloat16=True)
    assert half.widened == bool(installed) == (not there)
    assert (half.head_weight is None) == there
    layer = nn.Linear(8, 4, bias=False)
    made = products.one_product([layer], True, round_output=False)
    assert made is not None
    assert made(torch.randn(2, 8)).dtype == (BF16 if there else torch.float32)
    called: list[bool] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **b: called.append(True) or fused(*a, **b)
    )
    with torch.autocast("cpu", BF16):
        attention.causal_attention(*(torch.randn(1, 4, 2, 8) for _ in range(3)), 0.5)
    assert bool(called) == there
