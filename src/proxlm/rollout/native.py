"""The native engine: batched sampling with a key–value cache, for Hugging Face causal LMs and encoder–decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class _Response:
    """One response while it grows."""

    prompt: Prompt
    uniform: Tensor
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
    repeats: dict[int, int] = {}
    sample_index = []
    for prompt in prompts:
        sample_index.append(repeats.get(prompt.id, 0))
        repeats[prompt.id] = sample_index[-1] + 1
    ids = torch.tensor([p.id for p in prompts], dtype=torch.int64)
    numbers = uniforms(seed, stream, step, ids, torch.tensor(sample_index), config.max_new_tokens)
    responses = [_Response(p, u) for p, u in zip(prompts, numbers, strict=True)]
    # Prompts of like length share a batch, so that little of it is padding.
    queue = sorted(responses, key=lambda r: len(r.prompt.input_ids))
    done = 0
    for first in range(0, len(queue), config.batch_size):
        for ended in _generate_batch(model, queue[first : first + config.batch_size], config):
            done += ended
            if on_progress is not None:
                on_progress(done, len(queue))
    return _collect(model, responses, config, version)


def _generate_batch(model: LanguageModel, batch: list[_Response], config: RolloutConfig) -> Iterator[int]:
    """Decode until every row has ended; rows that end leave at once. Yields how many ended at each token."""
    decoder = make_decoder(model)
    live = list(batch)
    eos = model.eos_ids
    with model.autocast():
        states = decoder.start([r.prompt.input_ids for r in live])
        numbers = torch.stack([r.uniform for r in live]).to(model.device)
        for t in range(config.max_new_tokens):
            tokens, logprobs = sample(model.logits(states), numbers[:, t], config)
            going = []
            for i, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
                response = live[i]
                response.tokens.append(token)
                response.logprobs.append(logprob)
                if token in eos:
                    response.finish = "eos"
                elif (
                    config.stop
                    and stop_position(_tail(model, response, config.stop), config.stop) is not None
                ):
                    response.finish = "stop"
                else:
                    going.append(i)
            ended = len(live) - len(going)
            if t + 1 == config.max_new_tokens:
                yield len(live)
                return
            if ended:
                yield ended
                if not going:
                    return
                rows = torch.tensor(going, device=model.device)
                decoder.keep(rows)
                live, tokens, numbers = [live[i] for i in going], tokens[rows], numbers[rows]
            states = decoder.step(tokens)


def stop_position(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, or None."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)


def _tail(model: LanguageModel, response: _Response, stops: Sequence[str]) -> str:
    """Enough of the response's end to hold any stop text, as it reads after what stands before it.

    A character is at most four tokens.
    """
    count = 4 * max(len(stop) for stop in stops) + 4
    before = [*_text_before(model, response), *response.tokens[:-count]][-8:]
    return response_text(model.tokenizer, before, response.tokens[-count:])


def _text_before(model: LanguageModel, response: _Response) -> Sequence[int]:
    """What the response goes on from: its prompt; an encoder–decoder's response is a text by itself."""
    return () if model.encoder_decoder else response.prompt.input_ids


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
    model: LanguageModel, responses: list[_Response], config: RolloutConfig, version: int
) -> Rollout:
    sequences = Sequences.from_lists([r.prompt.input_ids for r in responses], [r.tokens for r in responses])
    texts = [response_text(model.tokenizer, _text_before(model, r), r.tokens, config.stop) for r in responses]
    logprobs = torch.tensor([x for r in responses for x in r.logprobs], dtype=torch.float32)
    return Rollout(
        prompts=[r.prompt for r in responses],
        sequences=sequences,
        action_mask=torch.ones(len(logprobs), dtype=torch.bool),
        logprobs=logprobs,
        finish=[r.finish for r in responses],
        texts=texts,
        policy_version=version,
    )
