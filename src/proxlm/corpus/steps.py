"""The steps by the names of `steps`: from the settings of a job to functions of records."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from proxlm.config.corpus import STEPS, CorpusConfig
from proxlm.config.corpus_steps import ChatSettings
from proxlm.corpus.chat_formats import ChatConversion
from proxlm.corpus.contamination import EvaluationNgrams
from proxlm.corpus.duplicates import first_of_equal, minhasher, near_verdict, text_key
from proxlm.corpus.html_text import html_to_text, looks_like_html
from proxlm.corpus.languages import language_of
from proxlm.corpus.pii import mask_pii
from proxlm.corpus.quality import rejection
from proxlm.corpus.sources import evaluation_texts
from proxlm.corpus.splits import Split
from proxlm.corpus.step import CorpusStep, Outcome, RecordStep, Rows, Verdict
from proxlm.corpus.texts import names_of, texts_of, with_texts
from proxlm.corpus.unicode_text import normalised
from proxlm.corpus.words import (
    chinese_converter,
    lemmatiser,
    read_stop_words,
    segmenter,
    stemmer,
    stop_word_remover,
)
from proxlm.data.fields import own_copy
from proxlm.data.skipped import Record
from proxlm.errors import ConfigError, UserCodeError
from proxlm.user_code import Reference, describe_error, load, parse_reference

EMPTY = "empty"
Change = Callable[[str], str]


@dataclass(frozen=True)
class NamedStep:
    """A step with its name.

    Attributes:
        name: As in `steps`.
        step: What it does.
        fields_in: The fields that hold the texts before it, as the setting `fields`.
        fields_out: Those after it.
    """

    name: str
    step: RecordStep | CorpusStep
    fields_in: Sequence[str]
    fields_out: Sequence[str]


def first_fields(config: CorpusConfig) -> Sequence[str]:
    """The fields that hold the texts of what is read; those that the step chat names if nothing else does."""
    chat = config.chat
    if config.fields or "chat" not in config.steps or chat == ChatSettings(to=chat.to):
        return config.fields
    return [chat.prompt_field, chat.response_field]


def short_name(name: str) -> str:
    """A step's name in the data card: of a function in a file without the file's folder."""
    return name if name in STEPS else os.path.basename(name)


def build_steps(config: CorpusConfig) -> list[NamedStep]:
    """The steps of a job in order.

    Raises:
        ConfigError: A package is missing, or a setting names what does not exist.
        DataError: The evaluation data cannot be read.
    """
    modules: dict[str, ModuleType] = {}
    steps: list[NamedStep] = []
    fields = first_fields(config)
    for name in config.steps:
        make = _MAKERS.get(name)
        if make is not None:
            step = make(config, fields)
        else:
            reference = parse_reference(name)
            assert reference is not None
            step = UserStep(reference, modules)
        # After the step chat the records have the fields of a known format.
        after: Sequence[str] = () if name == "chat" else fields
        steps.append(NamedStep(short_name(name), step, fields, after))
        fields = after
    return steps


class TextStep:
    """A step that changes texts one by one; a record is left out if nothing of one of its texts is left.

    Args:
        change: The text after the step.
        fields: As the setting.
    """

    def __init__(self, change: Change, fields: Sequence[str]) -> None:
        self._change, self._fields = change, fields

    def __call__(self, record: Record) -> Outcome:
        differs, emptied = False, False

        def changed(text: str) -> str:
            nonlocal differs, emptied
            new = self._change(text)
            differs |= new != text
            emptied |= not new.strip() and bool(text.strip())
            return new

        fields = with_texts(record, names_of(record, self._fields), changed)
        if emptied:
            return Outcome(record.fields, EMPTY, "nothing is left")
        return Outcome(fields if differs else record.fields)


class PiiStep:
    """A step that masks personal data and counts it by kind."""

    def __init__(self, config: CorpusConfig, fields: Sequence[str]) -> None:
        self._kinds, self._mask, self._fields = config.pii.kinds, config.pii.mask, fields

    def __call__(self, record: Record) -> Outcome:
        labels: dict[str, int] = {}

        def masked(text: str) -> str:
            text, found = mask_pii(text, self._kinds, self._mask)
            for kind, count in found.items():
                labels[kind] = labels.get(kind, 0) + count
            return text

        fields = with_texts(record, names_of(record, self._fields), masked)
        return Outcome(fields if labels else record.fields, labels=labels)


class LanguageStep:
    """A step that finds the language, and leaves out records in others than those to keep."""

    def __init__(self, config: CorpusConfig, fields: Sequence[str]) -> None:
        self._settings, self._fields = config.language, fields
        self._language = language_of(config.language.among, config.language.least_characters)

    def __call__(self, record: Record) -> Outcome:
        settings = self._settings
        name, probability = self._language(_joined(record, self._fields))
        labels = {name: 1}
        if settings.keep and name not in settings.keep:
            return Outcome(record.fields, f"language {name}", f"probability {probability:.2f}", labels)
        if probability < settings.least_probability:
            return Outcome(record.fields, "language uncertain", f"{name}, {probability:.2f}", labels)
        fields = {**record.fields, settings.field: name} if settings.field else record.fields
        return Outcome(fields, labels=labels)


class QualityStep:
    """A step that leaves out texts beyond the bounds of [quality]."""

    def __init__(self, config: CorpusConfig, fields: Sequence[str]) -> None:
        self._bounds, self._fields = config.quality, config.quality.fields or fields

    def __call__(self, record: Record) -> Outcome:
        return Outcome(record.fields, *rejection(_joined(record, self._fields), self._bounds))


class ContaminationStep:
    """A step that leaves out records with n-grams of the evaluation data."""

    def __init__(self, config: CorpusConfig, fields: Sequence[str]) -> None:
        settings = config.contamination
        self._fields, self._most = settings.fields or fields, settings.most_shared
        texts = evaluation_texts(settings.against, settings.against_fields, config.extensions)
        self.known = EvaluationNgrams(texts, settings.ngram, settings.least)
        if not self.known.texts:
            raise ConfigError(
                f"contamination.against: all {self.known.too_short} texts are shorter than contamination.least ="
                f" {settings.least} units; lower it"
            )

    def __call__(self, record: Record) -> Outcome:
        share, ngram = self.known.shared(_joined(record, self._fields))
        if share > self._most:
            return Outcome(record.fields, "in evaluation data", f"{share:.0%} of the n-grams, first: {ngram}")
        return Outcome(record.fields)


class UserStep:
    """A step that is a function in a user's file: it gets a record and returns it, changed or not, or None."""

    def __init__(self, reference: Reference, modules: dict[str, ModuleType]) -> None:
        self._path, self._name = reference
        self._function = load("steps", reference, modules)
        if not callable(self._function):
            raise ConfigError(f"steps: {self._name} in {self._path} is no function")

    def __call__(self, record: Record) -> Outcome:
        try:
            fields = self._function(own_copy(record.fields))
        except Exception as error:
            raise UserCodeError(
                f"{record.where}: step {self._name} raised {describe_error(error, self._path)}"
            ) from error
        if fields is None:
            return Outcome(record.fields, f"left out by {self._name}")
        if not isinstance(fields, Mapping) or not all(isinstance(key, str) for key in fields):
            raise UserCodeError(
                f"{record.where}: step {self._name} returned {type(fields).__name__}; return a dict or None"
            )
        return Outcome(dict(fields))


