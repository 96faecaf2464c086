"""Decoding steps of fixed shapes, which a GPU repeats from a recording: a small model's step is otherwise mostly the
time in which Python launches its kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from proxlm.errors import ModelError
from proxlm.kernels.cuda_graph import Capture


class StaticSteps:
    """One token for each row, at as many rows as the next power of two; the rows beyond are slots that nobody reads.

    Args:
        run: tokens [n], positions [n], both int64 → the states [n, H] of the first n slots; a pass whose shapes
            depend on n alone.
        slots: most rows.
        device: where they are.
        capture: makes a pass repeatable.
    """

    def __init__(
        self, run: Callable[[Tensor, Tensor], Tensor], slots: int, device: torch.device, capture: Capture
    ) -> None:
        self._run, self._capture = run, capture
        self._tokens, self._positions = torch.zeros(2, slots, dtype=torch.int64, device=device)
        self._replays: dict[int, Callable[[], Tensor]] = {}

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The states [b, H] after tokens [b] at positions [b].

        Raises:
            ModelError: The first repetition of a pass gives other numbers than the pass.
        """
        rows = len(tokens)
        self._tokens[:rows], self._positions[:rows] = tokens, positions
        number = min(1 << (rows - 1).bit_length(), len(self._tokens))
        if number not in self._replays:
            self._replays[number] = self._recorded(number)
        return self._replays[number]()[:rows].clone()  # the next repetition writes to the same memory

    def _recorded(self, number: int) -> Callable[[], Tensor]:
        run = partial(self._run, self._tokens[:number], self._positions[:number])
        wanted = run().clone()
        replay = self._capture(run)
        found = replay()
        # Rounding may differ, for a library may choose another algorithm; a wrong address gives anything.
        most = max(1e-3, 16 * torch.finfo(wanted.dtype).eps) * wanted.abs().max()
        if not (gap := (found - wanted).abs().max()) <= most:
            raise ModelError(
                f"rollout.cuda_graphs: repeating a step of {number} rows gives states that differ by {gap:.3g};"
                " set it to false"
            )
        return replay
