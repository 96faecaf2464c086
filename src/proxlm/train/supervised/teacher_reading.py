"""What a teacher says of the tokens of texts: read when it is needed, or once for all and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.data.on_disk import RowsOnDisk
from proxlm.models.forward import logit_chunk, response_states
from proxlm.models.language_model import LanguageModel
from proxlm.rl.distillation import SoftTargets, soft_targets
from proxlm.rl.logprobs import spans
from proxlm.rl.ragged import offsets_of, ragged_index
from proxlm.train.supervised.examples import Examples
from proxlm.types import Progress, Sequences

GIB = 2**30


@dataclass(frozen=True)
class Teacher:
    """A frozen model that reads a student's tokens.

    Attributes:
        model: Its tokens are the student's; it may have more.
        vocabulary: V, how many tokens the student's head has. The teacher's distribution is that over these.
        temperature: T of its soft targets.
        top_k: How many likeliest tokens of each position its soft targets name; 0: all.
    """

    model: LanguageModel
    vocabulary: int
    temperature: float = 1.0
    top_k: int = 0

    @torch.no_grad()
    def states(self, sequences: Sequences) -> Tensor:
        """The states that predict the response tokens [R, H]. sequences: on its device."""
        return response_states(self.model, sequences)[0].to(self.model.states_dtype)

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """[r, H] → [r, V] float32."""
        return self.model.logits(states)[:, : self.vocabulary].float()

    def targets(self, states: Tensor) -> SoftTargets:
        """The soft targets of r tokens."""
        return soft_targets(self.logits(states), self.temperature, self.top_k)

    def said(self, sequences: Sequences, counted: Tensor) -> Said:
        """What it says of the response tokens where `counted` [R] is true; the texts are read now."""
        return Said(self, states=self.states(sequences)[counted])


@dataclass(frozen=True)
class Said:
    """What a teacher says of r tokens: its states [r, H], of which targets are made, or kept targets."""

    teacher: Teacher
    states: Tensor | None = None
    kept: SoftTargets | None = None

    def targets(self, span: slice) -> SoftTargets:
        """Of some of the tokens."""
        if self.kept is not None:
            assert self.kept.tokens is not None
            return SoftTargets(self.kept.logprobs[span], self.kept.tokens[span].long())
        assert self.states is not None
        return self.teacher.targets(self.states[span])


class KeptReading:
    """What a teacher says of the counted tokens of all rows of some examples, on disk.

    The whole distributions are kept as the states that they come from [N, H], the k likeliest tokens as they are.

    Args:
        teacher: Reads each text once, here.
        examples: The texts.
        micro_batch_tokens: Most tokens in a pass.
        on_progress: Called with the rows read and all.
    """

    def __init__(
        self,
        teacher: Teacher,
        examples: Examples,
        micro_batch_tokens: int,
        on_progress: Progress | None = None,
    ) -> None:
        self.teacher, top_k, device = teacher, teacher.top_k, teacher.model.device
        counts: list[int] = []
        states = RowsOnDisk(teacher.model.hidden_size, teacher.model.states_dtype)
        tokens, logprobs = RowsOnDisk(top_k, torch.int32), RowsOnDisk(top_k + 1, torch.float32)
        chunk = logit_chunk(teacher.model, entropy=True)
        for rows in _neighbours(examples.lengths, micro_batch_tokens):
            sequences, mask = examples.batch(rows)
            counts += _counted_per_row(sequences, mask)
            found = teacher.states(sequences.to(device))[mask.to(device)]
            if not top_k:
                states.extend(found)
            for span in spans(len(found), chunk) if top_k else ():
                targets = teacher.targets(found[span])
                assert targets.tokens is not None
                tokens.extend(targets.tokens)
                logprobs.extend(targets.logprobs)
            if on_progress is not None:
                on_progress(len(counts), len(examples))
        self._offsets = offsets_of(torch.tensor(counts, dtype=torch.int64))
        self._states, self._tokens, self._logprobs = states.tensor(), tokens.tensor(), logprobs.tensor()

    def said(self, rows: Tensor) -> Said:
        """Of the counted tokens of the given rows, one row after another."""
        at, device = ragged_index(self._offsets, rows), self.teacher.model.device
        if not self.teacher.top_k:
            return Said(self.teacher, states=self._states[at].to(device))
        kept = SoftTargets(self._logprobs[at].to(device), self._tokens[at].to(device))
        return Said(self.teacher, kept=kept)


def bytes_of_reading(teacher: Teacher, examples: Examples) -> int:
    """How much disk a `KeptReading` needs."""
    tokens = int((examples.lengths - examples.prompt_lengths).sum())
    if teacher.top_k:
        return tokens * (8 * teacher.top_k + 4)
    return tokens * teacher.model.hidden_size * teacher.model.states_dtype.itemsize


def over_chunks(
    model: LanguageModel, states: Tensor, loss: Callable[[slice, Tensor], Tensor]
) -> tuple[float, Tensor]:
    """Forward and backward through a student's head, so that the logits of a chunk of tokens exist at a time.

    Args:
        model: Its head's gradient is added to its parameters.
        states: [r, H]; a graph behind them is not used.
        loss: loss(span, logits [c, V] float32) → the summed loss of the tokens of the span.

    Returns:
        The loss, and its gradient with respect to `states` [r, H].
    """
    total, gradient = 0.0, torch.empty_like(states)
    for span in spans(len(states), logit_chunk(model, entropy=True)):
        part = states.detach()[span].requires_grad_()
        share = loss(span, model.logits(part).float())
        share.backward()
        assert part.grad is not None
        gradient[span] = part.grad
        total += float(share.detach())
    return total, gradient


def _neighbours(lengths: Tensor, budget: int) -> Iterator[list[int]]:
    """The rows in their order, in groups whose padded size stays within `budget`; a longer row is alone."""
    group, longest = list[int](), 0
    for row, length in enumerate(lengths.tolist()):
        if group and max(longest, length) * (len(group) + 1) > budget:
            yield group
            group, longest = [], 0
        group.append(row)
        longest = max(longest, length)
    if group:
        yield group


def _counted_per_row(sequences: Sequences, mask: Tensor) -> list[int]:
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.long().cumsum(0)])
    return counts[sequences.response_offsets].diff().tolist()
