"""`proxlm compress`: prune a model, train it to recover, quantise it, and measure what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from proxlm.checkpoint.write import publish_folder
from proxlm.compression.blocks import block_influence, without_blocks
from proxlm.compression.cost import Cost, cost_table
from proxlm.compression.magnitude import block_matrices, prune_magnitude, share_of_zeros, zeros_held
from proxlm.compression.structured import importance, without_heads_and_channels
from proxlm.config import (
    CompressConfig,
    ExportCheckSettings,
    ExportConfig,
    ModelSettings,
    load_config,
    to_toml,
    validate,
)
from proxlm.config.arguments import as_options
from proxlm.config.paths import absolute
from proxlm.config.signature import checked
from proxlm.data.inputs import inputs_of
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import ConfigError, DataError, ModelError
from proxlm.evaluation import tables
from proxlm.export.original import model_of_run
from proxlm.jobs.compress_costs import costs_of, loaded
from proxlm.jobs.export import export_model
from proxlm.jobs.startup import start_job
from proxlm.jobs.trained_runs import MakeTrainer, in_no_folder, trained, trainer_of
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import language_model_of
from proxlm.models.save import save_language_model
from proxlm.rewards.resolve import resolve_terms
from proxlm.runlog.folder import begin_folder, write_atomic, write_json_atomic
from proxlm.text import shown

PLAN, NOTES, PRUNED, RECOVERY, GGUF = "compress.json", "pruning.json", "pruned", "recovery", "gguf"
_BYTES_OF_A_TEXT = 2**16
# llama.cpp gives every probability as text, which is slow for large vocabularies; the cost is measured on more.
_CHECK = ExportCheckSettings(count=4, tokens=16, greedy=8)


@dataclass(frozen=True)
class Compression:
    """What was made.

    Attributes:
        folder: Where everything is.
        model: The folder of the smaller model.
        file: The GGUF file; None: it was not quantised.
        costs: Of the original and of every stage.
    """

    folder: Path
    model: Path
    file: Path | None
    costs: list[Cost]


def main(config: CompressConfig) -> None:
    """Make the model smaller, and print the table."""
    start_job(config.run.threads)
    done = _compress(config)
    print(f"\n{tables.as_text([cost_table(done.costs)])}")
    print(f"\nmodel   {done.file or done.model}\ntable   {done.folder / 'compression.md'}")


@checked()
def compress_model(model: str | Path, output: str | Path, config: CompressConfig) -> Compression:
    """Make a model smaller and measure what it costs, as `proxlm compress` does.

    Args:
        model: A folder (of a run, a model or an adapter), a GGUF file, or a name on the Hugging Face hub.
        output: Where everything is written. A folder that holds a part of the same compression is finished.
        config: Method, texts, recovery and quantisation; its `model` and `output` are not used.

    Raises:
        UserError: The model cannot be pruned so, a text cannot be read, or the folder holds something else.
    """
    return _compress(validate(replace(config, model=str(model), output=str(output))))


def _compress(config: CompressConfig) -> Compression:
    config = replace(config, model=model_of_run(config.model))
    folder = Path(config.output)
    recipe = _recipe(config)
    scored = bool(config.reward.use or config.reward.terms)
    if scored:
        resolve_terms(config.reward, None)  # what is wrong with it, before the work
    settings = to_toml(absolute(replace(config, output="")))
    begin_folder(folder, PLAN, {"settings": settings, "inputs": inputs_of(config).digests()})
    model = loaded(config.model, config)
    texts = _texts(config.cost.text, config.cost.count, config.cost.tokens, model, "cost.text")
    last, stages = config.model, [("original", config.model)]
    if config.method != "none":
        if not (folder / PRUNED).is_dir():
            print(f"pruning ({config.method}) …", flush=True)
            publish_folder(folder / PRUNED, partial(_prune, model, config))
        last = str(folder / PRUNED)
        stages.append(("pruned", last))
        if recipe is not None:
            last = str(_recover(folder, recipe, config))
            stages.append(("recovered", last))
    file = None
    if config.quantise != "none":
        if not (folder / GGUF).is_dir():
            print(f"quantising ({config.quantise}) …", flush=True)
            export_model(
                last, folder / GGUF, ExportConfig(format="gguf", weights=config.quantise, check=_CHECK)
            )
        (file,) = (folder / GGUF).glob("*.gguf")
        stages.append((config.quantise, str(file)))
    costs = costs_of(folder, config, model, stages, texts, scored)
    write_atomic(folder / "compression.md", tables.as_markdown([cost_table(costs)]))
    write_atomic(folder / "compression.txt", tables.as_text([cost_table(costs)]) + "\n")
    return Compression(folder, Path(last), file, costs)


def _recipe(config: CompressConfig) -> Any:
    """The settings of the recovery's job, read before anything else; None: there is none. Raises ConfigError."""
    if not config.recover.recipe:
        return None
    command = config.recover.command
    named = [f"model.policy={config.model}"]
    if command == "distill":  # the teacher is the original
        named.append(f"model.teacher={config.model}")
    options = as_options([*named, *config.recover.set])
    base = in_no_folder(load_config(command, config.recover.recipe, arguments=options), "recovery")
    if config.method == "magnitude" and base.model.lora.rank:
        raise ConfigError(
            f"{config.recover.recipe}: model.lora.rank = {base.model.lora.rank}: merged adapters would fill the"
            " weights that were set to 0; train all weights"
        )
    return base


