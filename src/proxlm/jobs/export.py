"""`proxlm export`: a model for other programs, finished only if what they compute is what the original does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from proxlm.checkpoint.write import publish_folder
from proxlm.config import ExportConfig, ModelSettings, validate
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.paths import short
from proxlm.config.signature import checked
from proxlm.data.documents import Documents
from proxlm.data.inputs import inputs_of
from proxlm.data.text import read_texts
from proxlm.errors import ModelError, RunError
from proxlm.evaluation import tables
from proxlm.evaluation.tables import Table
from proxlm.export.compare import TEXTS, Agreement, Expected, compare, expected_of
from proxlm.export.formats import FORMATS
from proxlm.export.original import Original, load_original, model_of_run
from proxlm.export.readers import Transformers
from proxlm.jobs.progress import progress_line
from proxlm.jobs.startup import start_job
from proxlm.models.source import ModelSource, named_as
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.text import number
from proxlm.text import shown

REPORT = "export.json"
_LONGEST_TEXT = 2000  # bytes
_MOST_TEXTS = 64
# Of log-probs in float32; between other kinds of weights, those of tokens that nobody would choose differ by much.
_FLOAT32_DIFFERENCE = 0.01
# Of each kind of weights the largest mean KL divergence in nats, and the largest difference of scores.
LIMITS: Mapping[str, tuple[float, float]] = {
    "float32": (1e-6, 0.01), "float16": (1e-3, 0.05), "bfloat16": (0.02, 0.5), "q8_0": (0.02, 0.5),
    "q5_1": (0.1, 1.0), "q5_0": (0.1, 1.0), "q4_1": (0.5, 2.0), "q4_0": (0.5, 2.0),
}  # fmt: skip


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: Where it is.
        format: "safetensors", "adapter", "gguf" or "onnx".
        weights: What its numbers are kept as.
        size: Bytes of its files.
        agreement: How far it agrees with the original.
        notes: Remarks.
    """

    folder: Path
    format: str
    weights: str
    size: int
    agreement: Agreement
    notes: list[str]


def main(config: ExportConfig) -> None:
    """Export as configured, and print what was compared."""
    start_job(config.run.threads)
    config = replace(config, model=model_of_run(config.model))
    source = ModelSource(
        ModelSettings(policy=config.model, device="cpu", trust_remote_code=config.trust_remote_code)
    )
    done = _export(source, config)
    print(tables.as_text([agreement_table(done)]))
    print(f"\nwritten to {short(str(done.folder))}")


@checked("model")
def export_model(
    model: Any, output: str | Path, config: ExportConfig | None = None, *, tokenizer: Any = None
) -> Export:
    """Write a model for other programs, as `proxlm export` does.

    Args:
        model: A folder (of a run, a model or an adapter), a name on the Hugging Face hub, a GGUF file, a transformers
            model (with `tokenizer`) or a `LanguageModel`.
        output: The folder to write, which must not exist.
        config: Format, weights and comparison; its `model` and `output` are not used.
        tokenizer: The tokenizer of a transformers model.

    Returns:
        What was written, and how far it agrees with the original.

    Raises:
        UserError: The model does not fit the format, or the export disagrees with it; nothing is left then.
    """
    named = isinstance(model, str | Path)
    settings = validate(
        replace(
            config or ExportConfig(),
            model=model_of_run(str(model)) if named else IN_MEMORY,
            output=str(output),
        )
    )
    of_model = ModelSettings(device="cpu" if named else "auto", trust_remote_code=settings.trust_remote_code)
    source = ModelSource(of_model, settings.model if named else model, tokenizer)
    with source.lent():
        return _export(source, settings)


def _export(source: ModelSource, config: ExportConfig) -> Export:
    """Read, write beside the place, compare, and put in place."""
    folder = Path(config.output)
    if folder.exists() or folder.is_symlink():
        raise RunError(f"{folder}: is there already; choose another output, or remove it")
    with named_as("model"):
        original = load_original(source)
    form = FORMATS[config.format]
    form.check(original, config)
    expected = _expected(original, config)
    found: list[Export] = []

    def write(temporary: Path) -> None:
        temporary.mkdir()
        notes = form.write(original, config, temporary)
        if not source.in_memory:
            original.release()
        with form.read(original, config, temporary) as reader:
            agreement = compare(expected, reader, progress_line("texts compared"))
        _check(agreement, config)
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        found.append(Export(folder, config.format, config.weights, size, agreement, notes))
        _report(temporary, found[0], source, config)

    folder.parent.mkdir(parents=True, exist_ok=True)
    publish_folder(folder, write)
    return found[0]


