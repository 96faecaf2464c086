"""A saved classifier, applied to texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proxlm.classification.features import FeatureReader
from proxlm.classification.heads import Head, LabelHead, LinearHead, StackedHead, TreesHead
from proxlm.classification.inputs import Floats, Inputs
from proxlm.classification.saved import NAME, load
from proxlm.config import ClassifyConfig, FeatureSettings, ModelSettings
from proxlm.config.signature import checked
from proxlm.data.inputs import inputs_of
from proxlm.errors import DataError, ModelError
from proxlm.text import shown


def needs_model(head: Head) -> bool:
    """Whether a classifier reads more than words."""
    if isinstance(head, StackedHead):
        return any(map(needs_model, head.parts.values()))
    return isinstance(head, LinearHead | TreesHead | LabelHead)


def model_digest(config: ClassifyConfig) -> str:
    """A SHA-256 of the model's files; "" where it is not on this machine's disk."""
    return inputs_of(config).digests().get("model", "")


class TextClassifier:
    """A saved classifier; its model is loaded with the first texts, if it needs one.

    Args:
        folder: classifier/ in the output folder of `proxlm classify`.
        device: auto, cpu, cuda, cuda:1, …

    Attributes:
        classes: The names of the classes.

    Raises:
        ModelError: There is no such classifier, it is damaged, or its model is another one now.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self._saved, self._folder, self._device = load(folder), folder, device
        self.classes = self._saved.classes
        self._reader: FeatureReader | None = None

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """[n, K]: the probability of each class, of each text. Raises DataError for a text that is too long."""
        return self._saved.head.probabilities(self._inputs(list(texts)))

    def labels(self, texts: Sequence[str]) -> list[str]:
        """The likeliest class of each text."""
        return [self.classes[i] for i in self.probabilities(texts).argmax(1)] if texts else []

    def _inputs(self, texts: Sequence[str]) -> Inputs:
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError("texts: expected some texts that are not empty")
        if not needs_model(self._saved.head):
            nothing = np.zeros((len(texts), 0), np.float32)
            return Inputs(texts, nothing, nothing)
        if self._reader is None:
            self._reader = self._load()
        found = self._reader.read(texts, [f"text {i + 1}" for i in range(len(texts))])
        if found.features.shape[1] != self._saved.about.get("width"):
            raise ModelError(f"{self._folder}: the model's states are of another size than the classifier's")
        return found

    def _load(self) -> FeatureReader:
        about = self._saved.about
        try:
            config = ClassifyConfig(
                model=str(about["model"]),
                features=FeatureSettings(**about["features"]),
                trust_remote_code=False,
            )
            settings = ModelSettings(policy=config.model, device=self._device)
            digest, truncate = str(about["model_sha256"]), bool(about["truncate"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{self._folder / NAME}: not a classifier of proxlm") from error
        if digest and model_digest(config) != digest:
            raise ModelError(
                f"{shown(config.model, 80)}: not the model that {self._folder} was fitted to (another SHA-256)"
            )
        return FeatureReader(settings, config.features, self.classes, truncate)


@checked()
def load_text_classifier(folder: str | Path, device: str = "auto") -> TextClassifier:
    """A classifier that `proxlm classify` has saved.

    Args:
        folder: classifier/ in its output folder, or that itself.
        device: Where its model runs: auto, cpu, cuda, cuda:1, …

    Raises:
        ModelError: There is none, or it is damaged.
    """
    inner = Path(folder) / "classifier"
    return TextClassifier(inner if inner.is_dir() else Path(folder), device)
