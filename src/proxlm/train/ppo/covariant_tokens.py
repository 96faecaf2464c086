"""Which tokens of a step Clip-Cov and KL-Cov treat apart."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.rl.covariance import clip_cov_tokens, kl_cov_tokens, token_covariance
from proxlm.seeds import Purpose
from proxlm.train.ppo.row_generators import row_generators
from proxlm.types import Rollout


def covariant_tokens(
    rollout: Rollout, logprobs: Tensor, advantages: Tensor, ppo: PPOSettings, seed: int, step: int
) -> tuple[Tensor, dict[str, float]] | None:
    """The tokens [R] bool that the loss of `ppo.loss` treats apart, with their metrics; None: it has no such tokens.

    The choice is made once for the whole step. All ranks hold the whole batch, so they choose the same tokens.

    Args:
        rollout: The responses.
        logprobs: Of the policy before the update [R].
        advantages: As the loss gets them [R].
        ppo: `loss` and `covariance` are used.
        seed: Of the run.
        step: The PPO step, from 0.
    """
    if ppo.loss not in ("clip_cov", "kl_cov"):
        return None
    mask, settings = rollout.action_mask, ppo.covariance
    covariance = token_covariance(logprobs, advantages, mask)
    uniforms = _uniforms(rollout, seed, step)
    if ppo.loss == "clip_cov":
        tokens = clip_cov_tokens(covariance, uniforms, mask, settings.share, settings.low, settings.high)
    else:
        tokens = kl_cov_tokens(covariance, uniforms, mask, settings.share)
    return tokens, {
        "covariance": float(covariance[mask].mean()),
        "covariance/share": float(tokens[mask].double().mean()),
    }


def _uniforms(rollout: Rollout, seed: int, step: int) -> Tensor:
    """A number in [0, 1) for each token [R], by its prompt, its repeat and its position: whatever the rows' order."""
    generators = row_generators(rollout, seed, Purpose.COVARIANCE, step)
    lengths = rollout.sequences.response_lengths.tolist()
    return torch.cat(
        [
            torch.rand(length, generator=own, dtype=torch.float64)
            for own, length in zip(generators, lengths, strict=True)
        ]
    )
