"""One frozen base for all: adapters for the policy, others for the critic, none for the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, trainer
from transformers import AutoModelForCausalLM

from proxlm.checkpoint import checkpoints
from proxlm.config import LoraSettings, ModelSettings, PPOSettings
from proxlm.config.problems import algorithm_problems
from proxlm.models.adapters import CRITIC, POLICY
from proxlm.models.forward import token_outputs
from proxlm.types import Sequences

SEQUENCES = Sequences.from_lists([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])


@pytest.mark.checklist(15)
@pytest.mark.checklist(37)
def test_policy_and_critic_learn_apart_and_the_base_stays(tokenizer, tmp_path):
    made = trainer(tokenizer, job("adapter", steps=3, lr=1e-2), tmp_path, lora=4)
    models, log = made.models, SilentLog()
    network = models.policy.network
    base = {name: p.clone() for name, p in network.named_parameters() if "lora_" not in name}
    first = models.reference_logprobs(SEQUENCES, 1.0)
    assert torch.equal(first, models.policy_outputs(SEQUENCES, 1.0).logprobs.detach())
    made.train(log)
    assert [row["first_minibatch/ratio_error"] for row in log.rows] == [0.0] * 3
    for name, p in network.named_parameters():
        if "lora_" in name:
            assert (f".{POLICY}." in name) or (f".{CRITIC}." in name)
            assert p.requires_grad
        else:
            assert torch.equal(p, base[name]), name
    moved = [
        max(float(p.detach().abs().max()) for name, p in models.policy.trainable(whose) if "lora_B" in name)
        for whose in (POLICY, CRITIC)
    ]
    assert min(moved) > 1e-3
    assert torch.equal(models.reference_logprobs(SEQUENCES, 1.0), first)
    assert models.critic_trunk is None
    assert not models.shared


def test_each_ones_numbers_hang_on_its_own_adapters(tokenizer):
    models = actors(tokenizer, job("adapter"), lora=4)
    assert models.value_head is not None
    torch.nn.init.ones_(models.value_head.linear.weight)
    names = {whose: {name for name, _ in models.policy.trainable(whose)} for whose in (POLICY, CRITIC)}
    assert not names[POLICY] & names[CRITIC]
    assert len(names[POLICY]) == len(names[CRITIC]) == 2 * 2 * 7
    critic = {name for name, _ in models.critic_parameters()}
    assert critic == names[CRITIC] | {"head.linear.weight", "head.linear.bias"}

    def numbers():
        with torch.no_grad():
            return token_outputs(models.policy, SEQUENCES).logprobs, models.values(SEQUENCES)

    before = numbers()
    for whose, changes in ((POLICY, 0), (CRITIC, 1)):
        with torch.no_grad():
            for name, p in models.policy.trainable(whose):
                if "lora_B" in name:
                    p.normal_(std=0.1)
        after = numbers()
        assert not torch.equal(before[changes], after[changes])
        assert torch.equal(before[1 - changes], after[1 - changes])
        before = after


def test_gradients_reach_the_right_adapters(tokenizer):
    models = actors(tokenizer, job("adapter"), lora=4)
    assert models.value_head is not None
    torch.nn.init.ones_(models.value_head.linear.weight)
    models.values(SEQUENCES).sum().backward()
    assert all(p.grad is None for _, p in models.policy.trainable())
    assert any(float(p.grad.abs().max()) > 0 for _, p in models.policy.trainable(CRITIC))
    models.policy.network.zero_grad(set_to_none=True)
    models.policy_outputs(SEQUENCES, 1.0).logprobs.sum().backward()
    assert all(p.grad is None for _, p in models.policy.trainable(CRITIC))
    assert any(float(p.grad.abs().max()) > 0 for _, p in models.policy.trainable())


@pytest.mark.checklist(38)
def test_a_resumed_run_equals_the_uninterrupted_one(tokenizer, tmp_path):
    whole = trainer(tokenizer, job("adapter", steps=3), tmp_path / "whole", lora=4)
    whole.train(SilentLog())
    first = trainer(tokenizer, job("adapter", steps=3), tmp_path / "parts", lora=4)
    first.step(SilentLog())
    first.save()
    second = trainer(tokenizer, job("adapter", steps=3), tmp_path / "parts", lora=4)
    second.resume()
    second.train(SilentLog())
    a, b = parameters(whole), parameters(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    # What is saved for others is the base with the policy's adapters alone.
    saved = AutoModelForCausalLM.from_pretrained(checkpoints(tmp_path / "parts")[-1] / "policy").eval()
    plain = replace(second.models.policy, network=saved, adapters=None)
    with torch.no_grad():
        expected = token_outputs(second.models.policy, SEQUENCES).logprobs
        torch.testing.assert_close(token_outputs(plain, SEQUENCES).logprobs, expected, atol=1e-5, rtol=0)


def test_what_does_not_go_with_it_is_said():
    alone = ModelSettings(policy="x", critic="adapter")
    assert [key for key, _ in algorithm_problems(PPOSettings(), alone)] == ["model.critic"]
    both = replace(alone, lora=LoraSettings(rank=4), activation_checkpointing=True, critic_from="y")
    found = [key for key, _ in algorithm_problems(PPOSettings(), both)]
    assert found == ["model.activation_checkpointing", "model.critic_from"]
