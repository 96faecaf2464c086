"""Write a model in Hugging Face format."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from proxlm.checkpoint.write import give_mode_of
from proxlm.models.adapters import POLICY, merged
from proxlm.models.language_model import LanguageModel
from proxlm.models.quiet import without_progress_bars

# In the folder of a policy with LoRA, its adapters by themselves. Not beside the merged weights: transformers puts an
# adapter that it finds there on the model once more.
ADAPTER_FOLDER = "adapter"


def save_language_model(model: LanguageModel, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer, for `from_pretrained(folder)`.

    With LoRA it writes the base with the adapters merged in, and the adapters in PEFT's format in a folder below. The
    weights are written in model.save_dtype, the adapters in float32. The model itself does not change.
    """
    with no_progress_bars():
        if model.adapters is None:
            save_network(model.network, model.save_dtype, folder)
        else:
            save_network(merged(copy.deepcopy(model.adapters)), model.save_dtype, folder)
            save_adapter(model.adapters, folder / ADAPTER_FOLDER)
            model.tokenizer.save_pretrained(folder / ADAPTER_FOLDER)
        model.tokenizer.save_pretrained(folder)
    _save_turn_end(model, folder / "generation_config.json")
    give_mode_of(folder / "config.json", folder)


def save_served_model(model: LanguageModel, folder: Path) -> None:
    """Write a model for a server that loads it again and again: `served_tensors`, in their precision."""
    tensors = served_tensors(model)
    config = copy.deepcopy(model.network.config)
    if _tied(model.network):
        config.tie_word_embeddings = False
    with no_progress_bars():
        config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        model.tokenizer.save_pretrained(folder)
    _save_turn_end(model, folder / "generation_config.json")


def served_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """A model's weights by name, with adapters merged in, and with an output head of its own.

    A server may keep a prepared copy of a tied head, which stays as it was when the embedding is replaced; a head
    with a weight of its own is replaced by name.
    """
    network = model.network if model.adapters is None else merged(copy.deepcopy(model.adapters))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if _tied(network):
        head = network.get_output_embeddings().weight
        name = next(name for name, p in network.named_parameters(remove_duplicate=False) if p is head)
        own = [key for key in tensors if key.endswith("lm_head.weight")] or [name]
        tensors[own[0]] = head.detach().cpu().clone()
    return tensors


def save_network(network: Any, dtype: torch.dtype, folder: Path) -> None:
    """Write a transformers model with its floating-point weights rounded to `dtype`."""
    tensors = None if dtype == torch.float32 else _rounded(network.state_dict(), dtype)
    with without_progress_bars():
        network.save_pretrained(folder, state_dict=tensors)
    truth: dict[str, Any] = {}
    if tensors is not None:
        truth["dtype"] = str(dtype).removeprefix("torch.")
    if (tied := _tied(network)) is not None and tied != _declared_tied(network):
        truth["tie_word_embeddings"] = tied
    if truth:
        _correct(folder / "config.json", truth)


def _rounded(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
    """The tensors in a lower precision, tied ones still as one; None if one of them is beyond its range."""
    rounded = {t.data_ptr(): t.to(dtype) for t in tensors.values() if t.is_floating_point()}
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.equal(rounded[t.data_ptr()].isfinite(), t.isfinite()):
            limit = torch.finfo(dtype).max
            print(
                f"note: saved in float32, for {name} has weights beyond {limit:.3g}, {dtype}'s largest",
                flush=True,
            )
            return None
    return {name: rounded.get(t.data_ptr(), t) for name, t in tensors.items()}


def _tied(network: Any) -> bool | None:
    """Whether the output head is the input embedding; None for a model without either."""
    try:
        embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
        return bool(embedding.weight is head.weight)
    except (AttributeError, NotImplementedError):
        return None


def _declared_tied(network: Any) -> bool:
    """Whether transformers would tie them when it loads the model."""
    config = network.config
    return bool(getattr(config, "tie_word_embeddings", False)) and bool(network._tied_weights_keys)


def _correct(file: Path, truth: dict[str, Any]) -> None:
    """Let a config.json, and the configurations inside it, say what is in the files beside it."""
    config = json.loads(file.read_text("utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part |= {name: value for name, value in truth.items() if part is config or name in part}
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _save_turn_end(model: LanguageModel, file: Path) -> None:
    """Let the generation config name the chat template's own end of a turn, where it is another token than EOS.

    The model was trained to end with it; whoever loads the folder with transformers or vLLM stops there as well.
    """
    end = model.turn_end
    if end.own is not None and end.own not in end.eos and file.exists():
        first = [model.tokenizer.eos_token_id] if model.tokenizer.eos_token_id in end.eos else []
        # Transformers makes a config that is only "from the model's" again, and would forget it.
        truth = {"eos_token_id": [*first, *sorted(end.tokens - {*first})], "_from_model_config": False}
        _correct(file, truth)


def save_adapter(adapters: Any, folder: Path) -> None:
    """Write the policy's adapters as PEFT does, but with the same bytes each time: it writes sets in any order.

    Args:
        adapters: PEFT's model.
        folder: Where.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    settings = copy.deepcopy(adapters.peft_config[POLICY])
    settings.inference_mode = True
    for name, value in vars(settings).items():
        if isinstance(value, set):
            setattr(settings, name, sorted(value))
    settings.save_pretrained(folder)
    tensors = get_peft_model_state_dict(adapters, adapter_name=POLICY, save_embedding_layers=False)
    save_file(
        {name: t.detach().contiguous().cpu() for name, t in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' bars, which would tear the run's own display at each checkpoint."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
