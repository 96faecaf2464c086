"""A classifier's folder: classifier.json says what it is, classifier.safetensors holds its numbers. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxlm.classification.heads import Head, LabelHead, LinearHead, StackedHead, TreesHead, WordsHead
from proxlm.errors import ModelError
from proxlm.files import open_regular
from proxlm.system_errors import refused
from proxlm.text import shown

NAME, NUMBERS, FORMAT = "classifier.json", "classifier.safetensors", 1
# Entries of classifier.json: the hash of the other file, and that of all other entries.
OF_NUMBERS, SEAL = "numbers_sha256", "sha256"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SavedClassifier:
    """What a folder holds.

    Attributes:
        head: The classifier.
        classes: The names of the K classes.
        about: Model, features, and from what it was learnt, as written.
    """

    head: Head
    classes: list[str]
    about: dict[str, Any]


def save(head: Head, classes: list[str], about: Mapping[str, Any], folder: Path) -> None:
    """Write a classifier into a folder that is made here."""
    from safetensors.numpy import save as bytes_of

    arrays: Arrays = {}
    content = {"format": FORMAT, "classes": classes, "head": _described(head, "", arrays), **about}
    numbers = bytes_of({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    folder.mkdir(parents=True)
    (folder / NUMBERS).write_bytes(numbers)
    (folder / NAME).write_text(
        json.dumps(sealed(content, numbers), ensure_ascii=False, indent=1, sort_keys=True) + "\n",
        encoding="utf-8",
    )


def sealed(content: Mapping[str, Any], numbers: bytes) -> dict[str, Any]:
    """The entries of classifier.json with the hashes by which a change of either file is seen."""
    found = {name: value for name, value in content.items() if name != SEAL}
    found[OF_NUMBERS] = hashlib.sha256(numbers).hexdigest()
    return {**found, SEAL: hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()}


def load(folder: Path) -> SavedClassifier:
    """The classifier in a folder.

    Raises:
        ModelError: There is none, or what is there is not what `save` writes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as arrays_of

    try:
        with open_regular(folder / NAME) as file:
            content = json.loads(file.read().decode("utf-8"))
        with open_regular(folder / NUMBERS) as file:
            numbers = file.read()
        arrays = arrays_of(numbers)
    except OSError as error:
        raise ModelError(f"{folder}: no classifier: {refused(error)}") from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder}: a damaged classifier: {shown(str(error), 80)}") from error
    try:
        if content["format"] != FORMAT:
            raise ModelError(
                f"{folder}: format {shown(repr(content['format']), 40)}, where {FORMAT} is known"
            )
        if content != sealed(content, numbers):
            raise ModelError(
                f"{folder}: {NAME} or {NUMBERS} has changed since it was written; fit the classifiers again"
            )
        classes = content["classes"]
        if (
            len(set(classes)) != len(classes)
            or len(classes) < 2
            or not all(isinstance(name, str) for name in classes)
        ):
            raise ValueError("classes must be two names or more, each once")
        head = _head(content["head"], "", arrays, len(classes), 0)
    except KeyError as error:
        raise ModelError(
            f"{folder}: not a classifier of proxlm: {NAME} has no {shown(str(error), 40)}"
        ) from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"{folder}: not a classifier of proxlm: {shown(str(error), 100)}") from error
    return SavedClassifier(head, classes, content)


def _described(head: Head, at: str, arrays: Arrays) -> dict[str, Any]:
    """What classifier.json says of a head; its numbers go into arrays under names that begin with `at`."""
    if isinstance(head, LabelHead):
        return {"kind": "label_texts"}
    if isinstance(head, StackedHead):
        arrays |= {f"{at}weights": head.weights, f"{at}biases": head.biases}
        parts = {name: _described(part, f"{at}{name}.", arrays) for name, part in head.parts.items()}
        return {"kind": "stacking", "order": list(parts), "parts": parts}
    if isinstance(head, WordsHead):
        arrays |= {f"{at}idf": head.idf, f"{at}weights": head.weights, f"{at}biases": head.biases}
        return {"kind": "words", "words": list(head.words)}
    names = _TREES if isinstance(head, TreesHead) else _LINEAR
    arrays |= {f"{at}{name}": getattr(head, name) for name in names}
    return {"kind": "trees", "rate": head.rate} if isinstance(head, TreesHead) else {"kind": "linear"}