def _expected(original: Original, config: ExportConfig) -> Expected:
    """What the original gives; nothing of it holds the weights."""
    check = config.check
    return expected_of(
        Transformers(original.network, original.tokenizer, original),
        _texts(config, original.tokenizer),
        original.ends,
        count=check.count,
        tokens=check.tokens,
        greedy=check.greedy if original.kind == "language model" else 0,
        scores=original.scores,
    )


def _texts(config: ExportConfig, tokenizer: Any) -> list[str]:
    """The beginnings of the user's texts, those of every script, and one with every special token."""
    documents = read_texts(config.check.text, [".txt", ".md"]) if config.check.text else Documents()
    most = min(len(documents), _MOST_TEXTS)
    own = [next(documents.parts(i, _LONGEST_TEXT)) for i in range(most)]
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:_MOST_TEXTS]
    spelled = "".join(f"before{token}behind {token} alone" for token in special)
    asked = [{"role": "user", "content": "Who wrote 静夜思?"}, {"role": "assistant", "content": "Li Bai."}]
    if tokenizer.chat_template:
        with suppress(Exception):  # a template for other conversations, whatever it raises
            spelled += str(tokenizer.apply_chat_template(asked, tokenize=False))
    return [*own, *TEXTS, *([spelled] if spelled else [])]


def _check(agreement: Agreement, config: ExportConfig) -> None:
    """Raise ModelError for an export that is not what the original is."""
    by, what = agreement.reader, f'format = "{config.format}", weights = "{config.weights}"'
    if agreement.other_ids:
        missed = agreement.texts - agreement.same_ids
        raise ModelError(
            f"{what}: {by} gives {missed} of {agreement.texts} texts other token ids than the original, for instance"
            f" {shown(repr(agreement.other_ids), 60)}; nothing is written"
        )
    kl, difference = limits_of(config, agreement.kl is None)
    for name, found, most in (
        ("mean KL(original ‖ export)", agreement.kl, kl),
        ("largest difference", agreement.difference, difference),
    ):
        if found is not None and not found <= most:
            key = "kl" if most is kl else "difference"
            raise ModelError(
                f"{what}: {by} disagrees with the original: {name} {found:.3g}, where check.{key} allows {most:.3g};"
                " nothing is written; more precise weights, or a larger limit"
            )


def limits_of(config: ExportConfig, scores: bool) -> tuple[float, float]:
    """The largest mean KL divergence and the largest difference of outputs that are allowed."""
    kl, of_scores = LIMITS[config.weights]
    of_logprobs = _FLOAT32_DIFFERENCE if config.weights == "float32" else math.inf
    return config.check.kl or kl, config.check.difference or (of_scores if scores else of_logprobs)


def agreement_table(done: Export) -> Table:
    """What was compared, a row each."""
    found = done.agreement
    rows = [
        ["read back by", found.reader],
        ["texts with the same token ids", f"{found.same_ids} of {found.texts}"],
        ["outputs compared", str(found.outputs)],
        ["largest difference", number(found.difference)],
    ]
    if found.kl is not None and found.kl_max is not None and found.same_token is not None:
        rows += [
            ["mean KL behind a token, nats", number(found.kl)],
            ["largest KL", number(found.kl_max)],
            ["same most likely token", f"{found.same_token:.1%}"],
        ]
    if found.greedy is not None:
        rows.append(["same greedy response", f"{found.greedy:.1%} of {found.greedy_tokens} tokens"])
    rows.append(["size", f"{done.size:,} bytes"])
    return Table([f"{done.format}, {done.weights}", "original against export"], rows, notes=done.notes)


def _report(folder: Path, done: Export, source: ModelSource, config: ExportConfig) -> None:
    """export.json: what was exported, hashes of what it was read from, and the comparison."""
    inputs = inputs_of(config, in_memory={"model": source} if source.in_memory else {})
    kl, difference = limits_of(config, done.agreement.kl is None)
    write_json_atomic(
        folder / REPORT,
        {
            "proxlm": version("proxlm"),
            "format": done.format,
            "weights": done.weights,
            "model": source.settings.policy,
            "sha256": {
                key: {name: file.sha256 for name, file in files.items()}
                for key, files in inputs.files.items()
            },
            "agreement": asdict(done.agreement),
            "allowed": {"kl": kl, "difference": difference},
            "notes": done.notes,
            "size": done.size,
        },
    )
