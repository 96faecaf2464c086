"""What a smaller model costs: bytes, seconds, perplexity, and how far it is from the original."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.evaluation.tables import Table
from proxlm.export.compare import divergence
from proxlm.models.language_model import LanguageModel
from proxlm.runlog.text import number
from proxlm.types import Prompt

_PROMPT = 8  # tokens


@dataclass(frozen=True)
class Cost:
    """One stage of a compression.

    Attributes:
        name: What it is called.
        parameters: Number of its weights.
        zeros: Share of the weights of its blocks' matrices that are 0.
        size: Bytes of the file or files that hold the weights.
        seconds: For one token of one response, by `program`.
        program: What wrote the response.
        perplexity: On the held-out texts.
        kl: Mean KL(original ‖ this) behind a token of them, in nats.
        same_token: Share of their tokens behind which both find the same token most likely.
        reward: Mean reward of its responses; None: none was asked for.
    """

    name: str
    parameters: int
    zeros: float
    size: int
    seconds: float
    program: str
    perplexity: float
    kl: float
    same_token: float
    reward: float | None = None


@torch.no_grad()
def distances(original: Any, other: Any, texts: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Perplexity of a model, and its mean KL(original ‖ it) and agreement behind each token.

    Args:
        original: A transformers model.
        other: Another one with the same tokens.
        texts: Token ids, two or more each.
    """
    nats = kl = same = 0.0
    count = 0
    for ids in texts:
        p, q = (_logprobs(network, ids[:-1]) for network in (original, other))
        targets = torch.tensor(list(ids[1:]))
        nats -= float(q.gather(-1, targets[:, None]).double().sum())
        kl += float(divergence(p, q).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(targets)
    return math.exp(min(nats / count, 700.0)), kl / count, same / count


def _logprobs(network: Any, ids: Sequence[int]) -> Tensor:
    logits = network(input_ids=torch.tensor([list(ids)], device=network.device), use_cache=False).logits[0]
    return logits.float().cpu().log_softmax(-1)


def seconds_per_token(
    model: LanguageModel, texts: Sequence[Sequence[int]], new_tokens: int, repeats: int
) -> float:
    """Of one response at a time, greedy, to the beginning of each text; the fastest of some repeats."""
    prompts = [Prompt(i, tuple(ids[:_PROMPT]), "") for i, ids in enumerate(texts[:2])]
    settings = RolloutSettings(temperature=0.0, max_new_tokens=new_tokens, batch_size=1)
    best = math.inf
    for _ in range(repeats):
        with closing(NativeEngine(model, settings)) as engine:
            began = time.perf_counter()
            rollout = generate(engine, prompts, settings, seed=0, step=0)
            spent = time.perf_counter() - began
        best = min(best, spent / max(1, len(rollout.sequences.response_tokens)))
    return best


def cost_table(costs: Sequence[Cost]) -> Table:
    """A row a stage."""
    with_reward = any(cost.reward is not None for cost in costs)
    head = ["model", "weights", "zeros", "MB", "ms a token", "by", "perplexity", "KL, nats", "same token"]
    rows = []
    for cost in costs:
        row = [
            cost.name, f"{cost.parameters:,}", f"{cost.zeros:.0%}", f"{cost.size / 1e6:.2f}",
            number(1000 * cost.seconds), cost.program, number(cost.perplexity), number(cost.kl),
            f"{cost.same_token:.1%}",
        ]  # fmt: skip
        rows.append([*row, "" if cost.reward is None else number(cost.reward)] if with_reward else row)
    notes = (
        "(KL(original ‖ model), mean over the tokens of the held-out texts; same token: both find it most likely;",
        "ms a token: one greedy response at a time, the fastest of some repeats)",
    )
    return Table([*head, "reward"] if with_reward else head, rows, notes=notes)
