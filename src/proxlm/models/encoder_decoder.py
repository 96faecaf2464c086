"""Encoder–decoders: the encoder reads the prompt, the decoder writes the response.

The ragged batch stays what it is. A row "a b → x y z" has the source "a b" and the target "s x y z", where s is the
model's start token; the state after s predicts x. A target is again a row with a prompt (s) and a response, so what
holds for causal models (the shift, the state at the end) holds for targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxlm.errors import ModelError
from proxlm.rl.ragged import offsets_of
from proxlm.types import Sequences


class EncoderDecoderTrunk(nn.Module):
    """Encoder and decoder of a transformers model, without its output head: source and target tokens → states.

    T5's own model without a head is not part of the one with a head, so both halves are taken one by one. They are
    still the model's own modules.
    """

    encoder: Any
    decoder: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = network.get_encoder(), network.get_decoder()
        self.training = network.training

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Source tokens [b, s] and their mask → encoder states [b, s, H]."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def decode(self, input_ids: Tensor, encoded: Tensor, attention_mask: Tensor, **cache: Any) -> Any:
        """Target tokens [b, t] and the result of `encode` → transformers' output, last_hidden_state [b, t, H]."""
        return self.decoder(
            input_ids=input_ids, encoder_hidden_states=encoded, encoder_attention_mask=attention_mask, **cache
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, use_cache: bool = False
    ) -> Any:
        """Both halves, one after the other."""
        encoded = self.encode(input_ids, attention_mask)
        return self.decode(decoder_input_ids, encoded, attention_mask, use_cache=use_cache)


def start_token(network: Any, source: str) -> int:
    """The token before every response, as transformers' own generation has it. Raises ModelError if there is none."""
    for config in (getattr(network, "generation_config", None), network.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(found := getattr(config, name, None), int):
                return found
    raise ModelError(f"{source}: its configuration has no decoder_start_token_id; set it in config.json")


def source_and_target(sequences: Sequences, start: int) -> tuple[Sequences, Sequences]:
    """The prompts as the encoder reads them, and the responses after `start` as the decoder does.

    A source is a row without a response; a target's prompt is the start token alone.
    """
    row, position = sequences.row_and_position
    prompts = sequences.tokens[position < sequences.prompt_lengths[row]]
    source = Sequences(prompts, offsets_of(sequences.prompt_lengths), sequences.prompt_lengths)
    lengths = sequences.response_lengths + 1
    tokens = torch.full((int(lengths.sum()),), start, dtype=torch.int64, device=sequences.tokens.device)
    target = Sequences(tokens, offsets_of(lengths), torch.ones_like(lengths))
    tokens[target.response_index] = sequences.response_tokens
    return source, target


def config_of(trunk: Any) -> Any:
    """The configuration of a trunk; of an encoder–decoder, its decoder's."""
    return trunk.decoder.config if isinstance(trunk, EncoderDecoderTrunk) else trunk.config
