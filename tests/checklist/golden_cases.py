"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from proxlm.rl.losses import clipped_policy_loss, token_weights

GOLDEN = Path(__file__).parents[1] / "golden"
CLEANRL, OPENAI, TRL = (
    json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("cleanrl", "lm_human_preferences", "trl")
)


def tensors(part):
    """Lists → tensors: float64, or bool."""
    made = {name: np.array(v) for name, v in part.items() if isinstance(v, list | float)}
    return {name: torch.tensor(v if v.dtype == bool else v.astype(float)) for name, v in made.items()}


def unpack(case):
    """Settings by name, input tensors, output tensors."""
    return SimpleNamespace(**case["settings"]), tensors(case["inputs"]), tensors(case["outputs"])


def same(got, wanted, tolerance=1e-6):
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= tolerance


def policy(new, old, advantages, mask, offsets, clip=0.2):
    """Loss of the minibatch, gradient in the log-probs [R], per-token terms."""
    new = new.flatten().clone().requires_grad_()
    terms = clipped_policy_loss(new, old.flatten(), advantages.flatten(), clip, clip)
    loss = (token_weights(mask, offsets, "token", 1).double() * terms.loss).sum()
    return loss.detach(), torch.autograd.grad(loss, new)[0], terms


def trl_rows(given):
    """TRL's rectangle, padding included, as rows of this library."""
    shape = given["values"].shape
    return torch.arange(shape[0] + 1) * shape[1]
