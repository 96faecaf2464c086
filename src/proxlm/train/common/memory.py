"""Out of memory in a forward or backward pass: the same work again, with fewer tokens in a pass."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from proxlm.errors import RunError
from proxlm.models.forward import micro_batches

log = logging.getLogger(__name__)
T = TypeVar("T")
# How torch's CPU allocator, CUDA and others say it, where they have no error type of their own for it.
PHRASES = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass
class TokenBudget:
    """The most tokens in one pass. It falls to half where the memory does not do, and stays there."""

    tokens: int


def within_memory(
    budget: TokenBudget, work: Callable[[int], T], lengths: Tensor, clear: Callable[[], None] = lambda: None
) -> T:
    """work(tokens in a pass), and again with half the budget each time that it runs out of memory.

    lengths [B]: of the sequences that it splits into passes; clear: takes back what a part of it has done. Raises
    RunError where even single sequences do not fit.
    """
    while True:
        try:
            return work(budget.tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        # Here the error is gone, and with it the tensors that its traceback held.
        clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if max(len(rows) for rows in micro_batches(lengths, budget.tokens)) == 1:
            raise RunError(
                f"out of memory with one sequence of up to {int(lengths.max())} tokens in a pass ({reason[:200]});"
                " shorten the sequences, or take a smaller model, bfloat16 or adapters (model.lora.rank)"
            )
        # A budget far above what there is would have to be halved in vain for a while.
        budget.tokens = max(1, min(budget.tokens, len(lengths) * int(lengths.max())) // 2)
        log.warning(
            "out of memory (%s): going on with at most %d tokens in a pass (micro_batch_tokens)",
            reason[:200],
            budget.tokens,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, of the processor's memory or of an accelerator's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)
