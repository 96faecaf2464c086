"""The settings of the steps of `proxlm data`, one section a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting

_FIELDS = "fields whose texts the step looks at; empty: those of fields"


@dataclass(frozen=True)
class UnicodeSettings:
    """Line ends as LF, Unicode in one form, and no control characters."""

    form: Literal["NFC", "NFKC", "none"] = setting(
        "NFC", "Unicode normal form; NFKC also makes full-width letters and ligatures plain"
    )
    controls: bool = setting(
        True, "leave out control, bidirectional and zero-width characters; tab and line end stay"
    )
    spaces: bool = setting(
        False, "leave out spaces at the ends of lines, and blank lines after the first of several"
    )


@dataclass(frozen=True)
class HtmlSettings:
    """HTML as text: no markup, scripts and styles; entities as characters; a line for each block."""

    always: bool = setting(
        False, "read every text as HTML; otherwise only one with a tag such as <p> or </a> in it"
    )


@dataclass(frozen=True)
class ChineseSettings:
    """Simplified and traditional Chinese, by OpenCC."""

    to: Literal[
        "t2s", "s2t", "s2tw", "tw2s", "s2twp", "tw2sp", "s2hk", "hk2s", "t2tw", "tw2t", "t2hk", "hk2t"
    ] = setting("t2s", "OpenCC's conversion: t traditional, s simplified, tw Taiwan, hk Hong Kong, p phrases")


@dataclass(frozen=True)
class LanguageSettings:
    """The language of each record, by py3langid."""

    keep: list[str] = setting(
        factory=list,
        help="ISO 639-1 codes of the languages to keep, [en, zh] for instance; empty: only count",
    )
    among: list[str] = setting(factory=list, help="the languages that come into question; empty: all known")
    least_probability: float = setting(
        0.0, "leave out a record whose language is less probable than this", ge=0, le=1
    )
    least_characters: int = setting(20, "do not judge a record of fewer characters: too little to tell", ge=1)
    field: str = setting("", "write the language into this field of the record; empty: do not")


@dataclass(frozen=True)
class QualitySettings:
    """Bounds on what can be counted in a text, as in Gopher and C4; 0 switches a bound off."""

    min_units: int = setting(
        50,
        "fewest units; a unit is a word or, in Chinese and other scripts without spaces, a character",
        ge=0,
    )
    max_units: int = setting(100_000, "most units", ge=0)
    min_word_length: float = setting(3.0, "least mean length of the words, of scripts with spaces", ge=0)
    max_word_length: float = setting(10.0, "greatest mean length of the words", ge=0)
    max_symbols: float = setting(0.1, "most # and … for each unit", ge=0)
    max_bullets: float = setting(0.9, "largest share of lines that begin with a bullet", ge=0, le=1)
    max_ellipses: float = setting(0.3, "largest share of lines that end with an ellipsis", ge=0, le=1)
    min_letters: float = setting(0.8, "least share of units with a letter", ge=0, le=1)
    min_stop_words: int = setting(
        0, "fewest different ones of the, be, to, of, and, that, have, with (English; Gopher: 2)", ge=0, le=8
    )
    min_ended_lines: float = setting(
        0.0, "least share of lines that end with a sentence mark (C4 drops the others)", ge=0, le=1
    )
    max_repeated_lines: float = setting(0.3, "largest share of lines that stood before", ge=0, le=1)
    max_repeated_line_characters: float = setting(
        0.2, "largest share of the characters that is in lines that stood before", ge=0, le=1
    )
    max_top_ngram: float = setting(
        0.2,
        "largest share of the characters in the most frequent 2-gram of units; 0.02 less for 3-, 0.04 for 4-grams",
        ge=0,
        le=1,
    )
    max_repeated_ngrams: float = setting(
        0.15,
        "largest share of the characters in 5-grams of units that stood before; 0.01 less for each n up to 10",
        ge=0,
        le=1,
    )
    fields: list[str] = setting(factory=list, help=_FIELDS)


@dataclass(frozen=True)
class ExactSettings:
    """Exact duplicates: the first of equal records stays."""

    ignore: Literal["nothing", "spaces", "case"] = setting(
        "spaces", "what makes no difference: nothing; white space; white space, case and punctuation"
    )
    fields: list[str] = setting(factory=list, help=_FIELDS)


@dataclass(frozen=True)
class NearSettings:
    """Near duplicates by MinHash: a record as similar as this to one that stays is left out."""

    threshold: float = setting(0.8, "Jaccard similarity of the sets of n-grams", gt=0, le=1)
    ngram: int = setting(5, "units of an n-gram: words or, in Chinese, characters", ge=1, le=100)
    permutations: int = setting(
        128, "MinHash values of a record; the similarity is known to ± 0.5 / √permutations", ge=16, le=1024
    )
    fields: list[str] = setting(factory=list, help=_FIELDS)


@dataclass(frozen=True)
class ContaminationSettings:
    """Records that share n-grams with evaluation data are left out, each of them whole."""

    against: list[str] = setting(
        factory=list, help="evaluation data: files or data sets of records or text", path="input"
    )
    against_fields: list[str] = setting(
        factory=list, help="fields of the evaluation records; empty: all texts of each"
    )
    ngram: int = setting(
        13, "units of an n-gram (GPT-3: 13 words); a shorter evaluation text counts as one", ge=1, le=100
    )
    least: int = setting(8, "leave evaluation texts of fewer units out of the comparison", ge=1)
    most_shared: float = setting(
        0.0, "largest share of a record's n-grams that may be in the evaluation data; 0: none", ge=0, lt=1
    )
    fields: list[str] = setting(factory=list, help=_FIELDS)


@dataclass(frozen=True)
class PiiSettings:
    """Personal data that rules can find, masked."""

    kinds: list[str] = setting(
        factory=lambda: ["email", "card", "iban", "cn_id", "cn_mobile", "phone", "ip"],
        help="what is masked: email, card (Luhn), iban (mod 97), cn_id (check digit), cn_mobile, phone, ip",
    )
    mask: str = setting("[{kind}]", "what stands in its place; {kind}: EMAIL, CARD, …")


@dataclass(frozen=True)
class WordSettings:
    """What the steps stop_words, stem and lemma take out or replace; they lower no case."""

    language: str = setting(
        "english", "stem: the name of a Snowball stemmer; lemma: its language, english or an ISO code"
    )
    stop_words: Literal["english", "chinese"] = setting("english", "stop_words: the built-in list")
    stop_word_file: str = setting("", "stop_words: a file with a word a line instead", path="input")


@dataclass(frozen=True)
class ChatSettings:
    """Records of one chat format as records of another."""

    to: Literal["messages", "sharegpt", "alpaca", "prompt_response", "text"] = setting(
        "messages", "the format; text: all turns in one text, one after another"
    )
    prompt_field: str = setting("prompt", "field with the prompt, in records of prompt and response")
    response_field: str = setting("response", "field with the response")


@dataclass(frozen=True)
class SplitSettings:
    """Parts for training, validation and test, without leaks: what belongs together is in one part."""

    by: Literal["near", "exact", "field", "time", "record"] = setting(
        "near",
        "what stays together: near duplicates; equal texts; records with the same field; time: the newest records"
        " are held out; record: nothing",
    )
    validation: float = setting(0.05, "share of the records for validation", ge=0, lt=1)
    test: float = setting(0.0, "share of the records for test", ge=0, lt=1)
    folds: int = setting(
        0, "k: k parts of nearly the same size instead, for cross-validation; 0: none", ge=0, le=100
    )
    field: str = setting(
        "", "by = field: the field; by = time: that with the time, a number or ISO 8601 text"
    )
    threshold: float = setting(
        0.5, "by = near: Jaccard similarity from which records stay together", gt=0, le=1
    )
    ngram: int = setting(5, "by = near: units of an n-gram", ge=1, le=100)
    permutations: int = setting(128, "by = near: MinHash values of a record", ge=16, le=1024)
    fields: list[str] = setting(factory=list, help=_FIELDS)