class ExactStep:
    """A step that keeps the first of equal records."""

    width = 8
    parts: tuple[str, ...] = ()

    def __init__(self, config: CorpusConfig, fields: Sequence[str]) -> None:
        self._ignore, self._fields = config.exact.ignore, config.exact.fields or fields

    def row(self, record: Record) -> bytes:
        # The borders of the texts count: "a b" and "c" are not "a" and "b c".
        texts = texts_of(record, names_of(record, self._fields))
        keys = b"".join(text_key(text, self._ignore) for text in texts)
        return keys if len(texts) == 1 else text_key(keys.hex())

    def decide(self, rows: Rows) -> Verdict:
        return Verdict(first_of_equal(rows), removed="equal")


class NearStep:
    """A step that keeps the first of near duplicates."""

    parts: tuple[str, ...] = ()

    def __init__(self, config: CorpusConfig, fields: Sequence[str]) -> None:
        near = config.near
        self._threshold, self._fields, self.width = (
            near.threshold,
            near.fields or fields,
            4 * near.permutations,
        )
        self._signature = minhasher(near.permutations, near.ngram, config.seed)

    def row(self, record: Record) -> bytes:
        return self._signature(_joined(record, self._fields)).tobytes()

    def decide(self, rows: Rows) -> Verdict:
        return near_verdict(rows, self._threshold)


def _joined(record: Record, fields: Sequence[str]) -> str:
    return "\n".join(texts_of(record, names_of(record, fields)))


def _unicode(config: CorpusConfig) -> Change:
    settings = config.unicode
    return lambda text: normalised(text, settings.form, settings.controls, settings.spaces)


def _html(config: CorpusConfig) -> Change:
    always = config.html.always
    return lambda text: html_to_text(text) if always or looks_like_html(text) else text


def _split(config: CorpusConfig, fields: Sequence[str]) -> Split:
    return Split(replace(config.split, fields=config.split.fields or list(fields)), config.seed)


def _text_step(change: Callable[[CorpusConfig], Change]) -> _Maker:
    return lambda config, fields: TextStep(change(config), fields)


_Maker = Callable[[CorpusConfig, Sequence[str]], RecordStep | CorpusStep]
_MAKERS: dict[str, _Maker] = {
    "unicode": _text_step(_unicode),
    "html": _text_step(_html),
    "chinese": _text_step(lambda config: chinese_converter(config.chinese.to)),
    "language": LanguageStep,
    "quality": QualityStep,
    "exact": ExactStep,
    "near": NearStep,
    "contamination": ContaminationStep,
    "pii": PiiStep,
    "segment": _text_step(lambda _: segmenter()),
    "stop_words": _text_step(
        lambda config: stop_word_remover(
            read_stop_words(config.words.stop_words, config.words.stop_word_file)
        )
    ),
    "stem": _text_step(lambda config: stemmer(config.words.language)),
    "lemma": _text_step(lambda config: lemmatiser(config.words.language)),
    "chat": lambda config, _: ChatConversion(config.chat),
    "split": _split,
}
