"""A PEFT adapter's folder as a policy: adapter_config.json names the base that the adapter belongs on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.config import LoraSettings
from proxlm.config.paths import adapter_base, looks_like_path
from proxlm.errors import ConfigError, ModelError
from proxlm.files import check_regular, read_regular
from proxlm.models.adapters import (
    POLICY,
    REFERENCE,
    add_adapter_set,
    check_merge,
    merged,
    some_logits,
    variant_of,
)
from proxlm.models.language_model import LanguageModel
from proxlm.models.quiet import without_known_warnings
from proxlm.models.weights import ADAPTER_CONFIG, PICKLED, check_names, read_configuration, refuse_two_models
from proxlm.text import reason_of, shown

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LARGEST_CONFIG = 2**20  # bytes
# What an adapter of PEFT's type LORA may not do if its training is to be continued: the policy at the start, which is
# the reference, is a second set of adapters on the same frozen base.
_ONLY_MERGED = (
    "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "megatron_config",
    "lora_bias", "arrow_config",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterFolder:
    """A PEFT adapter on disk.

    Attributes:
        path: Its folder.
        base: The model it belongs on: a folder, or a name on the hub.
        settings: The content of adapter_config.json.
    """

    path: Path
    base: str
    settings: Mapping[str, Any]

    @property
    def what(self) -> str:
        """Beginning of an error's message."""
        return f'model.policy = "{self.path}": a PEFT adapter'

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: beside the adapter, or with the base."""
        return str(self.path) if has_tokenizer(self.path) else self.base

    @property
    def has_two_tokenizers(self) -> bool:
        """Whether both have one, which must then mean the same."""
        base = Path(self.base)
        return has_tokenizer(self.path) and (has_tokenizer(base) or not base.is_dir())


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in the folder."""
    return any((folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json"))


def find_adapter(policy: str) -> AdapterFolder | None:
    """The adapter in the folder `policy`; None if it is no folder or holds none.

    Raises:
        ModelError: Its configuration cannot be read, or its base is not there.
    """
    path = Path(policy)
    file = path / ADAPTER_CONFIG
    if not policy or not file.exists():
        return None
    refuse_two_models(path, f'model.policy = "{policy}"')
    what = f'model.policy = "{policy}": a PEFT adapter'
    try:
        settings = json.loads(read_regular(file, LARGEST_CONFIG))
        base = settings.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{what}, but {ADAPTER_CONFIG} cannot be read: {reason_of(error, 100)}") from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{what} whose {ADAPTER_CONFIG} names no base_model_name_or_path; write its base there"
        )
    found = adapter_base(path, base)
    on = f'{what} on the base "{shown(base)}"'
    if (Path(found) / ADAPTER_CONFIG).exists():
        raise ModelError(f"{on}, which is an adapter, where a whole model is needed; merge that one first")
    if not Path(found).is_dir() and (looks_like_path(found) or not _on_hub(found)):
        raise ModelError(f"{on}, which is not there; correct base_model_name_or_path in its {ADAPTER_CONFIG}")
    return AdapterFolder(path, found, settings)


def _on_hub(name: str) -> bool:
    try:
        read_configuration(name)
    except (OSError, ValueError):
        return False
    return True


def merged_network(network: Any, adapter: AdapterFolder) -> Any:
    """The base with the adapter in its weights, whatever PEFT's method is, if its weights can hold it.

    Raises:
        ModelError: The adapter does not fit the base, or cannot be merged.
        ConfigError: PEFT is not installed.
    """
    adapted = _with_adapter(network, adapter, own_embedding=True)
    if adapted.active_peft_config.is_prompt_learning or not hasattr(adapted.base_model, "merge_and_unload"):
        kind = getattr(adapted.active_peft_config.peft_type, "value", "this")
        raise ModelError(f"{adapter.what} of type {kind}, which cannot be merged into its base's weights")
    with torch.no_grad():
        _untie(adapted)
        beside = some_logits(adapted.get_base_model())
        whole = merged(adapted.eval())
        error = float((some_logits(whole) - beside).abs().max())
    if not error <= 1e-3 * max(1.0, float(beside.abs().max())):
        raise ModelError(
            f"{adapter.what} that changes the logits by {error:.3g} when it is merged into its base"
        )
    return whole.requires_grad_(True)


def continued(model: LanguageModel, adapter: AdapterFolder, lora: LoraSettings) -> LanguageModel:
    """The base with the adapter on it, to be trained further; its state at the start is kept for the reference.

    Args:
        model: The base.
        adapter: The adapter: of PEFT's type LORA, with low-rank factors alone.
        lora: rank must be the adapter's; alpha, targets and variant the adapter's or their defaults.

    Raises:
        ModelError: The adapter does not fit the base, or can only be merged.
        ConfigError: PEFT is not installed, or the settings are not the adapter's.
    """
    _check_continues(adapter, lora)
    adapted = _with_adapter(model.network, adapter, own_embedding=False)
    model = replace(model, adapters=adapted.eval())
    check_merge(adapted, adapter.what)
    add_adapter_set(model, REFERENCE, copied=True)
    return model


def _untie(adapted: Any) -> None:
    """Give the head a weight of its own where it is the embedding's and the adapter changes one of the two."""
    network = adapted.get_base_model()
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    ends = [getattr(end, "base_layer", None) for end in (embedding, head)]
    if any(end is not None for end in ends) and embedding.weight is head.weight:
        layer = head if ends[1] is None else ends[1]
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        network.config.tie_word_embeddings = False


def _check_continues(adapter: AdapterFolder, lora: LoraSettings) -> None:
    settings = adapter.settings
    merge = "set model.lora.rank = 0 to merge it into its base"
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{adapter.what} of type {shown(str(kind), 40)}; only LORA can be continued: {merge}"
        )
    odd = [name for name in _ONLY_MERGED if settings.get(name)]
    odd += ["bias"] if settings.get("bias", "none") != "none" else []
    odd += (
        ["init_lora_weights"]
        if settings.get("init_lora_weights") not in (True, False, None, "gaussian")
        else []
    )
    if odd:
        raise ModelError(f"{adapter.what} with {odd[0]}, whose training cannot be continued: {merge}")
    for key, value, own in (
        ("rank", lora.rank, settings.get("r")),
        ("alpha", lora.alpha, settings.get("lora_alpha")),
    ):
        if value != own and (key == "rank" or value != LoraSettings().alpha):
            raise ConfigError(
                f"model.lora.{key} = {value}: the adapter in {adapter.path} has {shown(str(own), 40)}; set it to that"
                f" to continue the adapter, or {merge}"
            )
    variant = variant_of(settings)
    if lora.variant not in (variant, LoraSettings().variant):
        raise ConfigError(
            f'model.lora.variant = "{lora.variant}": the adapter in {adapter.path} is of the variant {variant}; leave'
            f" it out to continue the adapter, or {merge}"
        )
    targets = settings.get("target_modules")
    if lora.targets and (not isinstance(targets, list) or set(lora.targets) != set(targets)):
        raise ConfigError(
            f"model.lora.targets: the adapter in {adapter.path} has its own; leave them out, or {merge}"
        )


