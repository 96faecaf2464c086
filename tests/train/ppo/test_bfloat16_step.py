"""A PPO step in bf16: the first ratio is 1, the layout changes nothing but roundings, memory follows the response."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import SilentLog, job, parameters, run, trainer
from wide_tensors import WideTensors

from proxlm.config import PPOConfig
from proxlm.models import forward


def bfloat16(config: PPOConfig) -> PPOConfig:
    return replace(config, model=replace(config.model, precision="bfloat16"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_first_ratio_is_1_and_the_engine_is_near(tokenizer, tmp_path, critic: str, family: str) -> None:
    rows = run(trainer(tokenizer, bfloat16(job(critic, steps=2)), tmp_path, family=family))
    assert [row["first_minibatch/ratio_error"] for row in rows] == [0.0, 0.0]
    assert 0 < max(row["rollout_gap"] for row in rows) < 0.5


def test_adapters_begin_at_ratio_1(tokenizer, tmp_path) -> None:
    rows = run(trainer(tokenizer, bfloat16(job("adapter", steps=2)), tmp_path, lora=4))
    assert [row["first_minibatch/ratio_error"] for row in rows] == [0.0, 0.0]
    assert rows[1]["kl"] != 0


def steps_of(made: Any) -> dict[str, torch.Tensor]:
    """The gradient of the first minibatch, for each parameter."""
    found: dict[str, torch.Tensor] = {}
    for who, optimiser in made.optimisers_by_name().items():
        step = optimiser.step

        def look(*given: Any, who: str = who, optimiser: Any = optimiser, step: Any = step) -> Any:
            for name, p in optimiser.named:
                if p.grad is not None:
                    found.setdefault(f"{who}.{name}", p.grad.clone())
            return step(*given)

        optimiser.step = look
    made.train(SilentLog())
    return found


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_gradients_do_not_depend_on_micro_batches_or_padding_but_for_rounding(
    tokenizer, tmp_path, critic: str
) -> None:
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = bfloat16(job(critic, steps=1, micro_batch_tokens=budget))
        config = replace(config, model=replace(config.model, packed=packed))
        made = trainer(tokenizer, config, tmp_path)
        if made.models.value_head is not None:
            torch.manual_seed(2)
            torch.nn.init.normal_(made.models.value_head.linear.weight, std=0.2)
        results.append(steps_of(made))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, gradient in results[0].items():
            error = float((other[name] - gradient).norm() / gradient.norm())
            assert error < 0.05, name


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_no_tensor_holds_the_logits_of_all_tokens(tokenizer, tmp_path, monkeypatch, critic: str) -> None:
    config = bfloat16(job(critic, steps=1, micro_batch_tokens=60))
    made = trainer(tokenizer, config, tmp_path)
    width, hidden = made.models.policy.network.get_output_embeddings().weight.shape
    monkeypatch.setattr(forward, "LOGIT_BUDGET", 16 * width)
    before = parameters(made)
    with WideTensors(width, hidden) as watched:
        made.train(SilentLog())
    assert watched.seen > 100
    assert watched.rows <= 16
    assert all(not torch.equal(before[name], after) for name, after in parameters(made).items())
