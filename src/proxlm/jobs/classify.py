"""`proxlm classify`: classifiers on a model's features, compared on held-out texts; the chosen one is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from proxlm.checkpoint.write import publish_folder
from proxlm.classification import fit
from proxlm.classification.heads import Head, StackedHead
from proxlm.classification.inputs import Floats, Inputs, Rows
from proxlm.classification.saved import save
from proxlm.classification.text_classifier import load_text_classifier, model_digest
from proxlm.config import ClassifyConfig, validate
from proxlm.config.classify import LABEL_TEXTS, WORDS
from proxlm.config.paths import absolute
from proxlm.config.signature import checked
from proxlm.data.class_texts import ClassText, read_class_texts
from proxlm.data.inputs import inputs_of
from proxlm.data.labelled import Labelled
from proxlm.data.skipped import Skipped
from proxlm.errors import ConfigError
from proxlm.evaluation import tables
from proxlm.evaluation.differences import Arm, Difference, difference_tables, differences
from proxlm.evaluation.labels import evaluation_of_classes, macro_f1_difference
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.tables import Table, evaluation_tables
from proxlm.export.original import model_of_run
from proxlm.jobs.classify_data import KeptFeatures, texts_of
from proxlm.jobs.startup import start_job
from proxlm.report.evaluation_files import write_evaluations, write_responses
from proxlm.runlog.folder import begin_folder, write_atomic, write_json_atomic, write_jsonl_atomic
from proxlm.runlog.outputs import check_output
from proxlm.text import counted
from proxlm.types import Completion

PLAN, TRAIN, EVAL, SAVED = "classify.json", "features-train", "features-eval", "classifier"


@dataclass(frozen=True)
class Classification:
    """What was fitted.

    Attributes:
        folder: Where everything is.
        chosen: The classifier that is saved in classifier/.
        log_losses: Of each by cross-validation on the training texts, by which it was chosen.
        evaluations: Of each on the held-out texts.
        differences: Of each, less the judge of words.
    """

    folder: Path
    chosen: str
    log_losses: dict[str, float]
    evaluations: list[Evaluation]
    differences: list[Difference]


def main(config: ClassifyConfig) -> None:
    """Fit, compare and save, and print the tables."""
    if config.classifier:
        check_output(Path(config.output), "classify")
    start_job(config.run.threads)
    if config.classifier:
        _apply(config)
        return
    done = fit_classifiers(config)
    print("\n" + tables.as_text(_tables(done)))
    print(f"\nsaved  {done.folder / SAVED}  ({done.chosen})")


def _apply(config: ClassifyConfig) -> None:
    """Write what a saved classifier says of texts."""
    skipped = Skipped(config.data.on_bad_record == "skip")
    classifier = load_text_classifier(config.classifier, config.device)
    texts = read_class_texts(config.data.eval, config.data.text_field, "", skipped)
    skipped.print_summary()
    said = classifier.probabilities([one.text for one in texts]).tolist()
    rows = [
        {
            "record": one.where,
            "text": one.text,
            "label": max(zip(row, classifier.classes, strict=True), key=lambda pair: pair[0])[1],
            "probabilities": dict(zip(classifier.classes, row, strict=True)),
        }
        for one, row in zip(texts, said, strict=True)
    ]
    write_jsonl_atomic(Path(config.output), rows)
    print(f"{counted(len(rows), 'label')} written to {config.output}")


@checked("config")
def fit_classifiers(config: ClassifyConfig) -> Classification:
    """Fit classifiers to a model's features, compare them and save one, as `proxlm classify` does.

    Args:
        config: Model, texts, classifiers and the folder.

    Raises:
        UserError: The texts or the model cannot be used, or the folder holds something else.
    """
    config = validate(config)
    if config.classifier:
        raise ConfigError(
            "classifier: is applied with proxlm.load_text_classifier; leave it out to fit others"
        )
    config = replace(config, model=model_of_run(config.model))
    train, held_out = texts_of(config)
    classes = sorted({found.label for found in train})
    numbers = np.array([classes.index(found.label) for found in train])
    folder = Path(config.output)
    begin_folder(folder, PLAN, _plan(config))
    read = KeptFeatures(folder, config, classes, {TRAIN: train, EVAL: held_out})
    learnt, asked = read(TRAIN), read(EVAL)
    heads, losses = _fitted(config, learnt, numbers, len(classes))
    chosen = min(losses, key=lambda name: losses[name]) if config.choose == "auto" else config.choose
    about = _about(config, learnt)
    publish_folder(folder / SAVED, partial(save, heads[chosen], classes, about))
    found = _evaluations(heads, asked, held_out, classes, config)
    done = Classification(folder, chosen, losses, found, _less_words(found, classes, config.seed))
    _write(done, config)
    return done


def _plan(config: ClassifyConfig) -> dict[str, Any]:
    """What the features are of."""
    same = absolute(config)
    return {
        "model": same.model,
        "data": asdict(same.data),
        "features": asdict(same.features),
        "seed": None if same.data.eval else same.seed,  # of what is set aside
        "inputs": inputs_of(same).digests(),
    }


def _fitted(
    config: ClassifyConfig, inputs: Inputs, classes: Rows, count: int
) -> tuple[dict[str, Head], dict[str, float]]:
    """Each classifier, fitted to all training texts; and its log loss on those that it has not learnt from."""
    fits: Mapping[str, fit.Fit] = {
        WORDS: fit.words,
        LABEL_TEXTS: fit.label_texts,
        "logistic": fit.logistic,
        "bagging": fit.bagging(config.bagging, config.seed),
        "boosting": fit.boosting(config.boosting, config.seed),
    }
    folds = fit.fold_of_each(classes, inputs.texts, config.folds, config.seed)
    alone = [name for name in config.names if name in fits]
    heads: dict[str, Head] = {}
    said: dict[str, Floats] = {}
    for name in alone:
        print(f"fitting {name} …", flush=True)
        said[name] = fit.out_of_fold(fits[name], inputs, classes, count, folds)
        heads[name] = fits[name](inputs, classes, count)
    if "stacking" in config.names:
        every = [said[name] for name in alone]
        said["stacking"] = fit.stacked_out_of_fold(every, classes, count, folds)
        heads["stacking"] = fit.stacked({name: heads[name] for name in alone}, every, classes, count)
    rows = np.arange(len(classes))
    losses = {
        name: float(-np.log(np.maximum(found[rows, classes], 1e-12)).mean()) for name, found in said.items()
    }
    return heads, losses


def _about(config: ClassifyConfig, inputs: Inputs) -> dict[str, Any]:
    """What is written beside a classifier, so that it can be applied."""
    return {
        "model": absolute(config).model,
        "model_sha256": model_digest(config),
        "features": asdict(config.features),
        "truncate": config.data.on_long_text == "truncate",
        "width": inputs.features.shape[1],
    }


def _evaluations(
    heads: Mapping[str, Head],
    inputs: Inputs,
    texts: Sequence[ClassText],
    classes: Sequence[str],
    config: ClassifyConfig,
) -> list[Evaluation]:
    records = [
        Labelled(Completion("", one.text), (float(classes.index(one.label)),), where=one.where)
        for one in texts
    ]
    said: dict[str, Floats] = {}
    for name, head in heads.items():
        if isinstance(head, StackedHead):
            said[name] = head.of([said[part] for part in head.parts])
        else:
            said[name] = head.probabilities(inputs)
    what = {WORDS: "TF-IDF and logistic regression", LABEL_TEXTS: "the language model itself"}
    return [
        evaluation_of_classes(
            name,
            what.get(name, f"{name} on the features"),
            classes,
            list(zip(records, said[name].tolist(), strict=True)),
            seed=config.seed,
        )
        for name in heads
    ]


def _less_words(found: Sequence[Evaluation], classes: Sequence[str], seed: int) -> list[Difference]:
    """Of each classifier, less the baseline: accuracy and log loss, and macro-F1 with the bootstrap's interval."""
    done = differences([Arm(e.name, [e.responses]) for e in found], seed)
    return [*done, *(macro_f1_difference(found[0], other, classes, seed) for other in found[1:])]


def _tables(done: Classification) -> list[Table]:
    chosen = [
        [name, f"{loss:.4f}", "saved" if name == done.chosen else ""]
        for name, loss in done.log_losses.items()
    ]
    by = Table(["classifier", "log loss by cross-validation", ""], chosen)
    return [
        *evaluation_tables(done.evaluations, "held-out text"),
        *difference_tables(done.differences, "text"),
        by,
    ]


def _write(done: Classification, config: ClassifyConfig) -> None:
    """The tables, and every answer."""
    for evaluation in done.evaluations:
        write_responses(done.folder, evaluation)
    write_evaluations(done.folder, done.evaluations, config.seed)
    write_json_atomic(
        done.folder / "classification.json",
        {
            "chosen": done.chosen,
            "log_loss_by_cross_validation": done.log_losses,
            "differences": [asdict(one) for one in done.differences],
        },
    )
    write_atomic(done.folder / "classification.md", tables.as_markdown(_tables(done)))
