"""What a step shows of itself: sampled texts with per-token numbers, and memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from torch import Tensor

from proxlm.data.tokenizer import response_tokens_as_text
from proxlm.rl.shaping import response_rewards
from proxlm.types import Experience, Rollout, Scores


def sample_rows(
    rollout: Rollout, experience: Experience, scores: Scores, tokenizer: Any, count: int
) -> list[dict[str, Any]]:
    """The first `count` responses as rows of samples.jsonl, with per-token numbers aligned with `tokens`."""
    rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets).tolist()
    offsets = rollout.sequences.response_offsets.tolist()
    tokens = rollout.sequences.response_tokens.tolist()
    per_token: dict[str, Tensor] = {
        "logprob": experience.old_logprobs,
        "kl": experience.old_logprobs - experience.ref_logprobs,
        "reward": experience.rewards,
        "value": experience.values,
        "advantage": experience.advantages,
    }
    rows = []
    for b in range(min(count, len(rollout))):
        span = slice(offsets[b], offsets[b + 1])
        rows.append(
            {
                "prompt_id": rollout.prompts[b].id,
                "prompt": rollout.prompts[b].text,
                "response": rollout.texts[b],
                "finish": rollout.finish[b],
                "reward": round(rewards[b], 5),
                "components": {name: values[b] for name, values in scores.components.items()},
                "tokens": response_tokens_as_text(tokenizer, tokens[span]),
                "per_token": {name: [round(x, 5) for x in t[span].tolist()] for name, t in per_token.items()},
            }
        )
    return rows


def peak_memory_gb() -> float:
    """The most memory held so far, in GiB: on the GPU if one is used, else by this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
