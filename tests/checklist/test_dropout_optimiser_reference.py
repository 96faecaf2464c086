"""Section 4, items 35–37: dropout off, the optimiser and its defaults, the reference stays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from sampling_cases import FAMILIES, mixed, sampled
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from proxlm.config import (
    LoraSettings,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOSettings,
)
from proxlm.models import forward
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.forward import token_outputs
from proxlm.models.load import wrap
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.schedules import learning_rate
from proxlm.types import Experience
from small_models import tiny_model


def model_with_dropout(tokenizer, p=0.5):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128,
        attn_pdrop=p, resid_pdrop=p, embd_pdrop=p,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).train()
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(8.0)
    return wrap(network, tokenizer, ModelSettings(policy="dropout", device="cpu"))


@pytest.mark.checklist(35)
def test_dropout_is_off_in_the_rollout(tokenizer):
    model = model_with_dropout(tokenizer)
    one, other = sampled(model), sampled(model)
    assert torch.equal(one.sequences.tokens, other.sequences.tokens)
    assert torch.equal(one.logprobs, other.logprobs)
    with torch.no_grad():
        again = [token_outputs(model, one.sequences).logprobs for _ in range(2)]
    assert torch.equal(*again)
    assert torch.allclose(again[0], one.logprobs, atol=1e-5)
    # It would show: with dropout on, two forwards differ.
    model.network.train()
    with torch.no_grad():
        noisy = [token_outputs(model, one.sequences).logprobs for _ in range(2)]
    assert float((noisy[0] - noisy[1]).abs().max()) > 0.1


@pytest.mark.checklist(35)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_dropout_is_off_in_the_update(tokenizer, tmp_path, critic, own):
    """Whatever the state of torch's generator: the update is the same, and no dropout layer is in training mode.

    Blocks of our own have no dropout to begin with; hooks ask transformers' layers, and make its forward run.
    """
    results = []
    for seed in (0, 1):
        made = trainer(tokenizer, job(critic, steps=2), tmp_path)
        made = type(made)(
            made.config,
            make_actor_critic(model_with_dropout(tokenizer), critic),
            made.prompts,
            made.reward,
            tmp_path,
        )
        networks = [made.models.policy.network, made.models.reference.network, made.models.critic_trunk]
        dropouts = [m for n in networks if n is not None for m in n.modules() if isinstance(m, nn.Dropout)]
        assert dropouts
        assert all(m.p == 0.5 for m in dropouts)
        modes: list[bool] = []
        for module in [] if own else dropouts:
            module.register_forward_hook(lambda m, a, o, seen=modes: seen.append(m.training))
        assert forward.runs_unpadded(made.models.policy, made.models.policy.trunk) is own
        torch.manual_seed(seed)
        log = SilentLog()
        made.train(log)
        assert bool(modes) is not own
        assert not any(modes)
        assert [row["first_minibatch/ratio_error"] for row in log.rows] == [0.0, 0.0]
        results.append(parameters(made))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.checklist(35)
def test_two_forwards_with_gradient_are_equal(tokenizer):
    models = make_actor_critic(model_with_dropout(tokenizer), "separate")
    rollout = sampled(models.policy)
    one, other = (models.policy_outputs(rollout.sequences, 0.7, entropy=True) for _ in range(2))
    assert one.logprobs.requires_grad
    assert torch.equal(one.logprobs, other.logprobs)
    assert torch.equal(one.entropy, other.entropy)
    assert torch.equal(models.critic_states(rollout.sequences)[0], models.critic_states(rollout.sequences)[0])
    assert torch.equal(models.reference_logprobs(rollout.sequences, 0.7), one.logprobs.detach())


@pytest.mark.checklist(36)
def test_defaults_of_the_optimisers():
    optim, ppo = OptimisersSettings(), PPOSettings()
    for config in (optim.policy, optim.critic):
        assert config.eps == 1e-5
        assert config.max_grad_norm == 1.0
        assert config.schedule == "linear"
        assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.999, 0.0)
    assert 1e-6 <= optim.policy.lr <= 3e-6
    assert 5e-6 <= optim.critic.lr <= 1e-5
    assert ppo.epochs == 4
    for schedule in ("linear", "cosine"):
        rates = [learning_rate(OptimiserSettings(lr=1e-3, schedule=schedule), t, 20) for t in range(20)]
        assert rates[0] == 1e-3
        assert rates[-1] == pytest.approx(0.0, abs=1e-12)
        assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.checklist(36)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_settings_reach_adamw_and_each_network_has_its_own_rate(tokenizer, tmp_path, critic):
    config = replace(job(critic, steps=1), optim=OptimisersSettings())
    made = trainer(tokenizer, config, tmp_path)
    policy, value = made.learner.optimisers.policy, made.learner.optimisers.critic
    for optimiser, lr in ((policy, config.optim.policy.lr), (value, config.optim.critic.lr)):
        assert [type(part) for part in optimiser.parts] == [torch.optim.AdamW]
        for group in optimiser.param_groups:
            assert (group["lr"], group["eps"], group["betas"]) == (lr, 1e-5, (0.9, 0.999))
    covered = [{id(p) for g in o.param_groups for p in g["params"]} for o in (policy, value)]
    assert covered[0] == {id(p) for _, p in made.models.policy_parameters()}
    assert covered[1] == {id(p) for _, p in made.models.critic_parameters()}
    assert not covered[0] & covered[1]
    assert policy.config.lr != value.config.lr
    before = parameters(made)
    log = SilentLog()
    made.train(log)
    after = parameters(made)
    # An AdamW step moves a parameter by about the learning rate; 6 of them by at most 6 times that.
    moved = {
        side: max(
            float((after[n] - before[n]).abs().max()) for n in before if n.startswith("critic.") == side
        )
        for side in (False, True)
    }
    assert 0.5 * 3e-6 < moved[False] <= 6.6 * 3e-6
    assert 0.5 * 1e-5 < moved[True] <= 6.6 * 1e-5
    assert log.rows[0]["lr/policy"] == pytest.approx(3e-7)  # of the last of the step's updates
    assert log.rows[0]["lr/critic"] == pytest.approx(1e-6)


@pytest.mark.checklist(36)
@pytest.mark.parametrize(("size", "wanted"), [(10.0, 1.0), (0.5, 0.5)])
def test_gradients_are_clipped_to_norm_1_before_adamw_sees_them(monkeypatch, size, wanted):
    p, q = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))
    optimiser = Optimiser([("p", p), ("q", q)], OptimiserSettings(lr=1e-3))
    seen = []
    monkeypatch.setattr(
        optimiser.parts[0], "step", lambda: seen.append(float(torch.cat([p.grad.flatten(), q.grad]).norm()))
    )
    torch.manual_seed(0)
    p.grad, q.grad = torch.randn(3, 4), torch.randn(5)
    scale = size / float(torch.cat([p.grad.flatten(), q.grad]).norm())
    p.grad.mul_(scale)
    q.grad.mul_(scale)
    norm, _ = optimiser.step(0, 10)
    assert norm == pytest.approx(size, rel=1e-5)
    assert seen == pytest.approx([wanted], rel=1e-4)


@pytest.mark.checklist(36)
def test_one_adamw_step_by_hand():
    """eps stands beside the root of the second moment: lr · g / (|g| + eps) at the first step."""
    p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimiser = Optimiser([("p", p)], OptimiserSettings(lr=1e-2))
    gradient = torch.tensor([0.3, -1e-5, 1e-8])
    p.grad = gradient.clone()
    optimiser.step(0, 10)
    wanted = 1.0 - 1e-2 * gradient / (gradient.abs() + 1e-5)
    assert torch.allclose(p.detach(), wanted, atol=1e-7, rtol=0)


@pytest.mark.checklist(36)
def test_four_passes_each_in_its_own_order(tokenizer, tmp_path, monkeypatch):
    learned, select = [], Experience.select

    def recording(self, rows):
        learned.extend(rows.tolist())
        return select(self, rows)

    monkeypatch.setattr(Experience, "select", recording)
    config = job(steps=2, epochs=PPOSettings().epochs, minibatches=4, micro_batch_tokens=1)
    log = SilentLog()
    trainer(tokenizer, config, tmp_path).train(log)
    assert [row["optimiser_steps"] for row in log.rows] == [16, 16]
    assert len(learned) == 8 * 12
    passes = [learned[12 * k : 12 * k + 12] for k in range(8)]
    assert all(sorted(rows) == list(range(12)) for rows in passes)
    # Which rows share a minibatch also changes from pass to pass.
    groups = [tuple(frozenset(rows[3 * i : 3 * i + 3]) for i in range(4)) for rows in passes]
    assert len(set(map(tuple, passes))) == len(set(groups)) == 8


# PEFT says that it takes GPT-2's transposed layers for what they are.
@pytest.mark.checklist(37)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "lstm"])  # no linear layers to adapt
def test_fresh_lora_is_the_reference_bit_for_bit(tokenizer, family, packed):
    models = make_actor_critic(
        add_lora(tiny_model(tokenizer, family, packed=packed), LoraSettings(rank=4)), "shared"
    )
    assert models.reference is None
    named = dict(models.policy_parameters())
    assert named
    assert all("lora_" in name for name in named)
    assert all((p == 0).all() for name, p in named.items() if "lora_B" in name)
    assert all((p != 0).any() for name, p in named.items() if "lora_A" in name)
    sequences = mixed(tokenizer)
    with torch.no_grad():
        policy = models.policy_outputs(sequences, 0.9).logprobs
    assert torch.equal(policy, models.reference_logprobs(sequences, 0.9))


@pytest.mark.checklist(37)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_lora_leaves_the_base_without_gradients_and_the_reference_as_it_was(
    tokenizer, tmp_path, monkeypatch, critic
):
    made = trainer(tokenizer, job(critic, steps=2, lr=1e-2), tmp_path, lora=4)
    network, sequences = made.models.policy.network, mixed(tokenizer)
    base = {n: p for n, p in network.named_parameters() if "lora_" not in n}
    start = {n: p.detach().clone() for n, p in base.items()}
    reference = made.models.reference_logprobs(sequences, 1.0)
    original, steps = made.learner.optimisers.policy.step, []

    def looking(*arguments):
        assert all(p.grad is None and not p.requires_grad for p in base.values())
        assert any(p.grad is not None for _, p in made.models.policy_parameters())
        steps.append(1)
        return original(*arguments)

    monkeypatch.setattr(made.learner.optimisers.policy, "step", looking)
    log = SilentLog()
    made.train(log)
    assert len(steps) == 12
    assert all(p.grad is None and torch.equal(p, start[n]) for n, p in base.items())
    assert torch.equal(made.models.reference_logprobs(sequences, 1.0), reference)
    with torch.no_grad():
        now = made.models.policy_outputs(sequences, 1.0).logprobs
    assert float((now - reference).abs().max()) > 1e-2
    assert log.rows[0]["kl"] == 0.0 != log.rows[1]["kl"]
    assert {n for n in parameters(made) if n.startswith("critic.")} == {
        f"critic.{n}" for n, _ in made.models.critic_parameters()
    }


@pytest.mark.checklist(37)
@pytest.mark.parametrize("settings", [{}, {"loss": "trpo"}, {"advantage": "reinforce++"}], ids=str)
def test_a_frozen_copy_does_not_change(tokenizer, tmp_path, settings):
    made = trainer(tokenizer, job("separate", steps=2, lr=1e-2, **settings), tmp_path)
    reference = dict(made.models.reference.network.named_parameters())
    policy = dict(made.models.policy.network.named_parameters())
    start = {n: p.detach().clone() for n, p in reference.items()}
    assert all(torch.equal(p, policy[n]) for n, p in reference.items())
    assert not {p.data_ptr() for p in reference.values()} & {p.data_ptr() for p in policy.values()}
    sequences = mixed(tokenizer)
    before = made.models.reference_logprobs(sequences, 1.0)
    made.train(SilentLog())
    assert all(torch.equal(p, start[n]) for n, p in reference.items())
    assert all(p.grad is None and not p.requires_grad for p in reference.values())
    assert torch.equal(made.models.reference_logprobs(sequences, 1.0), before)
    assert any(not torch.equal(p, start[n]) for n, p in policy.items())
