"""The training pass without padding against transformers' own: states and gradients of every type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, LlamaConfig

from block_types import CONFIGS, SIZES, model_of
from proxlm.config import DataSettings, LoraSettings, ModelSettings, PPOConfig, RolloutSettings, validate
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import ConfigError, ModelError
from proxlm.kernels import attention, fused_ops, unpadded_forward
from proxlm.models import forward
from proxlm.models.adapters import add_lora
from proxlm.models.forward import head_backward, response_states
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import wrap
from proxlm.types import Prompt, Sequences
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
    assert forward.runs_unpadded(model, model.trunk)
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


def test_activation_checkpointing_and_packing_are_refused_together(tokenizer) -> None:
    both = ModelSettings(policy="x", device="cpu", activation_checkpointing=True, packed=True)
    with pytest.raises(ModelError, match=r"these are packed; set it or model\.packed to false"):
        wrap(tiny_model(tokenizer).network, tokenizer, both)
    with pytest.raises(
        ConfigError, match=r"model\.activation_checkpointing = true: not with model\.packed = true"
    ):
        validate(PPOConfig(model=both, data=DataSettings(prompts="p")))


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


def test_the_last_block_computes_the_asked_states_alone() -> None:
    """Its MLP and those before it are watched by what torch multiplies with the last weight of each."""
    network = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).eval()
    model = LanguageModel(network, None, torch.device("cpu"))
    down = {layer.mlp.down_proj.weight.data_ptr(): i for i, layer in enumerate(network.model.layers)}
    rows = list[tuple[int, int]]()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.linear and args[1].data_ptr() in down:
                rows.append((down[args[1].data_ptr()], args[0].numel() // args[0].shape[-1]))
            return function(*args, **(kwargs or {}))

    with Watch():
        response_states(model, RAGGED)
    assert rows == [(0, 17), (1, 7 + 3)]


@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_the_parts_of_a_block_have_the_derivatives_of_their_formulas(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(*shape, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(*shape, 4, dtype=torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda a, w: fused_ops.rms_norm(a, w, 1e-3), (x, weight))
    assert check(fused_ops.gated_silu, (x, y))
    cos, sin = torch.cat([angle.cos(), angle.cos()], -1), angle.sin()
    assert check(lambda a: fused_ops.rotate(a, cos, sin), (x,))
    place = torch.tensor([3, 0, 4])[: shape[0]]
    assert check(lambda a: fused_ops.scatter_rows(a[: len(place)], place, 6), (x,))
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(fused_ops.rms_norm(x, weight, 1e-3), expected)
    torch.testing.assert_close(fused_ops.gated_silu(x, y), x * torch.sigmoid(x) * y)
    points = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    turned = torch.cat([points.real, points.imag], -1)
    torch.testing.assert_close(fused_ops.rotate(x, cos, sin), turned)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("length", [5, 130])
def test_attention_is_its_formula(heads: tuple[int, int], length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, count, 4) for count in (heads[0], heads[1], heads[1]))
    keys, values = (part.repeat_interleave(heads[0] // heads[1], 2) for part in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, keys).mul(0.5)
    shares = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", shares, values)
    torch.testing.assert_close(attention.causal_attention(q, k, v, 0.5), expected.flatten(2))
    mask = torch.zeros(2, 1, 1, length)
    newest = attention.cached_attention(
        q[:, -1:], k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(), mask, 0.5
    )
    torch.testing.assert_close(newest, expected.flatten(2)[:, -1:])


@pytest.mark.parametrize("length", [5, 129])
def test_scores_are_not_rounded_in_bf16(length: int) -> None:
    """Scores of 1000 and 1001 are one number in bf16, whose steps are 4 there."""
    k = torch.zeros(1, length, 1, 2)
    k[..., 0] = 1.0
    k[0, 0, 0, 1] = 1.0
    q = torch.tensor([1000.0, 1.0]).expand(1, length, 1, 2)
    v = torch.zeros(1, length, 1, 2)
    v[0, 0, 0, 0] = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        attended = attention.causal_attention(q, k, v, 1.0)
    assert attended.dtype == torch.bfloat16
    shares = torch.e / (torch.e + torch.arange(length))
    torch.testing.assert_close(attended[0, :, 0].float(), shares, rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("groups", [4, 2])
def test_attention_in_bf16_has_the_gradients_of_its_rounded_inputs(groups: int) -> None:
    """Against float64 on the same bf16 numbers: each gradient is rounded once, and its inputs to attention were."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(3, 70, heads, 64) for heads in (4, groups, groups)]
    low = [torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in shapes]
    exact = [part.detach().double().requires_grad_() for part in low]
    grad = torch.randn(3, 70, 256, generator=draw).bfloat16()
    attended, wanted = (attention.causal_attention(*parts, 0.125) for parts in (low, exact))
    with torch.no_grad():  # or the ratio of the first update would not be 1
        assert torch.equal(attended, attention.causal_attention(*low, 0.125))
    assert float((attended.detach() - wanted.detach()).norm() / wanted.detach().norm()) < 2**-8
    found = torch.autograd.grad(attended, low, grad)
    for part, expected in zip(found, torch.autograd.grad(wanted, exact, grad.double()), strict=True):
        assert part.dtype == torch.bfloat16
        assert float((part - expected).norm() / expected.norm()) < 2**-8


