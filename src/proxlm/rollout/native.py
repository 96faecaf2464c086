"""The native engine: batched sampling with a key–value cache, for Hugging Face causal LMs and encoder–decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from proxlm.config import RolloutConfig
from proxlm.models.language_model import LanguageModel
from proxlm.rollout.philox import uniforms
from proxlm.rollout.writer import Turn, Writer, response_text, text_before
from proxlm.types import Progress, Prompt, Rollout, Sequences

# Streams of random numbers, so that evaluation never repeats a training sample.
TRAINING, EVALUATION = 0, 1


class Generate(Protocol):
    """Samples a rollout: `generate` of the native engine, or conversations with an environment."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        config: RolloutConfig,
        *,
        seed: int,
        step: int,
        stream: int = ...,
        version: int = ...,
        on_progress: Progress | None = ...,
    ) -> Rollout: ...


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    config: RolloutConfig,
    *,
    seed: int,
    step: int,
    stream: int = TRAINING,
    version: int = 0,
    on_progress: Progress | None = None,
) -> Rollout:
    """Sample one response to each prompt (repeat a prompt for more).

    What is sampled depends on (seed, stream, step, prompt id, which repeat of it, position) and the weights, not
    on the order or config.batch_size. A response ends with an EOS token, which it keeps; at a stop text, whose
    tokens it keeps while `texts` is cut before it; or after max_new_tokens.

    on_progress(done, total) is called after each token, with the number of responses that have ended. Returns CPU
    tensors, rows in the order of prompts.
    """
    limit = config.max_new_tokens
    numbers = uniforms(seed, stream, step, *identities(prompts), limit)
    turns = [Turn(p.input_ids, u, limit) for p, u in zip(prompts, numbers, strict=True)]
    # Prompts of like length share a batch, so that little of it is padding.
    queue = sorted(turns, key=lambda turn: len(turn.context))
    writer = Writer(model, config)
    writer.add(queue)
    while writer:
        writer.step()
        if on_progress is not None:
            on_progress(len(queue) - len(writer), len(queue))
    return _collect(model, prompts, turns, config, version)


def identities(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """The id of each prompt and which repeat of it this is, from 0; both [B] int64."""
    seen: dict[int, int] = {}
    repeats = []
    for prompt in prompts:
        repeats.append(seen.get(prompt.id, 0))
        seen[prompt.id] = repeats[-1] + 1
    return torch.tensor([p.id for p in prompts], dtype=torch.int64), torch.tensor(repeats)


def _collect(
    model: LanguageModel, prompts: Sequence[Prompt], turns: list[Turn], config: RolloutConfig, version: int
) -> Rollout:
    sequences = Sequences.from_lists([p.input_ids for p in prompts], [turn.tokens for turn in turns])
    texts = [response_text(model.tokenizer, text_before(model, t), t.tokens, config.stop) for t in turns]
    logprobs = torch.tensor([x for turn in turns for x in turn.logprobs], dtype=torch.float32)
    return Rollout(
        prompts=list(prompts),
        sequences=sequences,
        action_mask=torch.ones(len(logprobs), dtype=torch.bool),
        logprobs=logprobs,
        finish=[turn.finish for turn in turns],
        texts=texts,
        policy_version=version,
    )