def _with_adapter(network: Any, adapter: AdapterFolder, own_embedding: bool) -> Any:
    """PEFT's model around the base, with the adapter's weights; own_embedding: they may hold the base's embedding."""
    try:
        import peft
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise ConfigError('model.policy is a PEFT adapter: pip install "proxlm[lora]"') from error
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(adapter.settings.get("peft_type"))
    if kind is None:
        found = shown(str(adapter.settings.get("peft_type")), 40)
        raise ModelError(f"{adapter.what} of peft_type {found}, which PEFT {peft.__version__} does not know")
    known = {field.name for field in fields(kind)} | {"peft_version"}
    # PEFT itself leaves out what it does not know, with a warning.
    unknown = [name for name, value in adapter.settings.items() if name not in known and value]
    if unknown:
        raise ModelError(
            f"{adapter.what} with the setting {shown(unknown[0], 40)}, which PEFT {peft.__version__} does not know;"
            " update peft"
        )
    weights = _read_weights(adapter)
    settings = kind(
        **{name: value for name, value in adapter.settings.items() if name in known - {"peft_version"}}
    )
    settings.inference_mode, settings.base_model_name_or_path = False, adapter.base
    try:
        with without_known_warnings():
            adapted = peft.get_peft_model(network, settings, adapter_name=POLICY)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{adapter.what} that does not fit its base: {reason_of(error, 150)}") from error
    settings.base_model_name_or_path = adapter.base
    _load(adapted, weights, adapter, own_embedding)
    return adapted


def _read_weights(adapter: AdapterFolder) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = adapter.path / ADAPTER_WEIGHTS
    if not file.exists():
        pickled = any(any(adapter.path.glob(pattern)) for pattern in PICKLED)
        found = "only pickled weights, which can run code" if pickled else "no weights"
        raise ModelError(
            f"{adapter.what} with {found}; {ADAPTER_WEIGHTS} is needed: save it with PEFT's save_pretrained"
        )
    try:
        check_regular(file)
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{adapter.what} whose {ADAPTER_WEIGHTS} cannot be read: {reason_of(error, 150)}"
        ) from error


def _load(adapted: Any, weights: dict[str, Tensor], adapter: AdapterFolder, own_embedding: bool) -> None:
    """Copy the adapter's weights in. PEFT leaves out what is missing or not known; here both are errors."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    needed = get_peft_model_state_dict(adapted, adapter_name=POLICY, save_embedding_layers=False)
    # With an adapter on an embedding, or a longer vocabulary, PEFT saves the embedding itself, too.
    every = needed | get_peft_model_state_dict(adapted, adapter_name=POLICY, save_embedding_layers=True)
    check_names(
        adapter.what,
        "PEFT adapter for this base",
        missing=map(_short, set(needed) - set(weights)),
        unexpected=map(_short, set(weights) - set(every)),
        shapes=[
            (_short(name), t.shape, every[name].shape)
            for name, t in weights.items()
            if name in every and t.shape != every[name].shape
        ],
        advice="do its settings and its base belong to these weights?",
    )
    other = [
        n for n, t in weights.items() if n not in needed and not torch.equal(t.to(every[n].dtype), every[n])
    ]
    if other and not own_embedding:
        raise ModelError(
            f"{adapter.what} with an embedding of its own ({shown(other[0], 60)}), whose training cannot be"
            " continued: set model.lora.rank = 0 to merge it into its base"
        )
    set_peft_model_state_dict(adapted, weights, adapter_name=POLICY)


def _short(name: str) -> str:
    """The name of an adapter's tensor without what PEFT puts before every one."""
    return name.removeprefix("base_model.model.")