@pytest.mark.parametrize("sequences", [RAGGED, FULL], ids=["ragged", "full"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_further_rows_for_round_numbers_change_nothing(
    name: str, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with bf16 on a CPU, here in float32."""
    model = model_of(name)
    expected = numbers(model, sequences, twice=False)
    monkeypatch.setattr(unpadded_forward, "is_onednn_bfloat16", lambda weight: True)
    expect_equal(numbers(model, sequences, twice=False), expected)


def test_bf16_products_on_a_cpu_meet_few_numbers_of_rows() -> None:
    """oneDNN keeps code for each of them, megabytes in all the products of a model."""
    model, rows = model_of("llama", bfloat16=True), set[int]()
    draw = torch.Generator().manual_seed(0)

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.linear:
                rows.add(args[0].numel() // args[0].shape[-1])
            return function(*args, **(kwargs or {}))

    for _ in range(12):
        lengths = torch.randint(8, 60, (20,), generator=draw).tolist()
        sequences = Sequences.from_lists([[1, 2]] * 20, [[3] * (length - 2) for length in lengths])
        with Watch():
            states, _ = response_states(model, sequences)
        assert len(states) == sum(lengths) - 40
    assert rows <= {64 * i for i in range(8, 16)}  # all tokens; in the last block those that are asked for


def watched(model: LanguageModel, watch: Callable[[LanguageModel, list[str]], None]) -> list[str]:
    """What a watcher of the model sees in one pass forward and back."""
    seen = list[str]()
    watch(model, seen)
    states, _ = response_states(model, RAGGED)
    loss = lambda span, logprobs, entropies: logprobs.sum()  # noqa: E731
    states.backward(head_backward(model, states, RAGGED.response_tokens, 1.0, False, loss))
    return seen


def watch_parameters(model: LanguageModel, seen: list[str]) -> None:
    for name, p in model.network.named_parameters():
        p.register_hook(lambda grad, name=name: seen.append(name))


def watch_sums(model: LanguageModel, seen: list[str]) -> None:
    for name, p in model.network.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))


def watch_modules(model: LanguageModel, seen: list[str]) -> None:
    for name, module in model.network.named_modules():
        if name.endswith(("self_attn", "mlp", "layernorm", "proj")):
            module.register_forward_hook(lambda m, args, out, name=name: seen.append(name))


@pytest.mark.parametrize("watch", [watch_parameters, watch_sums, watch_modules])
def test_hooks_are_not_bypassed_and_gradients_are_equal(
    watch: Callable[[LanguageModel, list[str]], None],
) -> None:
    plain, hooked = model_of("llama"), model_of("llama")
    watched(plain, lambda model, seen: None)
    seen = watched(hooked, watch)
    names = [name for name, _ in hooked.network.named_parameters()]
    if watch is watch_modules:
        assert len(set(seen)) == 2 * (2 + 2 + 7)
    else:
        assert sorted(seen) == sorted(names)
    for name, p in plain.network.named_parameters():
        other = hooked.network.get_parameter(name)
        assert p.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, p.grad, rtol=1e-5, atol=1e-6)


def test_a_sharded_weight_is_left_to_its_module() -> None:
    class Sharded(nn.Parameter):
        pass

    model = model_of("llama")
    assert forward.runs_unpadded(model, model.trunk)
    norm = model.trunk.norm
    norm.weight = Sharded(norm.weight.detach())
    assert not forward.runs_unpadded(model, model.trunk)


def test_own_kernels_can_be_switched_off() -> None:
    """With hooks that torch does not list: those of the node that adds a parameter's gradient up, as DDP has them."""
    plain, off = model_of("llama"), replace(model_of("llama"), own_kernels=False)
    assert not forward.runs_unpadded(off, off.trunk)
    assert off.head_weight is None
    seen, kept = list[str](), []
    for name, p in off.network.named_parameters():
        node = p.view_as(p).grad_fn.next_functions[0][0]
        node.register_hook(lambda *grads, name=name: seen.append(name))
        kept.append(node)
    for model in (plain, off):
        watched(model, lambda model, seen: None)
    assert sorted(seen) == sorted(name for name, _ in off.network.named_parameters())
    for name, p in plain.network.named_parameters():
        torch.testing.assert_close(off.network.get_parameter(name).grad, p.grad, rtol=1e-5, atol=1e-6)


def test_decoding_without_own_kernels_writes_the_same(tokenizer) -> None:
    model, settings = tiny_model(tokenizer), RolloutSettings(max_new_tokens=6)
    prompts = [Prompt(0, (1, 5, 9), "p"), Prompt(1, (1, 4), "p")]
    ours, theirs = (
        generate(NativeEngine(replace(model, own_kernels=own), settings), prompts, settings, seed=0, step=0)
        for own in (True, False)
    )
    assert torch.equal(ours.sequences.tokens, theirs.sequences.tokens)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0.0, atol=1e-5)
