"""A transformers classifier that is trained, of texts or of their tokens: a reward model on any trunk."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.checkpoint.write import give_mode_of
from proxlm.config import LoraSettings, ModelSettings
from proxlm.config.gguf_paths import is_gguf
from proxlm.data.hub import check_hub
from proxlm.data.tokenizer import read_tokenizer
from proxlm.errors import ConfigError, ModelError
from proxlm.kernels.device import resolve_device, uses_bfloat16
from proxlm.models.adapter_folder import find_adapter
from proxlm.models.adapters import merged
from proxlm.models.context import context_of
from proxlm.models.frozen import freeze
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model, save_precision
from proxlm.models.quiet import without_progress_bars
from proxlm.models.save import no_progress_bars, save_network
from proxlm.models.source import ModelSource
from proxlm.models.value_model import LANGUAGE_MODELS, classifier_on
from proxlm.models.weights import check_files, check_names, check_vocabulary
from proxlm.text import reason_of


@dataclass(eq=False)
class Classifier:
    """A …ForSequenceClassification or …ForTokenClassification, its tokenizer, and its adapters if it has any.

    Attributes:
        network: The transformers model, with PEFT's layers inside it where `adapters` is the PeftModel around it.
        tokenizer: Its tokenizer.
        device: Where its weights are.
        bfloat16: Run forward passes under bf16 autocast; outputs and losses stay in float32.
        source: Where it came from, for messages.
        save_dtype: The precision that its weights are saved in.
        adapters: PEFT's model around the network, or None.
        new_head: Whether its head was made here and knows nothing yet.
    """

    network: Any
    tokenizer: Any
    device: torch.device
    bfloat16: bool = False
    source: str = ""
    save_dtype: torch.dtype = torch.float32
    adapters: Any = None
    new_head: bool = False

    @property
    def context(self) -> int | None:
        """Longest text in tokens; None: the configuration names none."""
        return context_of(self.network.config).limit

    @property
    def pad_id(self) -> int:
        """What transformers finds the end of a text by."""
        found = getattr(self.network.config.get_text_config(), "pad_token_id", None)
        return 0 if found is None else int(found)

    def outputs(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts [B, T], padded on the right with `pad_id`, and the mask of their tokens → [B, K] float32.

        Of a …ForTokenClassification [B, T, K].
        """
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()
        )
        with autocast:
            logits: Tensor = self.network(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
            ).logits
        return logits.float()

    @property
    def output_layer(self) -> nn.Linear:
        """The last linear layer, which gives the outputs."""
        trunk = set(getattr(self.network, self.network.base_model_prefix).modules())
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear) and m not in trunk]
        return layers[-1]

    def name_outputs(self, names: Sequence[str], problem_type: str, **more: Any) -> None:
        """Say in its configuration what its outputs are; more: further entries."""
        config = self.network.config
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        config.problem_type = problem_type
        for name, value in more.items():
            setattr(config, name, value)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """The named parameters that learn."""
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]


def load_classifier(source: ModelSource, labels: int = 1, per_token: bool = False) -> Classifier:
    """A classifier to train: one that is there, or a new head on the trunk of a language model or an encoder.

    A decoder's head is linear and begins at 0, so that all scores are 0 at first; that of an encoder is made by
    transformers, from torch's global generator. Weights are in float32, and there is no dropout.

    Args:
        source: A classifier (it keeps its head if it has as many outputs), a causal language model, an encoder or
            an encoder–decoder, in a folder, on the hub or loaded; also a GGUF file and a PEFT adapter on a causal LM.
        labels: K, its outputs.
        per_token: It has outputs for each token (…ForTokenClassification).

    Raises:
        ModelError: The model or its tokenizer cannot be loaded, or transformers has no classifier of its type.
        ConfigError: A setting does not fit it.
    """
    settings = source.settings
    if source.network is not None:
        network, new = _of_loaded(source.network, labels, settings.policy, per_token)
        tokenizer = source.network_tokenizer
    elif (
        is_gguf(settings.policy)
        or find_adapter(settings.policy) is not None
        or _is_causal(source.configuration)
    ):
        model = load_language_model(
            replace(settings, lora=LoraSettings(), train_layers=0, freeze=[], packed=False)
        )
        network, tokenizer = _of_decoder(model.network, labels, settings.policy, per_token), model.tokenizer
        new = True
    else:
        network, new = _read(settings, labels, per_token)
        tokenizer = _read_tokenizer(settings)
    return source.made(replace(classifier_of(network, tokenizer, settings), new_head=new))


def classifier_of_language_model(
    model: LanguageModel, settings: ModelSettings, labels: int = 1, per_token: bool = False
) -> Classifier:
    """A new head on a language model's trunk, which is not copied. Raises ModelError, as `load_classifier`."""
    network = _of_decoder(model.network, labels, model.source, per_token)
    return replace(classifier_of(network, model.tokenizer, settings), new_head=True)


