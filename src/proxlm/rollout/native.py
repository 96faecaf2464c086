"""The native engine: batched sampling with a key–value cache, for Hugging Face causal LMs and encoder–decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from proxlm.config import RolloutConfig
from proxlm.models.language_model import LanguageModel
from proxlm.rollout.decoder import make_decoder
from proxlm.rollout.philox import uniforms
from proxlm.rollout.sampling import sample
from proxlm.types import Finish, Progress, Prompt, Rollout, Sequences

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


@dataclass
class Turn:
    """One text while the policy writes it: behind `context`, of at most `limit` tokens.

    uniform [limit or more] float64: the numbers that pick the tokens; finish "length" where it was cut.
    """

    context: Sequence[int]
    uniform: Tensor
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"


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

    on_progress(done, total) is called as responses finish. Returns CPU tensors, rows in the order of prompts.
    """
    limit = config.max_new_tokens
    numbers = uniforms(seed, stream, step, *identities(prompts), limit)
    turns = [Turn(p.input_ids, u, limit) for p, u in zip(prompts, numbers, strict=True)]
    # Prompts of like length share a batch, so that little of it is padding.
    queue = sorted(turns, key=lambda turn: len(turn.context))
    done = 0
    for first in range(0, len(queue), config.batch_size):
        for ended in write(model, queue[first : first + config.batch_size], config):
            done += len(ended)
            if on_progress is not None:
                on_progress(done, len(queue))
    return _collect(model, prompts, turns, config, version)


def identities(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """The id of each prompt and which repeat of it this is, from 0; both [B] int64."""
    seen: dict[int, int] = {}
    repeats = []
    for prompt in prompts:
        repeats.append(seen.get(prompt.id, 0))
        seen[prompt.id] = repeats[-1] + 1
    return torch.tensor([p.id for p in prompts], dtype=torch.int64), torch.tensor(repeats)


@torch.no_grad()
def write(model: LanguageModel, turns: Sequence[Turn], config: RolloutConfig) -> Iterator[list[Turn]]:
    """Decode until every turn has ended; those that end leave the batch at once. Yields which, token by token."""
    decoder = make_decoder(model)
    live = list(turns)
    with model.autocast():
        states = decoder.start([turn.context for turn in live])
        numbers = torch.stack([turn.uniform for turn in live]).to(model.device)
        for t in range(max(turn.limit for turn in live)):
            tokens, logprobs = sample(model.logits(states), numbers[:, t], config)
            going = []
            for i, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
                turn = live[i]
                turn.tokens.append(token)
                turn.logprobs.append(logprob)
                if not _has_ended(model, turn, config.stop):
                    going.append(i)
            if len(going) < len(live):
                kept = set(going)
                yield [turn for i, turn in enumerate(live) if i not in kept]
                if not going:
                    return
                rows = torch.tensor(going, device=model.device)
                decoder.keep(rows)
                live, tokens, numbers = [live[i] for i in going], tokens[rows], numbers[rows]
            states = decoder.step(tokens)


def _has_ended(model: LanguageModel, turn: Turn, stops: Sequence[str]) -> bool:
    """Whether the newest token was the last one; notes why."""
    if turn.tokens[-1] in model.eos_ids:
        turn.finish = "eos"
    elif stops and stop_position(_tail(model, turn, stops), stops) is not None:
        turn.finish = "stop"
    else:
        return len(turn.tokens) >= turn.limit
    return True


def stop_position(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, or None."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)


def _tail(model: LanguageModel, turn: Turn, stops: Sequence[str]) -> str:
    """Enough of the turn's end to hold any stop text, as it reads after what stands before it.

    A character is at most four tokens.
    """
    count = 4 * max(len(stop) for stop in stops) + 4
    before = [*_text_before(model, turn)[-8:], *turn.tokens[:-count]][-8:]
    return response_text(model.tokenizer, before, turn.tokens[-count:])


def _text_before(model: LanguageModel, turn: Turn) -> Sequence[int]:
    """What the turn goes on from: its context; an encoder–decoder's response is a text by itself."""
    return () if model.encoder_decoder else turn.context


def response_text(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], stops: Sequence[str] = ()
) -> str:
    """The response as it reads after its prompt, without special tokens, cut before the first stop text.

    Decoding the response alone would lose a leading space in SentencePiece-type tokenizers.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **options)
    whole = tokenizer.decode([*prompt, *response], **options)
    text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(response), **options)
    position = stop_position(text, stops)
    return text if position is None else text[:position]


def _collect(
    model: LanguageModel, prompts: Sequence[Prompt], turns: list[Turn], config: RolloutConfig, version: int
) -> Rollout:
    sequences = Sequences.from_lists([p.input_ids for p in prompts], [turn.tokens for turn in turns])
    texts = [response_text(model.tokenizer, _text_before(model, t), t.tokens, config.stop) for t in turns]
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
