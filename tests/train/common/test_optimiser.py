"""AdamW's first step by hand, clipping, skipped steps, and its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from proxlm.config import OptimiserSettings
from proxlm.errors import ConfigError
from proxlm.train.common.layer_rates import layer_rates
from proxlm.train.common.optimiser import Optimiser
from small_models import tiny_model

NAMES = [
    "adamw", "adam", "nadam", "radam", "adamax", "adagrad", "sgd", "rmsprop", "adafactor", "muon", "lbfgs"
]  # fmt: skip


def make(values, **settings):
    parameter = nn.Parameter(torch.tensor(values))
    return parameter, Optimiser([("w", parameter)], OptimiserSettings(**settings))


@pytest.mark.checklist(36)
def test_first_step_moves_by_the_learning_rate_against_the_sign():
    p, optimiser = make([1.0, 2.0], lr=0.1, eps=1e-12, max_grad_norm=0)
    p.grad = torch.tensor([3.0, -4.0])
    assert optimiser.step(0, 10) == (5.0, 0.1)
    assert p.tolist() == pytest.approx([0.9, 2.1])
    assert p.grad.tolist() == [0, 0]
    optimiser.release()
    assert p.grad is None
    optimiser.hold()
    assert p.grad.tolist() == [0, 0]


@pytest.mark.checklist(36)
def test_gradient_is_clipped_and_the_norm_before_is_returned():
    # With a large ε the step is lr · g / ε: proportional to the gradient.
    p, optimiser = make([0.0, 0.0], lr=1.0, eps=1e6, max_grad_norm=1.0)
    p.grad = torch.tensor([3.0, 4.0])
    assert optimiser.step(0, 10)[0] == 5.0
    assert (p * 1e6).tolist() == pytest.approx([-0.6, -0.8], rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    p, optimiser = make([1.0, 2.0], lr=0.1)
    p.grad = torch.tensor([1.0, bad])
    assert not math.isfinite(optimiser.step(0, 10)[0])
    assert p.tolist() == [1, 2]


def test_weight_decay_falls_on_matrices_only():
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimiser = Optimiser([("m", matrix), ("b", bias)], OptimiserSettings(lr=0.1, weight_decay=0.5))
    matrix.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step(0, 10)
    assert matrix.flatten().tolist() == pytest.approx([0.95] * 4)
    assert bias.tolist() == [1, 1]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
def test_a_parameter_may_learn_at_a_multiple_of_the_rate(name):
    """Along the same gradient it moves so many times as far, in every step of a schedule; clipping is common."""
    settings = OptimiserSettings(name=name, lr=1e-2, schedule="linear", final=0.1, max_grad_norm=1.0)
    moved = []
    for rates in ({}, {"b": 4.0, "n": 4.0}):
        named = [(key, nn.Parameter(torch.zeros(3, 3))) for key in ("a", "b")]
        named += [(key, nn.Parameter(torch.zeros(3))) for key in ("m", "n")]
        optimiser = Optimiser(named, settings, rates)
        for step in range(3):
            for _, p in named:
                p.grad = torch.full_like(p, 2.0 - step) + torch.eye(3)[: len(p)].sum(-1)
            optimiser.step(step, 10)
        moved.append({key: p.detach() for key, p in named})
    once, faster = moved
    for key, times in (("a", 1.0), ("b", 4.0), ("m", 1.0), ("n", 4.0)):
        # Adafactor's step follows the size of the weights, which differs after the first one.
        assert torch.allclose(faster[key], times * once[key], rtol=1e-4 if name != "adafactor" else 0.5), key
        assert once[key].abs().min() > 1e-6


def test_state_goes_on_exactly():
    def run(steps, optimiser, p, start=0):
        for step in range(start, start + steps):
            p.grad = torch.sin(torch.arange(3.0) + step)
            optimiser.step(step, 10)

    p, whole = make([1.0, 2.0, 3.0], lr=0.1, schedule="linear")
    run(6, whole, p)
    q, first = make([1.0, 2.0, 3.0], lr=0.1, schedule="linear")
    run(3, first, q)
    r, second = make(q.tolist(), lr=0.1, schedule="linear")
    second.load_state_tensors(first.state_tensors())
    run(3, second, r, start=3)
    assert torch.equal(p, r)


def learnt(name, steps, stop=None, **settings):
    """A small net after some steps; after `stop` of them its state goes to a new optimiser."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    made, inputs = net(), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    settings = OptimiserSettings(name=name, lr=1e-2, max_grad_norm=0, schedule="linear", **settings)
    optimiser = Optimiser(list(made.named_parameters()), settings)
    for step in range(steps):
        if step == stop:
            other = net()
            other.load_state_dict(made.state_dict())
            again = Optimiser(list(other.named_parameters()), settings)
            tensors = optimiser.state_tensors()
            assert {key: t.shape for key, t in again.state_tensors().items()} == {
                key: t.shape for key, t in tensors.items()
            }
            again.load_state_tensors({key: t.clone() for key, t in tensors.items()})
            made, optimiser = other, again
        optimiser.hold()
        made(inputs).square().sum().backward()
        optimiser.step(step, 40)
    return torch.cat([p.detach().flatten() for p in made.parameters()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [0, 1, 13])
def test_every_optimiser_goes_on_exactly(name, stop):
    whole = learnt(name, 16)
    assert torch.equal(learnt(name, 16, stop), whole)
    assert not torch.equal(learnt(name, 15), whole)


@pytest.mark.parametrize("name", NAMES)
def test_making_the_state_moves_nothing(name):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(3, 4) * 1e3)
    before = p.detach().clone()
    made = Optimiser(
        [("w", p)], OptimiserSettings(name=name, lr=0.1, weight_decay=0.0 if name == "lbfgs" else 0.5)
    )
    assert torch.equal(p, before)
    assert p.grad is None
    begins = {key: float(t.abs().max()) for key, t in made.state_tensors().items()}
    assert set(begins.values()) - {0.0} == ({1.0} if name == "nadam" else set())
    assert begins.get("mu_product.w", 1.0) == 1.0
    assert {group["lr"] for group in made.param_groups} == {0.1}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("adamw", lambda ps: torch.optim.AdamW(ps, 0.1, eps=1e-5, weight_decay=0.5)),
        ("adam", lambda ps: torch.optim.Adam(ps, 0.1, eps=1e-5, weight_decay=0.5)),
        (
            "nadam",
            lambda ps: torch.optim.NAdam(ps, 0.1, eps=1e-5, weight_decay=0.5, decoupled_weight_decay=True),
        ),
        (
            "radam",
            lambda ps: torch.optim.RAdam(ps, 0.1, eps=1e-5, weight_decay=0.5, decoupled_weight_decay=True),
        ),
        ("adamax", lambda ps: torch.optim.Adamax(ps, 0.1, eps=1e-5, weight_decay=0.5)),
        ("adagrad", lambda ps: torch.optim.Adagrad(ps, 0.1, eps=1e-5, weight_decay=0.5)),
        ("sgd", lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.5)),
        ("rmsprop", lambda ps: torch.optim.RMSprop(ps, 0.1, 0.999, 1e-5, 0.5, momentum=0.9)),
        ("adafactor", lambda ps: torch.optim.Adafactor(ps, 0.1, weight_decay=0.5)),
        (
            "muon",
            lambda ps: torch.optim.Muon(ps, 0.1, 0.5, 0.9, adjust_lr_fn="match_rms_adamw"),
        ),
    ],
)
def test_each_is_torchs_own(name, own):
    settings = OptimiserSettings(name=name, lr=0.1, weight_decay=0.5, max_grad_norm=0)
    torch.manual_seed(0)
    p, q = (nn.Parameter(t.clone()) for t in [torch.randn(3, 4)] * 2)
    made, wanted = Optimiser([("w", p)], settings), own([q])
    for _ in range(5):
        p.grad, q.grad = p.detach().sin(), q.detach().sin()
        made.step(0, 10)
        wanted.step()
    assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


