"""A KL in the advantages of a step: exact with all that follows, and past the critic's targets."""

from __future__ import annotations

import pytest
import torch
from helpers import SilentLog, job, parameters, run, trainer


@pytest.mark.checklist(24)
def test_with_lambda_1_it_is_the_kl_in_the_rewards(tokenizer, tmp_path):
    """Token steps, λ = 1 and a critic of 0: the same sums, and so, after a step, the same policy."""
    common = {"kl_coef": 0.3, "lam": 1.0, "epochs": 1, "minibatches": 1, "steps": 2, "advantage": "reinforce"}
    found = []
    for name, more in (("reward", {}), ("advantage", {"kl_in": "advantage", "kl_lam": 1.0})):
        made = trainer(tokenizer, job("shared", **common, **more), tmp_path / name)
        rows = run(made)
        found.append((parameters(made), rows))
    assert found[0][1][1]["kl"] != 0.0
    for name, wanted in found[0][0].items():
        assert torch.allclose(found[1][0][name], wanted, atol=1e-6), name


@pytest.mark.checklist(24)
def test_the_critic_learns_returns_without_it(tokenizer):
    """After a step the policy has left the reference; its targets are those of a run without a KL."""
    made = trainer(tokenizer, job("separate", steps=3, kl_coef=5.0, kl_in="advantage", lr=5e-3), None)
    rows = [made.step(SilentLog()) for _ in range(3)]
    assert abs(rows[-1]["kl"]) > 1e-3
    assert rows[-1]["return_mean"] == pytest.approx(rows[-1]["score"], abs=0.2)
    assert rows[-1]["kl_loss"] == 0.0