_LINEAR = ("mean", "scale", "weights", "biases")
_TREES = ("start", "roots", "left", "right", "feature", "threshold", "value")


def _head(found: Mapping[str, Any], at: str, arrays: Arrays, count: int, depth: int) -> Head:
    """Inverse of `_described`. Raises ValueError, TypeError or KeyError for what it cannot have written."""
    kind = found["kind"]
    if kind == "label_texts":
        return LabelHead()
    if kind == "stacking" and depth == 0:
        parts = {
            str(name): _head(found["parts"][name], f"{at}{name}.", arrays, count, 1)
            for name in found["order"]
        }
        width = len(parts) * (1 if count == 2 else count)
        return StackedHead(
            parts,
            _floats(arrays, f"{at}weights", (count, width)),
            _floats(arrays, f"{at}biases", (count,)),
        )
    if kind == "words":
        words = found["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("words must be a list of texts")
        weights = _floats(arrays, f"{at}weights", (count, len(words)))
        return WordsHead(
            words,
            _floats(arrays, f"{at}idf", (len(words),)),
            weights,
            _floats(arrays, f"{at}biases", (count,)),
        )
    if kind == "linear":
        members, _, size = _array(arrays, f"{at}weights", 3).shape
        return LinearHead(
            _floats(arrays, f"{at}mean", (size,)),
            _floats(arrays, f"{at}scale", (size,)),
            _floats(arrays, f"{at}weights", (members, count, size)),
            _floats(arrays, f"{at}biases", (members, count)),
        )
    if kind == "trees":
        return _trees(found, at, arrays, count)
    raise ValueError(f"kind {kind!r}")


def _trees(found: Mapping[str, Any], at: str, arrays: Arrays, count: int) -> TreesHead:
    """Trees whose nodes come before their children, so that none is walked for ever."""
    size = len(_array(arrays, f"{at}value", 1))
    whole = {name: _array(arrays, f"{at}{name}", 1) for name in ("roots", "left", "right", "feature")}
    left, right, roots = whole["left"], whole["right"], whole["roots"]
    inner = left >= 0
    if (
        any(array.dtype != np.int64 for array in whole.values())
        or not len(left) == len(right) == len(whole["feature"]) == size
        or ((left[inner] <= np.flatnonzero(inner)) | (right[inner] <= np.flatnonzero(inner))).any()
        or max(left.max(initial=0), right[inner].max(initial=0), roots.max(initial=0)) >= size
        or roots.min(initial=0) < 0
        or whole["feature"][inner].min(initial=0) < 0
    ):
        raise ValueError(f"{at}trees: their nodes do not fit together")
    return TreesHead(
        _floats(arrays, f"{at}start", (1 if count == 2 else count,)),
        float(found["rate"]),
        roots,
        left,
        right,
        whole["feature"],
        _floats(arrays, f"{at}threshold", (size,)),
        _floats(arrays, f"{at}value", (size,)),
    )


def _floats(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = _array(arrays, name, len(shape))
    if array.dtype != np.float64 or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, and float64 of {shape} is needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a number that is not finite")
    return array


def _array(arrays: Arrays, name: str, dimensions: int) -> NDArray[Any]:
    if name not in arrays:
        raise ValueError(f"{NUMBERS} has no {name}")
    if arrays[name].ndim != dimensions:
        raise ValueError(f"{name} has {arrays[name].ndim} dimensions, and {dimensions} are needed")
    return arrays[name]
