"""`proxlm tokenizer`: train a tokenizer, extend one, and report on one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxlm.checkpoint import publish_folder
from proxlm.config import ModelSettings, TokenizerConfig
from proxlm.data.chat import carry_template, read_template
from proxlm.data.documents import DocumentParts, Documents
from proxlm.data.lines import read_lines
from proxlm.data.new_tokens import new_tokens
from proxlm.data.skipped import Skipped
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import ready_tokenizer, train_tokenizer
from proxlm.data.tokenizer_report import TokenizerReport, tokenizer_report
from proxlm.engine.agreement import check_engine
from proxlm.errors import RunError
from proxlm.evaluation import tables
from proxlm.evaluation.tables import Table
from proxlm.jobs.output import write_output
from proxlm.jobs.startup import start_job
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from proxlm.models.vocabulary import add_tokens, extend_vocabulary
from proxlm.runlog.folder import free_name, write_json_atomic
from proxlm.runlog.outputs import check_output
from proxlm.runlog.text import number
from proxlm.text import listed, shown

REPORT = "tokenizer-report.json"
_PART = 2**16  # bytes of a text at a time


def main(config: TokenizerConfig) -> None:
    """Make the tokenizer that is asked for, and print what it makes of held-out text."""
    start_job(config.run.threads)
    remote = config.trust_remote_code
    if config.report.output:
        check_output(Path(config.report.output), "tokenizer")
    read_template(config.chat_template)
    compared = {name: ready_tokenizer("report.compare", name, remote) for name in config.report.compare}
    if config.tokenizer:
        tokenizer = ready_tokenizer("tokenizer", config.tokenizer, remote)
        _report(config, None, tokenizer, _texts(config)[1], compared)
        return
    folder = _folder(config)
    train, held_out = _texts(config)
    tokenizer = _extended(config, train, folder) if config.extend.base else _trained(config, train, folder)
    _report(config, folder, tokenizer, held_out, compared)
    print(f"\ntokenizer  {folder}  ({len(tokenizer):,} tokens)")


def _folder(config: TokenizerConfig) -> Path:
    folder = Path(config.output) if config.output else free_name("tokenizer")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: is there already; give another output, or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}; give another output") from error
    return folder


def _texts(config: TokenizerConfig) -> tuple[Documents | None, dict[str, Documents]]:
    """What is trained on, and the held-out texts by name."""
    text = config.text
    skipped = Skipped(text.on_bad_record == "skip")
    train = read_texts(text.train, text.extensions, skipped) if text.train else None
    held_out = {name: read_texts([name], text.extensions, skipped) for name in text.validation}
    if train is not None and not held_out:
        if config.tokenizer:
            held_out = {"text.train": train}
        else:
            train, rest = train.split(text.validation_share, config.seed)
            held_out = {"held out": rest}
    if len(skipped):
        print(f"left out: {skipped.report()}", flush=True)
    return train, _by_language(held_out) if config.report.by == "language" else held_out


def _by_language(texts: Mapping[str, Documents]) -> dict[str, Documents]:
    """The documents by the language that py3langid finds."""
    try:
        import py3langid
    except ImportError as error:
        raise RunError('report.by = "language": needs py3langid: pip install "proxlm[corpus]"') from error
    found: dict[str, Documents] = {}
    for documents in texts.values():
        for i in range(len(documents)):
            beginning = next(documents.parts(i, 4096), "")
            language = str(py3langid.classify(beginning)[0])
            found.setdefault(language, Documents()).append(documents.parts(i, _PART))
    return dict(sorted(found.items()))


def _trained(config: TokenizerConfig, train: Documents | None, folder: Path) -> Any:
    """A new tokenizer, saved."""
    texts = DocumentParts(train or Documents())
    tokenizer = train_tokenizer(
        texts, config.vocabulary, config.context, config.encoder_decoder, config.tokens
    )
    carry_template(tokenizer, config.chat_template)
    publish_folder(folder, tokenizer.save_pretrained)
    return tokenizer


def _extended(config: TokenizerConfig, train: Documents | None, folder: Path) -> Any:
    """The tokenizer with new tokens, saved with its model if there is one."""
    extend = config.extend
    tokenizer = ready_tokenizer("extend.base", extend.base, config.trust_remote_code)
    wanted = [*extend.tokens]
    if extend.file:
        wanted += [line for line in read_lines(Path(extend.file)) if line.strip()]
    if extend.count and train is not None:
        wanted += new_tokens(tokenizer, DocumentParts(train), extend.count, extend.han_only)
    if Path(extend.base).is_dir() and not (Path(extend.base) / "config.json").exists():
        added = list(add_tokens(tokenizer, wanted))
        carry_template(tokenizer, config.chat_template)
        publish_folder(folder, tokenizer.save_pretrained)
    else:
        settings = ModelSettings(
            policy=extend.base, save_dtype=extend.save_dtype, trust_remote_code=config.trust_remote_code
        )
        model = load_language_model(settings)
        added = extend_vocabulary(model, wanted)
        check_engine(model)
        tokenizer = model.tokenizer
        carry_template(tokenizer, config.chat_template)
        publish_folder(folder, lambda path: save_language_model(model, path))
    there = len(dict.fromkeys(wanted)) - len(added)
    print(
        f"{len(added):,} new tokens: {listed([shown(repr(token), 20) for token in added], most=8)}"
        + (f"; {there:,} were tokens already" if there else ""),
        flush=True,
    )
    return tokenizer


def _report(
    config: TokenizerConfig,
    folder: Path | None,
    tokenizer: Any,
    texts: Mapping[str, Documents],
    compared: Mapping[str, Any],
) -> None:
    """Print what the tokenizers make of the texts, and write it where it is asked for."""
    if not texts:
        return
    name = config.tokenizer or (f"{config.extend.base} extended" if config.extend.base else "new")
    reports = [
        tokenizer_report(one, texts, its, config.report.longest)
        for its, one in ((name, tokenizer), *compared.items())
    ]
    print(f"\n{tables.as_text(report_tables(reports))}")
    _write(config, folder, reports)


def report_tables(reports: list[TokenizerReport]) -> list[Table]:
    """A column for each tokenizer; a table by text where there are several; the longest tokens."""
    rows = [
        ["tokens in the vocabulary", *(f"{r.vocabulary:,}" for r in reports)],
        ["bytes per token", *(number(r.whole.bytes_per_token) for r in reports)],
        ["tokens per word", *(number(r.whole.tokens_per_word) for r in reports)],
        ["tokens per character", *(number(r.whole.tokens_per_character) for r in reports)],
        ["unknown tokens", *(_share(r.whole.unknown, r.whole.tokens) for r in reports)],
        ["parts of characters", *(_share(r.whole.parts, r.whole.tokens) for r in reports)],
        ["vocabulary used", *(_share(r.used, r.vocabulary - r.special) for r in reports)],
        ["documents that decode otherwise", *(_share(r.whole.changed, r.whole.documents) for r in reports)],
    ]
    whole = reports[0].whole
    about = (
        f"({whole.documents:,} documents, {whole.characters:,} characters, {whole.words:,} words; a word is what",
        "white space separates, each Han character is one; parts of characters: tokens that begin or end inside one)",
    )
    found = [Table(["", *(r.name for r in reports)], rows, notes=about)]
    if len(reports[0].texts) > 1:
        found += [_by_text(report) for report in reports]
    if any(report.longest for report in reports):
        longest = [[r.name, ", ".join(shown(repr(token), 40) for token in r.longest)] for r in reports]
        found.append(Table(["tokenizer", "longest tokens"], longest))
    return found


def _by_text(report: TokenizerReport) -> Table:
    head = [
        "text",
        "documents",
        "characters",
        "bytes/token",
        "tokens/word",
        "tokens/character",
        "unknown",
        "parts",
    ]
    rows = [
        [
            name,
            f"{c.documents:,}",
            f"{c.characters:,}",
            number(c.bytes_per_token),
            number(c.tokens_per_word),
            number(c.tokens_per_character),
            _share(c.unknown, c.tokens),
            _share(c.parts, c.tokens),
        ]
        for name, c in report.texts.items()
    ]
    return Table(head, rows, report.name)


def _share(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.2%}"


def _write(config: TokenizerConfig, folder: Path | None, reports: list[TokenizerReport]) -> None:
    found = [report.as_json() for report in reports]
    if folder is not None:
        write_json_atomic(folder / REPORT, {"tokenizers": found})
    if config.report.output:
        file = Path(config.report.output)
        write_output(file, "tokenizer", report_tables(reports), {"tokenizers": found})
        print(f"\nreport     {file}")
