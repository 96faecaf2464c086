"""The settings of classifiers on a language model's features."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from proxlm.config.problems import Problems, required
from proxlm.config.schema import ON_BAD_RECORD, ProcessSettings
from proxlm.config.setting import setting
from proxlm.text import listed, shown

CLASSIFIERS = ("logistic", "bagging", "boosting", "stacking")
WORDS, LABEL_TEXTS = "words", "label_texts"


@dataclass(frozen=True)
class ClassTextSettings:
    """Texts with their classes."""

    train: list[str] = setting(factory=list, help="files or data sets of records to learn from", path="input")
    eval: list[str] = setting(
        factory=list, help="held-out files; empty: eval_share of the texts is set aside", path="input"
    )
    eval_share: float = setting(0.2, "share of the different texts to set aside", gt=0, lt=1)
    text_field: str = setting("text", "field with the text")
    label_field: str = setting("label", "field with the class: a name, or a whole number")
    on_bad_record: Literal["fail", "skip"] = setting("fail", ON_BAD_RECORD)
    on_long_text: Literal["fail", "truncate"] = setting(
        "fail", "a text longer than the model's context: stop with an error, or cut off its beginning"
    )


@dataclass(frozen=True)
class FeatureSettings:
    """What of a model stands for a text: states of its last layer, from one pass."""

    pooling: Literal["mean", "last"] = setting(
        "mean", "mean: of the states of all tokens; last: the state after the last token"
    )
    template: str = setting("{text}", "what the model reads; {text} is the text")
    label_texts: dict[str, Any] = setting(
        factory=dict,
        help="of a causal model: what stands for each class behind the text, {positive = ' good', negative = ' bad'};"
        " the probabilities of their first tokens are a classifier of their own, and enter stacking",
    )
    batch_tokens: int = setting(8192, "most tokens in one forward pass", ge=1)


@dataclass(frozen=True)
class BaggingSettings:
    """Logistic regressions on samples of the records and features (Breiman 1996; Ho 1998)."""

    size: int = setting(10, "number of regressions", ge=1, le=1000)
    features: float = setting(0.5, "share of the features that each one sees", gt=0, le=1)


@dataclass(frozen=True)
class BoostingSettings:
    """Stochastic gradient boosting of trees (Friedman 2002): half of the records and √d features at a time."""

    rounds: int = setting(200, "number of trees, of more than two classes for each class", ge=1, le=5000)
    rate: float = setting(0.1, "how much each tree counts", gt=0, le=1)
    depth: int = setting(3, "depth of a tree", ge=1, le=12)


@dataclass(frozen=True)
class ClassifyConfig:
    """Fit classifiers to a model's features (logistic regression, bagging, boosting, stacking), and compare them."""

    model: str = setting(
        "",
        "the model whose states are the features (also: proxlm classify MODEL): a causal model or an encoder, in a"
        " folder, of a run, on the hub, or a GGUF file",
        path="model",
    )
    data: ClassTextSettings = setting(factory=ClassTextSettings)
    features: FeatureSettings = setting(factory=FeatureSettings)
    use: list[str] = setting(
        factory=lambda: list(CLASSIFIERS),
        help="classifiers beside words (TF-IDF and logistic regression); stacking is of all others",
    )
    folds: int = setting(5, "parts of the training texts for cross-validation and stacking", ge=2, le=100)
    bagging: BaggingSettings = setting(factory=BaggingSettings)
    boosting: BoostingSettings = setting(factory=BoostingSettings)
    classifier: str = setting(
        "",
        "apply this saved one (an output folder from before) to the texts of data.eval, which need no class, instead"
        " of fitting any: output is then a JSONL file of labels and probabilities",
        path="input",
    )
    choose: str = setting(
        "auto",
        "which one is saved: its name, or auto, the lowest log loss by cross-validation on the training texts",
    )
    output: str = setting(
        "",
        "where everything is written; a folder that holds features of the same texts is used again",
        path="output",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...")
    seed: int = setting(0, "seed of the folds, of what is set aside, of bagging and boosting", ge=0, lt=2**32)
    trust_remote_code: bool = setting(False, "allow Python code that comes with the model to run")
    run: ProcessSettings = setting(factory=ProcessSettings)

    positional: ClassVar[str] = "model"
    takes_recipe: ClassVar[bool] = True

    @property
    def names(self) -> list[str]:
        """The classifiers in the order of the table."""
        own = [WORDS, *([LABEL_TEXTS] if self.features.label_texts else [])]
        return [*own, *(name for name in CLASSIFIERS if name in self.use)]

    def problems(self) -> Problems:
        if self.classifier:
            found = required(("data.eval", self.data.eval), ("output", self.output))
            if self.output in self.data.eval:
                found.append(("output", "is a file of data.eval; name a new one"))
            return found
        found = required(("model", self.model), ("data.train", self.data.train), ("output", self.output))
        if find_spec("sklearn") is None:
            found.append(("use", 'scikit-learn is not installed: pip install "proxlm[metrics]"'))
        unknown = [name for name in self.use if name not in CLASSIFIERS]
        if unknown or len(set(self.use)) < len(self.use) or not self.use:
            what = f"{shown(unknown[0], 40)}: unknown" if unknown else "names each once, and one at least"
            found.append(("use", f"{what}; there are {listed(CLASSIFIERS)}"))
        if self.choose not in ("auto", *self.names):
            found.append(("choose", f"must be auto or one of {listed(self.names)}"))
        if "{text}" not in self.features.template:
            found.append(("features.template", "must hold {text}, where the text stands"))
        texts = list(self.features.label_texts.values())
        if texts and not all(isinstance(text, str) and text.strip() for text in texts):
            found.append(("features.label_texts", "must give a text for each class"))
        elif twice := [text for text, count in Counter(texts).items() if count > 1]:
            found.append(("features.label_texts", f"{shown(repr(twice[0]), 40)} stands for two classes"))
        return found
