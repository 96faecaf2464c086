"""What classifiers read: texts, their features, and what a language model says of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Inputs:
    """n texts as classifiers see them.

    Attributes:
        texts: The texts.
        features: [n, d] states of a model; d = 0: there are none.
        label_probabilities: [n, K] of the classes' texts behind each text, which add up to 1; K = 0: there are none.
    """

    texts: Sequence[str]
    features: Features
    label_probabilities: Features

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, rows: Rows) -> Inputs:
        """Some of them."""
        return Inputs([self.texts[i] for i in rows], self.features[rows], self.label_probabilities[rows])