def test_muon_leaves_embeddings_head_and_vectors_to_adamw():
    named = [
        (name, nn.Parameter(torch.randn(4, 4) if name.endswith("weight") else torch.randn(4)))
        for name in ("embed_tokens.weight", "layers.0.mlp.up_proj.weight", "norm.bias", "lm_head.weight")
    ]
    made = Optimiser(named, OptimiserSettings(name="muon"))
    assert [sum(len(g["params"]) for g in part.param_groups) for part in made.parts] == [1, 3]
    assert {key.split(".", 1)[0] for key in made.state_tensors() if "up_proj" in key} == {"momentum_buffer"}
    assert {key.split(".", 1)[0] for key in made.state_tensors() if "embed" in key} == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_lbfgs_finds_the_minimum_of_a_quadratic():
    a = torch.diag(torch.tensor([1.0, 3.0, 10.0, 30.0]))
    p, optimiser = make([1.0, -2.0, 3.0, 4.0], name="lbfgs", lr=1.0, max_grad_norm=0)
    wanted = torch.tensor([0.5, 0.25, -1.0, 2.0])
    for step in range(25):
        p.grad = a @ (p.detach() - wanted)
        optimiser.step(step, 25)
    assert p.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_sgd_moves_each_block_by_its_own_rate(tokenizer):
    """Depth from the head: norm 0, top block 1, lowest block 2, embeddings (tied to the head) 3."""
    model = tiny_model(tokenizer)
    before = {name: p.detach().clone() for name, p in model.trainable()}
    settings = OptimiserSettings(
        name="sgd", lr=0.1, momentum=0, max_grad_norm=0, layer_decay=0.5, rates={"*.mlp.*": 10.0}
    )
    optimiser = Optimiser(model.trainable(), settings)
    optimiser.hold()
    for _, p in model.trainable():
        p.grad = torch.ones_like(p)
    optimiser.step(0, 10)
    moved = {name: float((before[name] - p.detach()).mean()) / 0.1 for name, p in model.trainable()}
    for name, rate in moved.items():
        depth = 3 if "embed" in name else 2 if ".layers.0." in name else 1 if ".layers.1." in name else 0
        assert rate == pytest.approx(0.5**depth * (10 if ".mlp." in name else 1), rel=1e-3), name
    assert {round(rate, 3) for rate in moved.values()} == {1.0, 0.5, 0.25, 0.125, 5.0, 2.5}


