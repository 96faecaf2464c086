"""The settings of training, extending and looking at a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.problems import Problems
from proxlm.config.schema import ON_BAD_RECORD, ProcessSettings
from proxlm.config.setting import setting
from proxlm.config.tokenizer import TokenizerSettings, tokenizer_problems


@dataclass(frozen=True)
class TokenizerTextSettings:
    """The text that is trained on, and the held-out text that the report is about."""

    train: list[str] = setting(factory=list, help="files of text, folders of it or data sets", path="input")
    validation: list[str] = setting(
        factory=list,
        help="held-out files, each a row of the report; empty: validation_share is set aside",
        path="input",
    )
    validation_share: float = setting(0.05, "share of the text to set aside for the report", gt=0, lt=1)
    extensions: list[str] = setting(factory=lambda: [".txt", ".md"], help="which files of a folder to read")
    on_bad_record: Literal["fail", "skip"] = setting("fail", ON_BAD_RECORD)


@dataclass(frozen=True)
class ExtendSettings:
    """New tokens for a tokenizer that exists, and their rows in the embedding of its model if there is one."""

    base: str = setting(
        "", "the model or tokenizer that is extended: a folder or a name on the hub", path="model"
    )
    tokens: list[str] = setting(factory=list, help="the new tokens; may be repeated")
    file: str = setting("", "file of new tokens, one a line", path="input")
    count: int = setting(
        0, "take so many from text.train: words and Han characters that cost the most tokens", ge=0
    )
    han_only: bool = setting(False, "count: Han (Chinese) characters alone")
    save_dtype: Literal["source", "float32", "bfloat16"] = setting(
        "source", "precision of the saved weights; source: as the model's were"
    )


@dataclass(frozen=True)
class TokenizerReportSettings:
    """What is said of a tokenizer on held-out text."""

    compare: list[str] = setting(
        factory=list, help="other tokenizers to set beside it: folders or names on the hub", path="model"
    )
    by: Literal["file", "language"] = setting(
        "file",
        "rows of the table: the entries of text.validation, or languages (found by py3langid, needs proxlm[corpus])",
    )
    longest: int = setting(10, "number of the longest tokens to list", ge=0)
    output: str = setting("", "also write the report here: .json, .md, .html or .txt", path="output")


@dataclass(frozen=True)
class TokenizerConfig:
    """Train a tokenizer, extend one with new tokens, or report on one."""

    tokenizer: str = setting(
        "",
        "report on this one (also: proxlm tokenizer NAME): a folder or a name on the hub; empty: train or extend",
        path="model",
    )
    text: TokenizerTextSettings = setting(factory=TokenizerTextSettings)
    tokens: TokenizerSettings = setting(factory=TokenizerSettings)
    vocabulary: int = setting(4096, "the most tokens", ge=5)
    context: int = setting(512, "longest sequence of the model that it is for (model_max_length)", ge=8)
    encoder_decoder: bool = setting(
        False, "for an encoder–decoder: texts end with EOS and do not begin with BOS"
    )
    chat_template: str = setting("", "file with a Jinja chat template that it carries", path="input")
    extend: ExtendSettings = setting(factory=ExtendSettings)
    report: TokenizerReportSettings = setting(factory=TokenizerReportSettings)
    output: str = setting("", "where it is written; empty: runs/tokenizer-DATE-TIME", path="output")
    trust_remote_code: bool = setting(False, "allow Python code that comes with a model to run")
    seed: int = setting(0, "seed of what is held out", ge=0, lt=2**32)
    run: ProcessSettings = setting(factory=ProcessSettings)

    positional: ClassVar[str] = "tokenizer"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = tokenizer_problems("tokens", self.tokens)
        if self.report.output and not self.report.output.endswith((".json", ".md", ".html", ".txt")):
            found.append(("report.output", "must end with .json, .md, .html or .txt"))
        if self.tokenizer:
            if self.extend.base:
                found.append(("tokenizer", "is reported on; leave it out to extend extend.base"))
            if not (self.text.train or self.text.validation):
                found.append(("text.validation", "required: the text that the report is about"))
            return found
        if not self.extend.base:
            if not self.text.train:
                found.append(("text.train", "required, but not given; or name a tokenizer to report on"))
            return found
        if not (self.extend.tokens or self.extend.file or self.extend.count):
            what = f"give the new tokens of {self.extend.base}: extend.tokens, extend.file or extend.count"
            found.append(("extend.tokens", what))
        if self.extend.count and not self.text.train:
            found.append(("text.train", "required with extend.count: where the new tokens are from"))
        return found
