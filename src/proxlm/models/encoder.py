"""An encoder such as BERT or MiniLM: texts to the means of its last states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxlm.data.tokenizer import read_tokenizer
from proxlm.errors import ModelError
from proxlm.models.weights import check_vocabulary, read_network
from proxlm.text import reason_of


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder and its tokenizer.

    Attributes:
        network: transformers' model, without a head.
        tokenizer: Its tokenizer.
        device: Where it is.
        limit: Longest text in tokens.
    """

    network: Any
    tokenizer: Any
    device: torch.device
    limit: int

    def pooled(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids of b texts → the means of their last states, [b, d], and the states at their first tokens."""
        longest = max(1, *(len(row) for row in rows))
        pad = getattr(self.network.config, "pad_token_id", None) or 0
        ids = torch.tensor([[*row] + [pad] * (longest - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        kept = states.masked_fill(~mask.bool()[..., None], 0.0)
        return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1), states[:, 0]


def load_encoder(path: str, device: torch.device) -> Encoder:
    """The encoder in a folder or on the hub, in float32. Raises ModelError."""
    from transformers import AutoModel

    tokenizer = encoder_tokenizer(path)
    network = read_network(AutoModel, path, f"encoder {path}")
    check_vocabulary(f"encoder {path}", tokenizer, network)
    return Encoder(network.to(device).eval(), tokenizer, device, longest_text(network.config, tokenizer))


def encoder_tokenizer(path: str) -> Any:
    """Its tokenizer, before its weights are read. Raises ModelError."""
    try:
        return read_tokenizer(path)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"encoder {path}: no tokenizer: {reason_of(error)}") from error


def longest_text(configuration: Any, tokenizer: Any) -> int:
    """In tokens."""
    limit = getattr(configuration, "max_position_embeddings", None) or 10**9
    return int(min(limit, tokenizer.model_max_length))
