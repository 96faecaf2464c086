"""Which tensors of a server are not the trainer's: a checksum of each, of the trainer's as vLLM stores them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from proxlm.engine.vllm_server import Server
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import served_tensors
from proxlm.text import counted, listed

# vLLM keeps these as one tensor, in this order of rows.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
# vLLM adds rows of zeros to a vocabulary, up to a multiple of this.
_VOCABULARY = 64
# Of a tensor that a server has emptied after it has prepared a copy of it.
_EMPTY = hashlib.sha256(b"").hexdigest()


class Comparison(NamedTuple):
    """The trainer's tensors by vLLM's names: those that a server has, has otherwise, and does not tell."""

    same: list[str]
    other: list[str]
    untold: list[str]

    @property
    def agrees(self) -> bool:
        """Whether the server has all of them."""
        return not self.other and not self.untold

    def __str__(self) -> str:
        told = len(self.same) + len(self.other)
        found = f"{len(self.other)} of {counted(told, 'tensor')} differ: {listed(self.other, most=2)}"
        if not self.other:
            found = f"{counted(told, 'tensor')} agree"
        return found + (f"; it does not tell of {listed(self.untold, most=1)}" if self.untold else "")


class TensorChecksums:
    """The trainer's side of the comparison.

    Args:
        model: The policy, which must not change while it is compared.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for name, tensor in served_tensors(self._model).items():
            fused = ".".join(_FUSED.get(part, part) for part in name.split("."))
            parts.setdefault(fused, []).append(tensor)
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def compare(self, server: Server) -> Comparison:
        """Compare a server's tensors with the trainer's.

        A tensor that is split over several GPUs is one that it does not tell of.

        Raises:
            ServerError: It gives no checksums.
        """
        dtype, found = server.dtype(), server.checksums()
        result = Comparison([], [], [])
        for name, tensor in self._tensors.items():
            told = found.get(name, {_EMPTY})
            if _EMPTY in told:
                result.untold.append(name)
            elif told <= {_sha256(form) for form in _forms(tensor.to(dtype))}:
                result.same.append(name)
            else:
                result.other.append(name)
        return result


def _forms(tensor: Tensor) -> Iterator[Tensor]:
    """As a server may hold it: with a vocabulary's further rows, transposed (GPT-2), without −0 (products)."""
    forms = [tensor]
    if tensor.ndim == 2:
        forms += [pad(tensor, (0, 0, 0, -len(tensor) % _VOCABULARY)), tensor.T]
    for form in forms:
        yield from (form, form + 0.0)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
