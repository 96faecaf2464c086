"""Reading a saved network: every tensor of it has to be there, by name and shape, and nothing else.

transformers gives what is missing random numbers and passes over what it does not know, with a warning at most. Here
both are errors. Names that transformers itself declares unimportant (tied weights that stand in the file once,
buffers that follow from the configuration) are not reported to us and so are none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from proxlm.config.gguf_paths import is_gguf
from proxlm.data.hub import check_hub
from proxlm.errors import ModelError
from proxlm.files import check_folder
from proxlm.models.quiet import without_progress_bars
from proxlm.system_errors import what_to_do
from proxlm.text import listed, reason_of, shown

ADAPTER_CONFIG = "adapter_config.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Of the name of a tensor that does not fit, what a message shows.
LONGEST_NAME = 40
NOT_A_REWARD_MODEL = (
    "a reward model is a trained classifier (…ForSequenceClassification), not a language model"
)


def read_configuration(path: str, trust_remote_code: bool = False) -> Any:
    """The transformers configuration in a folder or of a name on the hub.

    Raises:
        OSError: It is not there, or cannot be read.
        ValueError: It is none, of an unknown type, or its values make no sense.
    """
    from transformers import AutoConfig

    check_folder(path)
    check_hub(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the checks of its fields, KeyError, TypeError, …
        raise ValueError(f"its config.json is not one: {reason_of(error, 200)}") from error


def read_network(
    kind: Any,
    path: str,
    what: str,
    *,
    dtype: Any = torch.float32,
    trust_remote_code: bool = False,
    advice: str = "",
) -> Any:
    """The network of a folder or a name on the hub, with exactly the tensors that are saved there.

    Args:
        kind: One of transformers' Auto classes for models.
        path: A folder, or a name on the hub.
        what: Beginning of the error's message: what is read, and from where.
        dtype: Of the weights, or "auto" for the one that they are saved in.
        trust_remote_code: Allow code that comes with the model.
        advice: What to do where the head is missing; empty: as for other tensors.

    Raises:
        ModelError: There are no safetensors, or a tensor is missing, unknown or of another shape.
    """
    check_files(path, what)
    try:
        check_folder(path)
        check_hub(path)
        with without_progress_bars():
            network, info = kind.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # So that all of them are in `info`, and none is an error of its own without a name.
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # what the fields of config.json lead to: AttributeError, AssertionError, …
        raise ModelError(f"{what}: cannot be loaded: {reason_of(error, 200)}{what_to_do(error)}") from error
    # All of the model is there but its head, or that of another kind.
    headless = all(not name.startswith(f"{network.base_model_prefix}.") for name in info["missing_keys"])
    check_names(
        what,
        type(network).__name__,
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        shapes=info["mismatched_keys"],
        advice=advice if headless and info["missing_keys"] else "",
    )
    _restore_padding_rows(network, Path(path))
    return network


@torch.no_grad()
def _restore_padding_rows(network: Any, folder: Path) -> None:
    """Take the padding token's embedding from the file where transformers has set it to 0 behind the loading.

    Some types' initialisation does that to weights that were read (Youtu). Padding is a token like others once it
    stands in a text.
    """
    zeroed = [
        (name, module.weight, module.padding_idx)
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
        if not module.weight[module.padding_idx].any()
    ]
    for file in _whole_weights(folder) if zeroed and folder.is_dir() else []:
        with safe_open(file, "pt") as saved:
            names = set(saved.keys())
            for name, weight, padding in zeroed:
                bare = name.removeprefix(f"{network.base_model_prefix}.")
                for key in {f"{name}.weight", f"{bare}.weight"} & names:
                    row = saved.get_slice(key)[padding : padding + 1]
                    weight[padding] = row[0].to(weight)


def check_names(
    what: str,
    wanted: str,
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    advice: str = "",
) -> None:
    """Raise ModelError that names the tensors that do not fit, if there are any.

    Args:
        what: Beginning of the error's message: what is read, and from where.
        wanted: What the tensors should make.
        missing: Names that are not in the file.
        unexpected: Names in the file that nothing is known of.
        shapes: (name, shape in the file, shape that is needed).
        advice: What to do; empty: what the names suggest.
    """
    absent, unknown = sorted(missing), sorted(unexpected)
    odd = [
        f"{shown(name, 30)} is {tuple(saved)}, not {tuple(needed)}" for name, saved, needed in sorted(shapes)
    ]
    if not (absent or unknown or odd):
        return
    if prefix := _prefix(absent, unknown):
        raise ModelError(
            f"{what}: missing: {_few(absent, 1)}; they are there with {shown(prefix, 30)} before their names: save"
            f" the {wanted} inside"
        )
    kinds = {"missing": absent, "unknown": unknown, "of another shape": odd}
    most = 2 if [bool(names) for names in kinds.values()].count(True) == 1 else 1  # the message is one line
    parts = [f"{label}: {_few(names, most)}" for label, names in kinds.items() if names]
    if not advice:
        alone = unknown and not (absent or odd)
        advice = f"save the {wanted} alone" if alone else f"save a whole {wanted}, with its save_pretrained"
    raise ModelError(f"{what}: {'; '.join(parts)}; {advice}")


def _few(names: list[str], most: int) -> str:
    return listed([shown(name, LONGEST_NAME) for name in names], most=most)


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """What stands before each name in the file, if the rest of it is that of a tensor that is missing."""
    absent = set(missing)
    for name in missing if unexpected else ():
        # Tied weights may be missing twice, so the names that are there decide.
        prefix = unexpected[0].removesuffix(name)
        if prefix.endswith(".") and {n.removeprefix(prefix) for n in unexpected} <= absent:
            return prefix
    return ""


def check_vocabulary(what: str, tokenizer: Any, network: Any, special: bool = False) -> None:
    """Raise ModelError if the tokenizer has a token that the network has no embedding for.

    Args:
        what: Beginning of the error's message.
        tokenizer: The tokenizer.
        network: A transformers model.
        special: Allow added special tokens, which only their own spelling gives (an image's place in Gemma 3's
            tokenizer), unless a text begins, ends or is padded with them. See `LanguageModel.check_tokens`.
    """
    rows: int = network.get_input_embeddings().weight.shape[0]
    ids = tokenizer.get_vocab()
    if special:
        added = getattr(tokenizer, "added_tokens_decoder", {})
        used = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
        apart = {i for i, token in added.items() if token.special} - used
        ids = {name: i for name, i in ids.items() if i < rows or i not in apart}
    token, last = max(ids.items(), key=lambda item: item[1], default=("", -1))
    if last >= rows:
        raise ModelError(
            f"{what}: the tokenizer has {last + 1} tokens (the last is {shown(repr(token), 40)}), the model's"
            f" embedding {rows}; call resize_token_embeddings({last + 1}) and save it, or use its own tokenizer"
        )


def check_can_be_saved(network: Any, what: str) -> None:
    """Raise ModelError for a generation config that transformers would refuse to save, at the end of the run."""
    config = getattr(network, "generation_config", None)
    if config is None:
        return
    # As its save_pretrained does: one that is as it was loaded is only warned of.
    unchanged = getattr(config, "_original_object_hash", None) == hash(config)
    try:
        config.validate(strict=not unchanged)
    except ValueError as error:
        raise ModelError(
            f"{what}: its generation config could not be saved again; correct it: {reason_of(error, 200)}"
        ) from error


def refuse_two_models(folder: Path, what: str) -> None:
    """Raise ModelError for a folder that holds a whole model and an adapter.

    transformers would put the adapter on the whole model, in which it may be merged already.
    """
    if (folder / ADAPTER_CONFIG).exists() and _whole_weights(folder):
        raise ModelError(
            f"{what}: holds both a whole model and a PEFT adapter ({ADAPTER_CONFIG}); move one of them to a folder of"
            " its own"
        )


def check_files(path: str, what: str) -> None:
    """Raise ModelError for a folder with an adapter, or with pickled weights alone, and for a GGUF file."""
    if is_gguf(path):
        raise ModelError(f"{what}: a GGUF file, where a folder or a name on the hub is needed")
    folder = Path(path)
    if not folder.is_dir():
        return
    refuse_two_models(folder, what)
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"{what}: a PEFT adapter, where a whole model is needed; merge it into its base with PEFT's"
            " merge_and_unload(), and save that"
        )
    if (folder / "model.safetensors").exists() and (folder / "model.safetensors.index.json").exists():
        raise ModelError(
            f"{what}: holds weights twice, in model.safetensors and in the parts of model.safetensors.index.json;"
            " remove those that are old"
        )
    pickled = sorted({file.name for pattern in PICKLED for file in folder.glob(pattern)})
    if pickled and not _whole_weights(folder):
        raise ModelError(
            f"{what}: only pickled weights ({shown(pickled[0], 40)}), which can run code; safetensors are needed:"
            " save model and tokenizer again with transformers' save_pretrained"
        )


def _whole_weights(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_model")]


# safetensors' names of the precisions that weights are kept in, and the bytes of a number.
_PRECISIONS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def saved_precision(path: str, configuration: Callable[[], Any]) -> torch.dtype:
    """The precision that most of a model's weights are saved in: in its files; for a name on the hub, its config."""
    sizes = dict.fromkeys(_PRECISIONS.values(), 0)
    for file in _whole_weights(Path(path)) if Path(path).is_dir() else []:
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for tensor in header.values():
            if (dtype := _PRECISIONS.get(tensor.get("dtype"))) is not None:
                sizes[dtype] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    if any(sizes.values()):
        return max(sizes, key=lambda dtype: sizes[dtype])
    declared = getattr(configuration(), "dtype", None)
    return declared if declared in sizes else torch.float32
