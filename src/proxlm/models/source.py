"""A model before its weights are read: a folder, a name on the hub, or a model that the caller has loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from proxlm.config import ModelSettings
from proxlm.config.paths import expand_user
from proxlm.config.values import shown_value
from proxlm.data.tokenizer import check_tokenizer, load_tokenizer, require_folder
from proxlm.data.turn_end import eos_of
from proxlm.errors import ConfigError, ModelError
from proxlm.kernels.device import resolve_device, uses_bfloat16
from proxlm.models.adapter_folder import AdapterFolder, find_adapter
from proxlm.models.adapters import POLICY, variant_of
from proxlm.models.context import context_of
from proxlm.models.frozen import learns_so
from proxlm.models.gguf import imported
from proxlm.models.language_model import LanguageModel
from proxlm.models.lent import lent_language_model, lent_network
from proxlm.models.load import language_model_of, load_language_model, save_precision
from proxlm.models.model_types import register_model_types
from proxlm.models.weights import read_configuration
from proxlm.text import reason_of

M = TypeVar("M")


class ModelSource:
    """Where a model comes from. Its configuration and tokenizer are cheap to read; `load` reads the weights.

    Args:
        settings: The section [model].
        model: A folder, a name on the hub, a GGUF file, a transformers model or a LanguageModel, instead of
            settings.policy. A loaded model is trained in place, inside `lent`.
        tokenizer: The tokenizer of a transformers model.

    Raises:
        ConfigError: A setting asks for another model than a LanguageModel is.
        ModelError: A transformers model without its tokenizer, or a tokenizer without one.
    """

    def __init__(self, settings: ModelSettings, model: Any = None, tokenizer: Any = None) -> None:
        self._loaded: LanguageModel | None = None
        self._network, self._tokenizer = None, tokenizer
        self._wrapped: list[Any] = []
        if isinstance(model, LanguageModel):
            if tokenizer is not None:
                raise ModelError("tokenizer: only with a transformers model; a LanguageModel has its own")
            settings = _as_loaded(settings, model)
            self._loaded, self._network, self._tokenizer = model, model.network, model.tokenizer
        elif model is not None and not isinstance(model, str | Path):
            if not hasattr(model, "config") or not hasattr(model, "named_parameters"):
                raise ModelError(
                    f"model: expected a folder, a name or a transformers model, got {type(model).__name__}"
                )
            if tokenizer is None:
                raise ModelError("model: a transformers model needs its tokenizer as well: tokenizer=...")
            self._network = model
        elif tokenizer is not None:
            raise ModelError("tokenizer: only with a transformers model; a folder or a name has its own")
        if self._network is not None:
            name = getattr(self._network, "name_or_path", "") or type(self._network).__name__
            settings = replace(settings, policy=name)
        elif model is not None:
            settings = replace(settings, policy=str(model))
        self.settings = expand_user(settings)

    @property
    def network(self) -> Any:
        """The transformers model that the caller has loaded; None: it is to be read."""
        return self._network

    @property
    def network_tokenizer(self) -> Any:
        """The tokenizer that the caller passed with it, which may have no EOS."""
        return self._tokenizer

    @property
    def in_memory(self) -> bool:
        """Whether the caller has loaded the model, so that no other process could."""
        return self._network is not None

    def sha256(self) -> str:
        """A hash of a loaded model's tensors as they are now."""
        digest = hashlib.sha256()
        assert self._network is not None
        for name, tensor in sorted(self._network.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def configuration(self) -> Any:
        """The transformers configuration. Raises ModelError if it cannot be read."""
        if self._network is not None:
            return self._network.config
        register_model_types()
        require_folder(self._folder)
        name = self._folder if self._adapter is None else self._adapter.base
        try:
            return read_configuration(name, self.settings.trust_remote_code)
        except (OSError, ValueError) as error:
            raise ModelError(f'model.policy = "{name}": cannot be loaded: {reason_of(error, 200)}') from error

    @cached_property
    def _folder(self) -> str:
        """The folder or the name on the hub that is read: of a GGUF file, what it was made into."""
        return imported(self.settings.policy)

    @cached_property
    def _adapter(self) -> AdapterFolder | None:
        """The PEFT adapter that the folder holds instead of a whole model."""
        return None if self.in_memory else find_adapter(self.settings.policy)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises ModelError if there is none or it has no EOS."""
        if self._tokenizer is not None:
            return check_tokenizer(self._tokenizer, self.settings.policy)
        path = self._folder if self._adapter is None else self._adapter.tokenizer
        return load_tokenizer(path, self.settings.trust_remote_code)

    @cached_property
    def eos(self) -> list[int]:
        """The EOS tokens of the generation config, or of the configuration where a model has no such file."""
        from transformers import GenerationConfig

        if self._network is not None:
            return eos_of(getattr(self._network, "generation_config", None))
        try:
            return eos_of(GenerationConfig.from_pretrained(self.configuration.name_or_path))
        except (OSError, ValueError):
            return eos_of(self.configuration)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None: the configuration names none. Of an encoder–decoder, of each side."""
        return context_of(self.configuration).limit

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.configuration.is_encoder_decoder)

    def load(self) -> LanguageModel:
        """The model with its weights, with adapters if the settings ask for them.

        A LanguageModel is returned as it is. Raises ModelError, ConfigError.
        """
        if self._loaded is not None:
            return self._loaded
        if self._network is None:
            return load_language_model(self.settings)
        return self.made(language_model_of(self._network, self.tokenizer, self.settings))

    def made(self, model: M) -> M:
        """Note what was made of a loaded transformers model, so that `lent` can undo it; returns it."""
        self._wrapped.append(model)
        return model

    @contextmanager
    def lent(self) -> Iterator[None]:
        """A block that uses a loaded model; it ends, also by an error, with nothing changed but weights."""
        if self._loaded is not None:
            with lent_language_model(self._loaded):
                yield
        elif self._network is not None:
            with lent_network(self._network, self._tokenizer, self._wrapped):
                yield
        else:
            yield


