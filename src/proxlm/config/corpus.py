"""The settings of `proxlm data`: which steps, in which order, on what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os.path import abspath
from typing import ClassVar, Literal

from proxlm.config.corpus_steps import (
    ChatSettings,
    ChineseSettings,
    ContaminationSettings,
    ExactSettings,
    HtmlSettings,
    LanguageSettings,
    NearSettings,
    PiiSettings,
    QualitySettings,
    SplitSettings,
    UnicodeSettings,
    WordSettings,
)
from proxlm.config.problems import Problems, required
from proxlm.config.setting import setting
from proxlm.text import listed, shown, suggestion
from proxlm.user_code import parse_reference

# Each step, and the package that it needs beside those that are always there.
STEPS = {
    "unicode": "",
    "html": "",
    "chinese": "opencc",
    "language": "py3langid",
    "quality": "",
    "exact": "",
    "near": "datasketch",
    "contamination": "",
    "pii": "",
    "segment": "jieba",
    "stop_words": "",
    "stem": "snowballstemmer",
    "lemma": "simplemma",
    "chat": "",
    "split": "",
}
PII_KINDS = ("email", "card", "iban", "cn_id", "cn_mobile", "phone", "ip")


@dataclass(frozen=True)
class CorpusConfig:
    """Prepare data step by step: clean, filter, deduplicate, mask, convert, split; with a data card."""

    input: list[str] = setting(
        factory=list,
        help="files, folders and data sets to read, in this order (also: proxlm data FILE …)",
        path="input",
    )
    output: str = setting("", "the folder to write", path="output")
    steps: list[str] = setting(
        factory=lambda: ["unicode", "exact"],
        help=f"the steps, in order: {', '.join(STEPS)}, or FILE.py:FUNCTION, which gets a record (a dict) and"
        " returns it, changed or not, or None to leave it out",
        path="function",
    )
    extensions: list[str] = setting(
        factory=lambda: [".txt", ".md", ".html", ".jsonl", ".json", ".csv"],
        help="which files of a folder to read",
    )
    documents: Literal["file", "line", "blank_line"] = setting(
        "file", "what a document of a text file is: the file, a line, or what stands between blank lines"
    )
    fields: list[str] = setting(
        factory=list,
        help="fields whose texts the steps clean and judge; empty: text, or the prompt, response, messages,"
        " instruction … of the known formats",
    )
    on_bad_record: Literal["fail", "skip"] = setting(
        "fail", "what to do with a bad record: stop, or leave it out, count it and list it in skipped.jsonl"
    )
    unicode: UnicodeSettings = setting(factory=UnicodeSettings)
    html: HtmlSettings = setting(factory=HtmlSettings)
    chinese: ChineseSettings = setting(factory=ChineseSettings)
    language: LanguageSettings = setting(factory=LanguageSettings)
    quality: QualitySettings = setting(factory=QualitySettings)
    exact: ExactSettings = setting(factory=ExactSettings)
    near: NearSettings = setting(factory=NearSettings)
    contamination: ContaminationSettings = setting(factory=ContaminationSettings)
    pii: PiiSettings = setting(factory=PiiSettings)
    words: WordSettings = setting(factory=WordSettings)
    chat: ChatSettings = setting(factory=ChatSettings)
    split: SplitSettings = setting(factory=SplitSettings)
    examples: int = setting(3, "the data card's examples for each reason of each step", ge=0, le=100)
    seed: int = setting(0, "seed of the MinHash values and of the splits", ge=0, lt=2**32)
    save_every: float = setting(64.0, "MiB of text between two states from which the job can go on", gt=0)

    positional: ClassVar[str] = "input"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = required(("input", self.input), ("output", self.output)) + _step_problems(self.steps)
        written = [path for path in self.input if self.output and abspath(path) == abspath(self.output)]
        if written:
            found.append(("output", "is an input as well; name a new folder"))
        if "contamination" in self.steps and not self.contamination.against:
            found.append(("contamination.against", "required: the evaluation data to compare with"))
        if unknown := [kind for kind in self.pii.kinds if kind not in PII_KINDS]:
            hint = suggestion(unknown[0], PII_KINDS, f"there are {listed(PII_KINDS)}")
            found.append(("pii.kinds", f"no kind {shown(unknown[0])}; {hint}"))
        if re.sub(r"\{kind\}", "", self.pii.mask).strip("[]<>(){}_- ") != "":
            found.append(("pii.mask", "may hold {kind}, brackets, spaces, - and _ only"))
        found += _quality_problems(self.quality)
        return found + (_split_problems(self.split) if "split" in self.steps else [])


def _step_problems(steps: Sequence[str]) -> Problems:
    found: Problems = [("steps", "empty; name at least one step")] if not steps else []
    for name in steps:
        if name not in STEPS and parse_reference(name) is None:
            listing = f"there are {listed(STEPS)}; one of your own is FILE.py:FUNCTION"
            found.append(("steps", f"no step {shown(name)}; {suggestion(name, STEPS, listing)}"))
        package = STEPS.get(name, "")
        if package and find_spec(package) is None:
            found.append(("steps", f'{name} needs {package}: pip install "proxlm[corpus]"'))
    if "split" in steps[:-1]:
        found.append(("steps", "split must be the last one"))
    return found


def _quality_problems(quality: QualitySettings) -> Problems:
    found: Problems = []
    for least, most in (("min_units", "max_units"), ("min_word_length", "max_word_length")):
        if 0 < getattr(quality, most) < getattr(quality, least):
            found.append((f"quality.{most}", f"less than quality.{least}"))
    return found


def _split_problems(split: SplitSettings) -> Problems:
    found: Problems = []
    if split.validation + split.test >= 1:
        found.append(("split.test", "with split.validation leaves nothing to train on"))
    if split.folds == 1:
        found.append(("split.folds", "must be 0 or at least 2"))
    if split.folds and split.by == "time":
        found.append(("split.folds", "parts by time are no folds; leave it out, or set another split.by"))
    if split.by in ("field", "time") and not split.field:
        found.append(("split.field", f"required with split.by = {split.by}"))
    if not (split.folds or split.validation or split.test):
        found.append(("split.validation", "0, as is split.test: there is nothing to split"))
    if split.by == "near" and find_spec("datasketch") is None:
        found.append(("split.by", 'near needs datasketch: pip install "proxlm[corpus]"'))
    return found
