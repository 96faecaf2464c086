"""Eight-bit weights: the products against rounding by hand, and rollouts written with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from proxlm import load_config
from proxlm.config import LoraSettings, RolloutSettings
from proxlm.engine.decoders import make_decoder
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import ConfigError, ModelError
from proxlm.kernels import int8
from proxlm.kernels.inference_products import inference_product
from proxlm.kernels.int8 import Int8Product, can_multiply
from proxlm.models.adapters import add_lora, reference_active
from proxlm.models.forward import token_outputs
from proxlm.types import Prompt
from small_models import tiny_model

needs_int8 = pytest.mark.skipif(
    not can_multiply(torch.device("cpu")), reason="this build of torch has no oneDNN"
)


@needs_int8
@pytest.mark.parametrize("vnni", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_products_are_those_of_numbers_rounded_by_hand(
    vnni: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle = 128 if vnni else 64
    monkeypatch.setattr(int8, "zero_point", lambda: middle)
    torch.manual_seed(1)
    layer = nn.Linear(40, 24, bias=bias)
    # Small weights, so that 16 bits hold a pair of products whatever the processor has.
    layer.weight[3], layer.weight[4:] = 0.0, layer.weight[4:] * (1 + torch.arange(20.0)[:, None])
    x = torch.randn(3, 5, 40) * torch.tensor([0.01, 1.0, 90.0])[:, None, None]
    x[1, 2] = 0.0
    weight_step = layer.weight.abs().amax(1, keepdim=True).double() / 127
    weight = torch.where(weight_step > 0, (layer.weight / weight_step).round() * weight_step, 0.0)
    step = x.abs().amax(-1, keepdim=True).double() / (middle - 1)
    states = torch.where(step > 0, (x / step).round() * step, 0.0)
    wanted = states @ weight.T + (layer.bias.double() if bias else 0.0)
    found = Int8Product(layer.weight, layer.bias)(x)
    if vnni and not torch.cpu._is_vnni_supported():
        # Pairs of large products overflow on such a processor, which is why 7 bits are used there.
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.5
        return
    # A number halfway between two steps may go either way in float32: then it is a step of one input off.
    assert float(((found - wanted).abs() / wanted.abs().amax(-1, keepdim=True).clamp(min=1e-9)).max()) < 0.02
    assert float(((found - wanted).abs() > 1e-4 * wanted.abs().max()).double().mean()) < 0.1
    exact = layer(x).double()
    assert float((found - exact).norm() / exact.norm()) < 0.03
    assert float((found - exact).norm() / exact.norm()) > 1e-4


@needs_int8
@torch.no_grad()
def test_a_row_depends_on_no_other_row() -> None:
    torch.manual_seed(2)
    product, x = Int8Product(torch.randn(320, 64)), torch.randn(64, 64)
    x[5] *= 1000
    whole = product(x)
    for rows in (1, 2, 17):
        assert torch.equal(product(x[:rows]), whole[:rows])


@needs_int8
def test_several_layers_side_by_side() -> None:
    torch.manual_seed(3)
    two = [nn.Linear(32, 8), nn.Linear(32, 4)]
    together, x = inference_product(two, "int8"), torch.randn(6, 32)
    assert together is not None
    apart = torch.cat([Int8Product(m.weight.detach(), m.bias.detach())(x) for m in two], -1)
    torch.testing.assert_close(together(x), apart)


def prompts() -> list[Prompt]:
    return [Prompt(i, (1, 5 + i, 9), "p") for i in range(12)]


@needs_int8
@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_rollouts_know_the_policy_that_wrote_them(tokenizer: Any, name: str, weights: Any) -> None:
    """The log-probs kept are those of the rounded weights: near the policy's own, and not equal to them."""
    model = tiny_model(tokenizer, name)
    config = RolloutSettings(max_new_tokens=12, weights=weights)
    rollout = generate(NativeEngine(model, config), prompts(), config, seed=3, step=0)
    with torch.no_grad():
        own = token_outputs(model, rollout.sequences).logprobs
    gap = (own - rollout.logprobs).abs()
    assert 1e-4 < float(gap.mean()) < (0.1 if weights == "int8" else 0.03)
    plain = RolloutSettings(max_new_tokens=12)
    exact = generate(NativeEngine(model, plain), prompts(), plain, seed=3, step=0)
    with torch.no_grad():
        same = token_outputs(model, exact.sequences).logprobs
    assert float((same - exact.logprobs).abs().max()) < 1e-4


@needs_int8
def test_batches_of_any_size_write_the_same_with_int8(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    texts = []
    for size in (12, 5, 1):
        config = RolloutSettings(max_new_tokens=12, weights="int8", batch_size=size)
        rollout = generate(NativeEngine(model, config), prompts(), config, seed=3, step=0)
        texts.append(rollout.sequences.tokens.tolist())
    assert texts[0] == texts[1] == texts[2]


def test_a_build_without_such_products_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "can_multiply", lambda device: False)
    with pytest.raises(ModelError, match="int8 weights: this build of torch has no int8 products for cpu"):
        Int8Product(torch.ones(2, 2))


@pytest.mark.parametrize("name", ["lstm", "t5"])
def test_other_model_types_are_refused_by_name(tokenizer: Any, name: str) -> None:
    with pytest.raises(ModelError, match=r"rollout\.weights = int8 is for model types llama"):
        make_decoder(tiny_model(tokenizer, name), "int8")


def test_rounded_weights_without_a_correction_are_refused() -> None:
    settings = {"model.policy": "x", "data.prompts": "x", "reward.use": "length", "rollout.weights": "int8"}
    with pytest.raises(ConfigError, match=r"rounded weights: set ppo\.engine_correction\.mode"):
        load_config("ppo", None, settings)
    load_config("ppo", None, settings | {"ppo.engine_correction.mode": "token_truncate"})


@pytest.mark.parametrize("weights", ["policy", "int8"])
def test_adapters_are_part_of_what_is_written_with(tokenizer: Any, weights: Any) -> None:
    pytest.importorskip("peft")
    model = add_lora(tiny_model(tokenizer), LoraSettings(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.trainable():
            if "lora_B" in name:
                p.normal_(std=0.3)
    config = RolloutSettings(max_new_tokens=12, weights=weights)
    rollout = generate(NativeEngine(model, config), prompts(), config, seed=3, step=0)
    with torch.no_grad():
        own = token_outputs(model, rollout.sequences).logprobs
        with reference_active(model):
            base = token_outputs(model, rollout.sequences).logprobs
    gap = float((own - rollout.logprobs).abs().mean())
    assert gap < 1e-5 if weights == "policy" else 1e-4 < gap < 0.1
    assert float((base - rollout.logprobs).abs().mean()) > 0.2