def _learns_whole(model: LanguageModel) -> bool:
    return model.adapters is None and all(p.requires_grad for p in model.network.parameters())


def _as_loaded(settings: ModelSettings, model: LanguageModel) -> ModelSettings:
    """The settings with what a loaded model was loaded with, which is how it is trained.

    Raises ConfigError for a setting that is not its default and asks for something else.
    """
    default = ModelSettings()
    precision: Literal["float32", "bfloat16"] = "bfloat16" if model.bfloat16 else "float32"
    adapters = None if model.adapters is None else model.adapters.peft_config.get(POLICY)
    lora, alpha = settings.lora, None if adapters is None else adapters.lora_alpha
    other_part = "learns as a whole" if _learns_whole(model) else "has other weights that learn"
    saved = str(model.save_dtype).removeprefix("torch.")
    device = resolve_device(settings.device) if settings.device != default.device else model.device
    checks: list[tuple[str, Any, bool, str]] = [
        (
            "precision",
            settings.precision,
            settings.precision == default.precision
            or uses_bfloat16(settings.precision, model.device) == model.bfloat16,
            f"computes in {precision}",
        ),
        ("packed", settings.packed, model.packed or not settings.packed, "is not packed"),
        (
            "activation_checkpointing",
            settings.activation_checkpointing,
            model.activation_checkpointing or not settings.activation_checkpointing,
            "keeps all activations",
        ),
        (
            "save_dtype",
            settings.save_dtype,
            settings.save_dtype == default.save_dtype
            or save_precision(model.network, settings) == model.save_dtype,
            f"is saved in {saved}",
        ),
        ("device", settings.device, device == model.device, f"is on {model.device}"),
        (
            "train_layers",
            settings.train_layers,
            not settings.train_layers or learns_so(model, settings.train_layers, []),
            other_part,
        ),
        ("freeze", settings.freeze, not settings.freeze or learns_so(model, 0, settings.freeze), other_part),
        (
            "lora.rank",
            lora.rank,
            not lora.rank or (adapters is not None and adapters.r == lora.rank),
            "has no adapters" if adapters is None else f"has adapters of rank {adapters.r}",
        ),
        (
            "lora.alpha",
            lora.alpha,
            not lora.rank or lora.alpha in (default.lora.alpha, alpha),
            f"has adapters of alpha {alpha}",
        ),
        (
            "lora.variant",
            lora.variant,
            not lora.rank or lora.variant in (default.lora.variant, variant_of(adapters)),
            f"has adapters of the variant {variant_of(adapters)}",
        ),
    ]
    for name, value, fits, what in checks:
        if not fits:
            raise ConfigError(
                f"model.{name} = {shown_value(value)}: a LanguageModel is trained as it is, and this one {what}; load"
                " it with these settings (proxlm.load_model), or pass a folder"
            )
    kept = saved if saved in ("float32", "bfloat16") else "source"
    return replace(
        settings,
        precision=precision,
        packed=model.packed,
        activation_checkpointing=model.activation_checkpointing,
        save_dtype=cast("Literal['float32', 'bfloat16', 'source']", kept),
    )


@contextmanager
def named_as(key: str) -> Iterator[None]:
    """Errors in this block name the setting `key`: other models are read by the code that reads a policy."""
    try:
        yield
    except (ModelError, ConfigError) as error:
        raise type(error)(str(error).replace("model.policy", key)) from error
