"""Out of memory in a forward or backward pass: the same work is done again with fewer tokens in a pass."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from proxlm.distributed.ranks import Ranks
from proxlm.errors import RunError
from proxlm.models.forward import micro_batches
from proxlm.text import headline

log = logging.getLogger(__name__)
T = TypeVar("T")
# The texts of torch's CPU allocator, CUDA and others, which have no error type of their own for it.
PHRASES = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass
class TokenBudget:
    """The most tokens in one pass. It is halved on out-of-memory and stays lowered for the rest of the run.

    Attributes:
        tokens: The limit now.
        lowered: The limit that out-of-memory has left, for a checkpoint; 0: never lowered.
    """

    tokens: int
    lowered: int = 0

    def restore(self, lowered: int) -> None:
        """Take over what out-of-memory had left in the run that is resumed."""
        self.lowered = lowered
        self.tokens = min(self.tokens, lowered or self.tokens)


def within_memory(
    budget: TokenBudget, work: Callable[[int], T], lengths: Tensor, clear: Callable[[], None] = lambda: None
) -> T:
    """Call `work` with the tokens in a pass, and again with half of them each time it runs out of memory.

    Args:
        budget: The tokens in a pass; lowered on out-of-memory.
        work: Does the work in passes of at most so many tokens.
        lengths: Of the sequences that it splits into passes, [B].
        clear: Undoes what an unfinished call of `work` has done.

    Raises:
        RunError: Even single sequences do not fit.
    """
    while True:
        try:
            return work(budget.tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = headline(error, 200)
        # Only here the error is freed, and with it the tensors that its traceback held.
        clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if max(len(rows) for rows in micro_batches(lengths, budget.tokens)) == 1:
            raise RunError(
                f"out of memory with one sequence of up to {int(lengths.max())} tokens in a pass ({reason});"
                " shorten the sequences, or take a smaller model, bfloat16 or adapters (model.lora.rank)"
            )
        # A budget far above the size of the batch would be halved several times without effect.
        budget.tokens = max(1, min(budget.tokens, len(lengths) * int(lengths.max())) // 2)
        budget.lowered = budget.tokens
        log.warning(
            "out of memory (%s): continuing with at most %d tokens in a pass (micro_batch_tokens)",
            reason,
            budget.tokens,
        )


def failing_together(ranks: Ranks, work: Callable[[], T]) -> T:
    """Call `work`, which must not communicate; if it runs out of memory on any rank, all raise OutOfMemoryError."""
    if ranks.size == 1:
        return work()
    found, reason = list[T](), ""
    try:
        found.append(work())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    if bool(ranks.max(torch.tensor(not found, dtype=torch.int32))):
        raise torch.OutOfMemoryError(reason or "out of memory on another rank")
    return found[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory has run out, the processor's or an accelerator's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)
