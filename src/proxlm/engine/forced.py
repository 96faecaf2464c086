"""Log-probs of given responses, token by token as the engine generates: a prompt that several share is read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proxlm.engine.decoders import Decoder, make_decoder
from proxlm.models.forward import logit_chunk
from proxlm.models.language_model import LanguageModel
from proxlm.rl.logprobs import chunked_logprobs


@torch.no_grad()
def forced_logprobs(
    model: LanguageModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The log-prob of each token of each response, float32 [response] on the CPU; nothing is read twice.

    Args:
        model: The model; its weights must not change meanwhile.
        prompts: Token ids, at least one each.
        responses: Token ids, at least one each, of the prompt at the same place.
    """
    decoder: Decoder = make_decoder(model)
    found: list[list[Tensor]] = [[] for _ in responses]
    running, longest = list(range(len(responses))), max(map(len, responses))
    chunk, device = logit_chunk(model, entropy=False), model.device
    with model.autocast():
        states = _read(decoder, prompts, longest, device)
        for position in range(longest):
            tokens = torch.tensor([responses[row][position] for row in running], device=device)
            logprobs, _ = chunked_logprobs(states, decoder.logits, tokens, chunk=chunk)
            for row, logprob in zip(running, logprobs.cpu(), strict=True):
                found[row].append(logprob)
            left = [i for i, row in enumerate(running) if len(responses[row]) > position + 1]
            if not left:
                break
            kept = torch.tensor(left, device=device)
            if len(left) < len(running):
                decoder.keep(kept)
            running = [running[i] for i in left]
            states = decoder.step(tokens[kept])
    return [torch.stack(row) for row in found]


def _read(decoder: Decoder, prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> Tensor:
    """Read each different prompt once, and give each row a copy of what it needs; the states after them, [k, H]."""
    if decoder.can_join:  # it reads equal prompts once
        return decoder.add(prompts, room, [None] * len(prompts))
    place: dict[tuple[int, ...], int] = {}
    rows = torch.tensor([place.setdefault(tuple(prompt), len(place)) for prompt in prompts], device=device)
    states = decoder.add([list(prompt) for prompt in place], room, [None] * len(place))
    if len(place) == len(prompts):
        return states
    decoder.keep(rows)
    return states[rows]