@pytest.mark.parametrize(
    ("names", "depths"),
    [
        (["wte.weight", "wpe.weight", "h.0.ln_1.bias", "h.1.ln_1.bias", "ln_f.bias"], [3, 3, 2, 1, 0]),
        (["model.lstm.weight_hh_l0", "model.lstm.bias_ih_l1", "model.embed_tokens.weight"], [2, 1, 3]),
        (
            ["shared.weight", "encoder.block.1.x.0.wo.weight", "decoder.block.0.x", "lm_head.weight"],
            [2, 1, 1, 0],
        ),
        (["trunk.layers.4.mlp.experts.7.up.weight", "trunk.layers.5.x", "head.linear.bias"], [2, 1, 0]),
        (["member-1.model.layers.0.x", "member-2.model.layers.0.x", "member-2.score.weight"], [1, 1, 0]),
        (["gpt_neox.embed_in.weight", "gpt_neox.layers.0.x", "embed_out.weight"], [2, 1, 0]),
        (["score.weight"], [0]),
    ],
)
def test_depths_of_model_types(names, depths):
    assert layer_rates(names, 0.5, {}) == {name: 0.5**d for name, d in zip(names, depths, strict=True)}


def test_patterns_multiply_and_one_that_fits_nothing_is_named():
    assert layer_rates(["a.b", "a.c"], 1.0, {"a.*": 3.0, "*.b": 0.5}) == {"a.b": 1.5, "a.c": 3.0}
    with pytest.raises(ConfigError, match=r'optim\.rates: "x\*" fits no weight that learns'):
        layer_rates(["a.b"], 1.0, {"x*": 3.0})