def classifier_of(network: Any, tokenizer: Any, settings: ModelSettings) -> Classifier:
    """A transformers classifier as a Classifier, with what learns of it as the settings say.

    Raises:
        ModelError: Its tokenizer does not fit.
        ConfigError: The device does not exist, or LoRA or train_layers do not fit the model.
    """
    try:
        device = resolve_device(settings.device)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    check_vocabulary(settings.policy, tokenizer, network, special=True)
    _set_padding(network, tokenizer)
    network.config.use_cache = False
    model = Classifier(
        network.to(device).eval(),
        tokenizer,
        device,
        uses_bfloat16(settings.precision, device),
        settings.policy,
        save_precision(network, settings),
    )
    if settings.lora.rank:
        from proxlm.models.adapters import add_lora_to_trunk

        model = replace(model, adapters=add_lora_to_trunk(network, settings.lora, settings.train_layers))
    elif settings.train_layers or settings.freeze:
        freeze(network, settings.train_layers, settings.freeze)
    for _, p in _head_of(network):
        p.requires_grad_(True)
    return model


def averaged(models: Sequence[Classifier]) -> Classifier:
    """A copy whose weights are the means of those of models without adapters that began as one."""
    made = replace(models[0], network=copy.deepcopy(models[0].network))
    others = [dict(model.network.named_parameters()) for model in models]
    with torch.no_grad():
        for name, p in made.network.named_parameters():
            p.copy_(torch.stack([other[name] for other in others]).mean(0))
    return made


def save_classifier(model: Classifier, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer for `from_pretrained` of transformers' own class.

    With LoRA it writes the trunk with the adapters merged in. The model itself does not change.
    """
    network = model.network if model.adapters is None else merged(copy.deepcopy(model.adapters))
    network.config.architectures = [type(network).__name__]
    network.config.use_cache = True
    try:
        with no_progress_bars():
            save_network(network, model.save_dtype, folder)
            model.tokenizer.save_pretrained(folder)
    finally:
        network.config.use_cache = False
    give_mode_of(folder / "config.json", folder)


def _is_causal(config: Any) -> bool:
    """Whether a configuration says that it is a causal language model's."""
    names = [str(name) for name in getattr(config, "architectures", None) or []]
    return not config.is_encoder_decoder and any(name.endswith(LANGUAGE_MODELS) for name in names)


def _of_loaded(network: Any, labels: int, what: str, per_token: bool) -> tuple[Any, bool]:
    """A loaded model as a classifier, and whether its head is new."""
    if hasattr(network, "peft_config"):
        raise ModelError(f"{what}: a model with PEFT adapters; pass what its merge_and_unload() returns")
    kind = "ForTokenClassification" if per_token else "ForSequenceClassification"
    if type(network).__name__.endswith(kind):
        if network.config.num_labels != labels:
            raise ModelError(f"{what}: has {network.config.num_labels} outputs, where {labels} are needed")
        return network, False
    if network.config.is_encoder_decoder or network.get_output_embeddings() is None:
        raise ModelError(
            f"{what}: a loaded {type(network).__name__}; pass a classifier, a causal language model, or a folder"
        )
    return _of_decoder(network, labels, what, per_token), True


def _of_decoder(network: Any, labels: int, what: str, per_token: bool) -> Any:
    """A classifier whose trunk is a causal language model's, with a head of zeros."""
    weight = network.get_output_embeddings().weight
    head = nn.Linear(weight.shape[1], labels, device=weight.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    config = copy.deepcopy(network.config)
    config.problem_type = None
    return classifier_on(network.base_model, head, config, what, per_token)


def _read(settings: ModelSettings, labels: int, per_token: bool) -> tuple[Any, bool]:
    """A classifier from a folder or the hub: its own, or a new head on an encoder or encoder–decoder.

    Returns:
        It, and whether its head is new.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kind = AutoModelForTokenClassification if per_token else AutoModelForSequenceClassification
    what = f'model.policy = "{settings.policy}"'
    check_files(settings.policy, what)
    try:
        check_hub(settings.policy)
        with without_progress_bars():
            network, info = kind.from_pretrained(
                settings.policy,
                num_labels=labels,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=settings.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # what its config.json leads to
        raise ModelError(f"{what}: cannot be loaded as a classifier: {reason_of(error, 200)}") from error
    head = {name for name, _ in _head_of(network)}
    check_names(
        what,
        type(network).__name__,
        missing=[name for name in info["missing_keys"] if name not in head and "pooler" not in name],
        # The heads of other tasks.
        unexpected=[
            name
            for name in info["unexpected_keys"]
            if name.startswith(f"{network.base_model_prefix}.") and "pooler" not in name
        ],
        shapes=[entry for entry in info["mismatched_keys"] if entry[0] not in head],
    )
    new = head & ({*info["missing_keys"]} | {entry[0] for entry in info["mismatched_keys"]})
    return network, bool(new)


def _read_tokenizer(settings: ModelSettings) -> Any:
    try:
        return read_tokenizer(settings.policy, settings.trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise ModelError(f"{settings.policy}: no tokenizer: {reason_of(error)}") from error


def _head_of(network: Any) -> list[tuple[str, nn.Parameter]]:
    """What a classifier has beside its trunk."""
    trunk = {id(p) for p in getattr(network, network.base_model_prefix).parameters()}
    return [(name, p) for name, p in network.named_parameters() if id(p) not in trunk]


def _set_padding(network: Any, tokenizer: Any) -> None:
    """Let the configuration name a padding token, by which transformers finds where a decoder's text ends."""
    config = network.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        known: Mapping[str, Any] = {
            name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "unk")
        }
        config.pad_token_id = next((i for i in known.values() if i is not None), 0)
        network.config.pad_token_id = config.pad_token_id
