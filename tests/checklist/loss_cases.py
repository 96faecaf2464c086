"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st

from proxlm.rl.corrections import importance_weights
from proxlm.rl.policy_losses import (
    LossInputs,
    cispo_loss,
    dppo_loss,
    gspo_loss,
    pg_loss,
    ppo_loss,
    surrogate_loss,
)

LOSSES = {
    "ppo": ppo_loss,
    "pg": pg_loss,
    "surrogate": surrogate_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
    "dppo": dppo_loss,
}


every_loss = pytest.mark.parametrize("name", LOSSES)


# No advantages so small that half of one rounds to 0.
some_advantage = st.floats(-4, 4).filter(lambda a: a == 0 or abs(a) > 1e-6)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def inputs(new, old, advantages, offsets=None, mask=None, **more):
    """LossInputs in float64 from log-probs; one response of all tokens unless offsets say otherwise."""
    count = len(new)
    return LossInputs(
        logprobs=f64(new).requires_grad_(),
        old_logprobs=f64(old),
        advantages=f64(advantages),
        action_mask=torch.ones(count, dtype=torch.bool) if mask is None else torch.tensor(mask),
        response_offsets=torch.tensor([0, count] if offsets is None else offsets),
        **more,
    )


def solved(loss, given_inputs):
    """The terms, and the gradient of Σ loss with respect to the log-probs."""
    terms = loss(given_inputs)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), given_inputs.logprobs)
    return terms, gradient


def one(loss, ratio, advantage, **more):
    """Loss, gradient and clipped flag of one token with this ratio."""
    terms, gradient = solved(loss, inputs([math.log(ratio)], [0.0], [advantage], **more))
    return float(terms.loss.detach()), float(gradient), bool(terms.clipped)


RATIOS = [4.0, 0.25, 1.5, 8.0, 0.5, 0.8]
CHOSEN = torch.tensor([True, True, True, False, True, True])
ROWS = torch.tensor([0, 2, 4, 6])  # products over chosen tokens: 1, 1.5, 0.4


def weights(mode, low=0.0, high=math.inf, **more):
    logs = f64(RATIOS).log().requires_grad_()
    return importance_weights(logs, CHOSEN, ROWS, mode, low, high, **more)