def _texts(paths: Sequence[str], count: int, tokens: int, model: LanguageModel, key: str) -> list[list[int]]:
    """The beginnings of the first texts as token ids, two or more each. Raises DataError."""
    documents = read_texts(paths, [".txt", ".md"])
    found: list[list[int]] = []
    for i in range(len(documents)):
        ids = encode_prompt(model.tokenizer, next(documents.parts(i, _BYTES_OF_A_TEXT)))[:tokens]
        if len(ids) > 1:
            found.append(ids)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"{key}: {shown(', '.join(paths), 80)}: no text of two tokens or more")
    return found


def _prune(model: LanguageModel, config: CompressConfig, folder: Path) -> None:
    """Write the pruned model, with pruning.json: what was left out. The model that is passed stays as it is."""
    network, source, notes = model.network, model.source, {"method": config.method}
    if config.method == "magnitude":
        whole = {name: p.detach().clone() for name, p in network.named_parameters()}
        prune_magnitude(network, config.magnitude, source)
    else:
        calibration = config.calibration
        texts = _texts(calibration.text, calibration.count, calibration.tokens, model, "calibration.text")
        network = _smaller(network, texts, config, source, notes)
    pruned = language_model_of(network, model.tokenizer, ModelSettings(policy=source, device="cpu"))
    save_language_model(replace(pruned, save_dtype=model.save_dtype), folder)
    write_json_atomic(folder / NOTES, {**notes, "zeros": share_of_zeros(network)})
    if config.method == "magnitude":
        for name, p in network.named_parameters():
            p.data.copy_(whole[name])


def _smaller(
    network: Any, texts: Sequence[Sequence[int]], config: CompressConfig, source: str, notes: Any
) -> Any:
    if config.method == "structured":
        found = importance(network, texts, source)
        smaller = without_heads_and_channels(network, found, config.structured, source)
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            notes[name] = [getattr(network.config, name), getattr(smaller.config, name)]
        notes["importance_of_heads"] = [heads.tolist() for heads, _ in found]
        return smaller
    influence = block_influence(network, texts, source)
    order = sorted(range(len(influence)), key=influence.__getitem__)
    notes["influence"], notes["dropped"] = influence, sorted(order[: config.blocks.drop])
    return without_blocks(network, notes["dropped"], source)


def _recover(folder: Path, base: Any, config: CompressConfig) -> Path:
    """Train the pruned model as the recipe says, in recovery/; returns the folder of its best weights."""
    own, done = folder / RECOVERY, folder / "recovered.json"
    if not done.exists():
        print(f"recovery (proxlm {config.recover.command}) …", flush=True)
        model = loaded(str(folder / PRUNED), config)
        run, of_model = replace(base.run, folder=str(own)), replace(base.model, policy=str(folder / PRUNED))
        with zeros_held(model.network):
            trained(_trainer(config.recover.command, model), replace(base, run=run, model=of_model))
        names = (
            {name for name, _, _ in block_matrices(model.network)} if config.method == "magnitude" else set()
        )
        _check_zeros(own / "policy", folder / PRUNED, names)
        write_json_atomic(done, {"model": f"{RECOVERY}/policy"})
    return own / "policy"


def _trainer(command: str, model: LanguageModel) -> MakeTrainer:
    """What makes the trainer of a command, of the pruned model in memory."""
    if command == "distill":
        return trainer_of(command, student=model.network, student_tokenizer=model.tokenizer)
    return trainer_of(command, model=model.network, tokenizer=model.tokenizer)


def _check_zeros(recovered: Path, pruned: Path, names: set[str]) -> None:
    """Raise ModelError if a weight of these matrices that pruning set to 0 has come back."""
    from safetensors import safe_open

    for file in sorted(pruned.glob("*.safetensors")):
        with safe_open(file, "pt") as before, safe_open(recovered / file.name, "pt") as after:
            for name in names & {*before.keys()}:
                if bool(((before.get_tensor(name) == 0) & (after.get_tensor(name) != 0)).any()):
                    raise ModelError(f"{recovered}: {shown(name, 60)} has weights that pruning had set to 0")
