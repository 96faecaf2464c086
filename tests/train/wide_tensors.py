"""Watches the tensors that a computation makes, for those as wide as the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WideTensors(TorchDispatchMode):
    """The number of rows of the tallest tensor that is as wide as the vocabulary, and is no weight."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.vocabulary, self.hidden, self.rows, self.seen = vocabulary, hidden, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape[-1:]:
                rows = tensor.numel() // self.vocabulary
                if rows != self.hidden:  # the head's weight, turned
                    self.rows, self.seen = max(self.rows, rows), self.seen + 1
        return found
