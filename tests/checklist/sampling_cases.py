"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import torch

from proxlm.config import (
    RolloutSettings,
)
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.types import Prompt, Sequences
from small_models import WORDS

ENCODER_DECODERS = ["t5", "bart"]
FAMILIES = ["llama", "qwen3", "gpt2", "lstm", *ENCODER_DECODERS]
# Encoder–decoders are never packed.
LAYOUTS = [
    (family, packed)
    for family in FAMILIES
    for packed in (False, True)
    if not (packed and family in ENCODER_DECODERS)
]


def prompts(tokenizer, count=6):
    return [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate((WORDS * 11)[:count])]


def sampled(model, count=6, seed=3, **settings):
    config = RolloutSettings(**{"max_new_tokens": 12, **settings})
    engine = NativeEngine(model, config)
    return generate(engine, prompts(model.tokenizer, count), config, seed=seed, step=0)


def own_logits(model, sequences, network=None):
    """The network's own logits before each response token, row by row without padding: [R, V]."""
    found = []
    with torch.no_grad():
        for b in range(len(sequences)):
            first, last = sequences.offsets[b : b + 2].tolist()
            row, start = sequences.tokens[first:last], int(sequences.prompt_lengths[b])
            if model.encoder_decoder:
                written = torch.cat([torch.tensor([model.start_id]), row[start:-1]])
                own = (network or model.network)(input_ids=row[None, :start], decoder_input_ids=written[None])
                found.append(own.logits[0])
                continue
            logits = (network or model.network)(input_ids=row[None]).logits[0]
            found.append(logits[start - 1 : len(row) - 1])
    return torch.cat(found)


def rows_of(flat, sequences):
    return torch.split(flat, sequences.response_lengths.tolist())


def mixed(tokenizer):
    """Rows of very different lengths; the padding token and the EOS also stand inside."""
    generator = torch.Generator().manual_seed(0)
    size, lengths = len(tokenizer), [(1, 1), (2, 9), (30, 3), (5, 40), (3, 1), (11, 6)]
    rows = [torch.randint(0, size, (a + b,), generator=generator).tolist() for a, b in lengths]
    rows[1][3], rows[3][8], rows[5][2] = tokenizer.pad_token_id, tokenizer.eos_token_id, 0
    return Sequences.from_lists(
        [row[:a] for row, (a, _) in zip(rows, lengths, strict=True)],
        [row[a:] for row, (a, _) in zip(rows, lengths, strict=True)],
    )
