"""The native engine: batched sampling with a key–value cache, for Hugging Face causal LMs and encoder–decoders."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.engine.philox import uniforms
from proxlm.engine.scheduler import Turn, Writer, response_text, text_before
from proxlm.models.language_model import LanguageModel
from proxlm.seeds import Stream
from proxlm.types import Progress, Prompt, Rollout, Sequences


class Generate(Protocol):
    """Samples a rollout: `generate` of the native engine, or conversations with an environment."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        config: RolloutSettings,
        *,
        seed: int,
        step: int,
        stream: Stream = ...,
        version: int = ...,
        on_progress: Progress | None = ...,
    ) -> Rollout: ...


class Listener(Protocol):
    """Hears of a rollout while it is written, in the thread that writes; what it raises ends the writing.

    size: how many responses it gets at a time, at least 1.
    """

    @property
    def size(self) -> int: ...

    def wrote(self) -> None:
        """Each response that is being written has one token more."""

    def ended(self, rows: list[int], part: Rollout) -> None:
        """These rows have ended: the next `size` in the order of prompt lengths, in the end what is left."""


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    config: RolloutSettings,
    *,
    seed: int,
    step: int,
    stream: Stream = Stream.TRAINING,
    version: int = 0,
    on_progress: Progress | None = None,
    listener: Listener | None = None,
) -> Rollout:
    """Sample one response to each prompt (repeat a prompt for more).

    What is sampled depends on (seed, stream, step, prompt id, which repeat of it, position) and the weights, not
    on the order or config.batch_size. A response ends with an EOS token, which it keeps; at a stop text, whose
    tokens it keeps while `texts` is cut before it; or after max_new_tokens.

    on_progress(done, total) is called after each token, with the number of responses that have ended. listener: gets
    those while others are being written; who is in a group depends on the prompts alone. Returns CPU tensors, rows in
    the order of prompts; without prompts, a rollout without rows.
    """
    if not prompts:
        return _part(model, [], config, version)
    limit = config.max_new_tokens
    numbers = uniforms(seed, stream, step, *identities(prompts), limit)
    turns = [Turn(p.input_ids, u, limit) for p, u in zip(prompts, numbers, strict=True)]
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(turns)), key=lambda row: len(turns[row].context))
    writer = Writer(model, config)
    writer.add(turns[row] for row in order)
    size = len(order) if listener is None else listener.size
    groups = deque(order[i : i + size] for i in range(0, len(order), size))
    parts: list[Rollout] = []
    unended = set(turns)
    while writer:
        unended.difference_update(writer.step())
        if on_progress is not None:
            on_progress(len(turns) - len(unended), len(turns))
        while groups and unended.isdisjoint([turns[row] for row in groups[0]]):
            rows = groups.popleft()
            parts.append(_part(model, [(prompts[row], turns[row]) for row in rows], config, version))
            if listener is not None:
                listener.ended(rows, parts[-1])
        if listener is not None:
            listener.wrote()
    return Rollout.join(parts).select(torch.tensor(order).argsort())


def identities(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """The id of each prompt and which repeat of it this is, from 0; both [B] int64."""
    seen: dict[int, int] = {}
    repeats = []
    for prompt in prompts:
        repeats.append(seen.get(prompt.id, 0))
        seen[prompt.id] = repeats[-1] + 1
    return torch.tensor([p.id for p in prompts], dtype=torch.int64), torch.tensor(repeats, dtype=torch.int64)


def _part(
    model: LanguageModel, written: Sequence[tuple[Prompt, Turn]], config: RolloutSettings, version: int
) -> Rollout:
    """The rollout of some prompts, whose turns have ended."""
    turns = [turn for _, turn in written]
    sequences = Sequences.from_lists([p.input_ids for p, _ in written], [turn.tokens for turn in turns])
    texts = [response_text(model.tokenizer, text_before(model, t), t.tokens, config.stop) for t in turns]
    logprobs = torch.tensor([x for turn in turns for x in turn.logprobs], dtype=torch.float32)
    return Rollout(
        prompts=[prompt for prompt, _ in written],
        sequences=sequences,
        action_mask=torch.ones(len(logprobs), dtype=torch.bool),
        logprobs=logprobs,
        finish=[turn.finish for turn in turns],
        texts=texts,
        policy_version=version,
    )
