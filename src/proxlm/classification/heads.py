"""Fitted classifiers as plain arrays: what they say is computed with NumPy alone, fitted or loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from proxlm.classification.inputs import Features, Floats, Inputs, Rows
from proxlm.evaluation.word_baseline import word_features


class Head(Protocol):
    """A fitted classifier of K classes."""

    def probabilities(self, inputs: Inputs) -> Floats:
        """[n, K], which add up to 1."""


@dataclass(frozen=True)
class LinearHead:
    """The mean of M logistic regressions on standardised features; M = 1 is logistic regression.

    Attributes:
        mean: [d] of the features.
        scale: [d] their standard deviations, 1 where they are constant.
        weights: [M, K, d]; of two classes the first one's are 0.
        biases: [M, K].
    """

    mean: Floats
    scale: Floats
    weights: Floats
    biases: Floats

    def probabilities(self, inputs: Inputs) -> Floats:
        """[n, K]."""
        rows = (inputs.features - self.mean) / self.scale
        every = [_softmax(rows @ w.T + b) for w, b in zip(self.weights, self.biases, strict=True)]
        return np.asarray(np.mean(every, axis=0))


@dataclass(frozen=True)
class TreesHead:
    """A sum of regression trees (gradient boosting). Inner nodes come before their children.

    Attributes:
        start: [C] the sum before the first tree; C = 1 for two classes, else K.
        rate: How much each tree counts.
        roots: [T · C] the first node of each tree, those of a round one after another.
        left: [N] the node to go to where the feature is at most the threshold; -1 in a leaf.
        right: [N] the other one.
        feature: [N] which one is compared.
        threshold: [N] with what.
        value: [N] of a leaf.
    """

    start: Floats
    rate: float
    roots: Rows
    left: Rows
    right: Rows
    feature: Rows
    threshold: Floats
    value: Floats

    def probabilities(self, inputs: Inputs) -> Floats:
        """[n, K]."""
        sums = np.tile(self.start, (len(inputs), 1))
        for number, root in enumerate(self.roots):
            sums[:, number % len(self.start)] += self.rate * self.value[self._leaves(inputs.features, root)]
        return _softmax(np.hstack([np.zeros((len(inputs), 1)), sums]) if sums.shape[1] == 1 else sums)

    def _leaves(self, features: Features, root: np.int64) -> Rows:
        """Where each row ends in a tree."""
        at = np.full(len(features), root)
        every = np.arange(len(features))
        while len(every):
            every = every[self.left[at[every]] >= 0]
            nodes = at[every]
            goes_left = features[every, self.feature[nodes]] <= self.threshold[nodes]
            at[every] = np.where(goes_left, self.left[nodes], self.right[nodes])
        return at


@dataclass(frozen=True)
class WordsHead:
    """TF-IDF and logistic regression.

    Attributes:
        words: The V words (see `word_features`), in the order of the weights.
        idf: [V] how rare each is.
        weights: [K, V]; of two classes the first one's are 0.
        biases: [K].
    """

    words: Sequence[str]
    idf: Floats
    weights: Floats
    biases: Floats

    @cached_property
    def _number(self) -> Mapping[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def probabilities(self, inputs: Inputs) -> Floats:
        """[n, K]."""
        scores = np.tile(self.biases, (len(inputs), 1))
        for row, text in zip(scores, inputs.texts, strict=True):
            counts = Counter(i for word in word_features(text) if (i := self._number.get(word)) is not None)
            numbers = sorted(counts)
            found = np.array([1 + math.log(counts[i]) for i in numbers]) * self.idf[numbers]
            length = math.sqrt(float(found @ found))
            if length:
                row += self.weights[:, numbers] @ (found / length)
        return _softmax(scores)


@dataclass(frozen=True)
class LabelHead:
    """What the language model itself says of the classes' texts; nothing is fitted."""

    def probabilities(self, inputs: Inputs) -> Floats:
        """[n, K]."""
        return inputs.label_probabilities.astype(np.float64)


@dataclass(frozen=True)
class StackedHead:
    """Logistic regression on the probabilities of other classifiers (Wolpert 1992).

    Attributes:
        parts: By name, in the order of the weights.
        weights: [K, P] for the probabilities of the parts side by side, of two classes of the second one alone; the
            first class's are then 0.
        biases: [K].
    """

    parts: Mapping[str, Head]
    weights: Floats
    biases: Floats

    def probabilities(self, inputs: Inputs) -> Floats:
        """[n, K]."""
        return self.of([part.probabilities(inputs) for part in self.parts.values()])

    def of(self, said: Sequence[Floats]) -> Floats:
        """The same from what each part says, [n, K] each."""
        return _softmax(side_by_side(said) @ self.weights.T + self.biases)


def side_by_side(said: Sequence[Floats]) -> Floats:
    """What stacking learns from: [n, P]. Of two classes one probability says all."""
    return np.hstack([one[:, 1:] if one.shape[1] == 2 else one for one in said])


def _softmax(scores: Floats) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
