"""What classifiers learn: texts with their classes, and the model's features of them, which are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from proxlm.checkpoint.write import publish_folder
from proxlm.classification.features import FeatureReader
from proxlm.classification.inputs import Inputs
from proxlm.config import ClassifyConfig, ModelSettings
from proxlm.data.class_texts import ClassText, read_class_texts
from proxlm.data.preferences import split_by_prompt
from proxlm.data.skipped import Skipped
from proxlm.errors import DataError
from proxlm.evaluation.word_baseline import too_few, words_of
from proxlm.jobs.progress import progress_line
from proxlm.text import counted, listed, shown


def texts_of(config: ClassifyConfig) -> tuple[list[ClassText], list[ClassText]]:
    """The texts to learn from and the held-out ones; no text is in both. Raises DataError."""
    data = config.data
    skipped = Skipped(data.on_bad_record == "skip")
    read = partial(
        read_class_texts, text_field=data.text_field, label_field=data.label_field, skipped=skipped
    )
    train = read(data.train)
    left_out = 0
    if data.eval:
        held_out = read(data.eval)
        there = {found.text for found in held_out}
        kept = [found for found in train if found.text not in there]
        left_out = len(train) - len(kept)
        if left_out:
            print(f"left out: {counted(left_out, 'training text')} that are also held out")
        train = kept
    else:
        rows = split_by_prompt([found.text for found in train], data.eval_share, config.seed)
        train, held_out = ([train[i] for i in some] for some in rows)
    if len(skipped):
        print(f"left out: {skipped.report()}", flush=True)
    _check_counts(train, left_out, config.folds)
    counts = Counter(found.label for found in train)
    if unknown := sorted({found.label for found in held_out} - set(counts)):
        raise DataError(
            f"data.eval: class {shown(repr(unknown[0]), 40)} is not in the training texts, which have"
            f" {listed(sorted(counts), most=8)}"
        )
    print(
        f"{len(train):,} texts to learn from, {len(held_out):,} held out, {len(counts)} classes", flush=True
    )
    return train, held_out


def _check_counts(train: Sequence[ClassText], left_out: int, folds: int) -> None:
    """Raise DataError where there are too few texts to learn from, after `left_out` that are also held out."""
    without = f" (without {counted(left_out, 'text')} that are also held out)" if left_out else ""
    if (problem := too_few([found.label for found in train])) is not None:
        raise DataError(f"data.train: learning {problem}{without}")
    # Equal texts are always in one fold.
    counts = Counter(label for label, _ in {(found.label, found.text) for found in train})
    rarest = min(counts, key=lambda name: (counts[name], name))
    if counts[rarest] < 2 * folds:
        raise DataError(
            f"data.train: {counted(counts[rarest], 'different text')} of class {shown(repr(rarest), 40)}{without};"
            f" folds = {folds} needs {2 * folds} of each; lower folds, or leave the class out"
        )
    if words_of([found.text for found in train]) is None:
        raise DataError(f"data.train: no word stands in two texts{without}; give more texts")


class KeptFeatures:
    """The features of texts: from the folder, or else read by the model, which is loaded once, and kept there.

    Args:
        folder: The output.
        config: Model, features, and what is done with long texts.
        classes: In their order.
        texts: By the name that their features are kept under.

    Raises:
        UserError: The model cannot read a text, or not so; before its weights are loaded.
    """

    def __init__(
        self,
        folder: Path,
        config: ClassifyConfig,
        classes: Sequence[str],
        texts: Mapping[str, Sequence[ClassText]],
    ) -> None:
        self._folder, self._model, self._texts = folder, config.model, texts
        settings = ModelSettings(
            policy=config.model, device=config.device, trust_remote_code=config.trust_remote_code
        )
        truncate = config.data.on_long_text == "truncate"
        if wanted := [name for name in texts if not (folder / name).is_dir()]:
            self._reader = FeatureReader(settings, config.features, classes, truncate)
        for name in wanted:
            self._reader.check([one.text for one in texts[name]], [one.where for one in texts[name]])

    def __call__(self, name: str) -> Inputs:
        from safetensors.numpy import load_file, save_file

        kept, texts = self._folder / name, self._texts[name]
        if kept.is_dir():
            found = load_file(kept / "features.safetensors")
            return Inputs([one.text for one in texts], found["features"], found["label_probabilities"])
        print(f"reading {len(texts):,} texts with {self._model} …", flush=True)
        inputs = self._reader.read(
            [one.text for one in texts], [one.where for one in texts], progress_line("texts")
        )
        arrays = {"features": inputs.features, "label_probabilities": inputs.label_probabilities}

        def write(folder: Path) -> None:
            folder.mkdir()
            save_file(arrays, folder / "features.safetensors")

        publish_folder(kept, write)
        return inputs
