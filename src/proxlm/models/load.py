"""Load a language model from a folder or the hub, or build a new one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from proxlm.config import LoraSettings, ModelSettings, NewModelSettings
from proxlm.data.tokenizer import load_tokenizer
from proxlm.errors import ConfigError, ModelError
from proxlm.kernels.block_layouts import LAYOUTS, has_layout
from proxlm.kernels.device import resolve_device, uses_bfloat16
from proxlm.models.adapter_folder import continued, find_adapter, merged_network
from proxlm.models.adapters import add_lora
from proxlm.models.agreement import check_forward, model_runs
from proxlm.models.forward import check_packing, runs_unpadded
from proxlm.models.frozen import freeze, frozen_blocks, top_blocks
from proxlm.models.gguf import imported
from proxlm.models.initialise import check_parts, initialise, set_parts
from proxlm.models.language_model import LanguageModel
from proxlm.models.model_types import SHORT_NAMES, is_encoder_decoder_type, register_model_types
from proxlm.models.weights import (
    check_can_be_saved,
    check_vocabulary,
    read_configuration,
    read_network,
    saved_precision,
)
from proxlm.text import reason_of, shown


def load_language_model(config: ModelSettings) -> LanguageModel:
    """Load a language model: weights in float32, with adapters if configured, in evaluation mode (no dropout).

    The folder of a PEFT adapter is loaded with its base: with model.lora.rank = 0 merged into it, else to be trained
    further.

    Raises:
        ModelError: The model or its tokenizer cannot be loaded, a tensor of it is missing or unknown, the tokenizer
            is longer than the embedding or has no EOS, or there are only pickled weights.
        ConfigError: The device does not exist, or adapters do not fit the model.
    """
    register_model_types()  # first, for transformers looks up the tokenizer by model type
    adapter = find_adapter(config.policy)
    if adapter is None:
        folder = imported(config.policy)
        tokenizer = load_tokenizer(folder, config.trust_remote_code)
        network = _load_network(config, folder, f'model.policy = "{config.policy}"')
        return language_model_of(network, tokenizer, config)
    tokenizer = load_tokenizer(adapter.tokenizer, config.trust_remote_code)
    if adapter.has_two_tokenizers:
        of_base = load_tokenizer(adapter.base, config.trust_remote_code).get_vocab()
        if other := sorted(of_base.items() - tokenizer.get_vocab().items()):
            raise ModelError(
                f'{adapter.what}: its tokenizer is not that of the base "{adapter.base}": {len(other)} tokens differ,'
                f" {shown(repr(other[0][0]), 40)} among them; give the base that it was trained on"
            )
    network = _load_network(config, adapter.base, f'{adapter.what} on the base "{adapter.base}"')
    if not config.lora.rank:
        return language_model_of(merged_network(network, adapter), tokenizer, config)
    plain = replace(config, lora=LoraSettings(), train_layers=0, freeze=[])
    model = continued(language_model_of(network, tokenizer, plain), adapter, config.lora)
    if config.train_layers:
        top = tuple(f"{name}." for name, _ in top_blocks(network, config.train_layers))
        below = [name for name, _ in model.trainable() if not name.startswith(top)]
        if below:
            raise ConfigError(
                f"model.train_layers = {config.train_layers}: the adapter in {adapter.path} reaches further down"
                f" ({below[0]}); set it to 0 to continue the adapter"
            )
    model.frozen_blocks = frozen_blocks(model)
    return model


def language_model_of(network: Any, tokenizer: Any, config: ModelSettings) -> LanguageModel:
    """A loaded transformers model and its tokenizer as a LanguageModel, with adapters if asked.

    The network itself is trained, not a copy.

    Raises:
        ModelError: its weights are not float32, it has adapters, or it is of a type that is refused.
        ConfigError: a setting does not fit the model.
    """
    if hasattr(network, "peft_config"):
        raise ModelError(
            f"{config.policy}: a model with PEFT adapters; pass what its merge_and_unload() returns, or the adapter's"
            " folder"
        )
    other = {str(p.dtype).removeprefix("torch.") for p in network.parameters() if p.dtype != torch.float32}
    if other:
        raise ModelError(
            f"{config.policy}: weights in {', '.join(sorted(other))}; training needs float32 ones: load it with"
            " dtype=torch.float32, and set model.precision for the computation"
        )
    check_can_be_saved(network, config.policy)
    model = wrap(network, tokenizer, config)
    if config.packed:
        check_packing(model)
    if config.lora.rank:
        model = add_lora(model, config.lora, config.train_layers)
    elif config.train_layers or config.freeze:
        freeze(network, config.train_layers, config.freeze)
    model.frozen_blocks = frozen_blocks(model)
    return model


def wrap(network: Any, tokenizer: Any, config: ModelSettings) -> LanguageModel:
    """Wrap a transformers model and its tokenizer, on the configured device, and check that they fit.

    Raises:
        ConfigError: The device does not exist.
        ModelError: The logits are more than the head's output, or a setting is not for this model type.
    """
    try:
        device = resolve_device(config.device)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    if any(name.endswith("relative_attention_bias") for name, _ in network.named_modules()):
        # T5's position bias learns, and for such a bias torch has one fused kernel without gradients and another one
        # with them; the plain attention is the same in both, so the ratio of the first minibatch stays exactly 1.
        network.set_attn_implementation("eager")
    model = LanguageModel(
        network.to(device).eval(),
        tokenizer,
        device,
        uses_bfloat16(config.precision, device),
        source=config.policy,
        packed=config.packed,
        activation_checkpointing=config.activation_checkpointing,
        save_dtype=save_precision(network, config),
    )
    with model_runs(model):
        check_vocabulary(config.policy, tokenizer, network, special=True)
    check_forward(model)
    if config.activation_checkpointing and not runs_unpadded(model, model.trunk):
        form = " of a form that it does not know" if network.config.model_type in LAYOUTS else ""
        reason = f"this is {network.config.model_type}{form}; set it to false"
        if config.packed and has_layout(network.config):
            reason = "these are packed; set it or model.packed to false"
        raise ModelError(
            f"{model.source}: model.activation_checkpointing is for {', '.join(LAYOUTS)}; {reason}"
        )
    return model


def _load_network(config: ModelSettings, path: str, what: str) -> Any:
    """The network in `path`; what: beginning of an error's message."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        found = read_configuration(path, config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{what}: cannot be loaded: {reason_of(error, 200)}") from error
    if quantised := getattr(found, "quantization_config", None):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        name = f" ({shown(str(method), 20)})" if method else ""
        raise ModelError(
            f"{what}: its weights are quantised{name}; training needs them in floating point: use the model that it"
            " was made from"
        )
    kind = AutoModelForSeq2SeqLM if found.is_encoder_decoder else AutoModelForCausalLM
    return read_network(kind, path, what, trust_remote_code=config.trust_remote_code)


def save_precision(network: Any, config: ModelSettings) -> torch.dtype:
    """The precision that policies are saved in; a model without a folder or a name is float32 at its source."""
    if config.save_dtype != "source":
        return getattr(torch, config.save_dtype)
    name = str(getattr(network, "name_or_path", "") or "")
    # As it is saved: the network's own configuration says float32, as which it was loaded.
    return saved_precision(name, lambda: read_configuration(name)) if name else torch.float32


def check_named_parts(new: NewModelSettings, key: str = "new") -> None:
    """Raise ConfigError if the model type has no field for what the settings name, before it is built."""
    from transformers import AutoConfig

    register_model_types()
    try:
        config = AutoConfig.for_model(SHORT_NAMES.get(new.type, new.type))
    except Exception:  # no such type, or none without sizes: `build_language_model` says so
        return
    set_parts(config, new, key)


def build_language_model(
    new: NewModelSettings, tokenizer: Any, config: ModelSettings, key: str = "new"
) -> LanguageModel:
    """Build a new model with random weights, of any transformers type that uses the usual field names.

    It is a causal LM, or an encoder–decoder with new.layers blocks on each side.

    Args:
        new: Type and sizes.
        tokenizer: For the vocabulary and the special tokens.
        config: Device and precision, and what learns.
        key: The settings' section, for messages.

    Raises:
        ConfigError: transformers knows no such type, or cannot build it with these sizes and names.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    register_model_types()
    try:
        two_sides = is_encoder_decoder_type(new.type)
        kind = AutoModelForSeq2SeqLM if two_sides else AutoModelForCausalLM
        network_config = (_encoder_decoder_config if two_sides else _causal_config)(new, tokenizer)
        set_parts(network_config, new, key)
        network = kind.from_config(network_config, dtype=torch.float32)
        check_parts(network, new, key)
        if two_sides:
            _shrink_embedding(network)
        initialise(network, new, key)
    except ConfigError:
        raise
    except Exception as error:  # what a type's own code raises for sizes or settings that it does not take
        reason = f"{type(error).__name__}: {reason_of(error, 160)}"
        raise ConfigError(f'{key}.type = "{new.type}": cannot be built with these sizes: {reason}') from error
    model = wrap(network, tokenizer, replace(config, policy=config.policy or f"new {new.type}"))
    if config.train_layers or config.freeze:
        freeze(network, config.train_layers, config.freeze)
    model.frozen_blocks = frozen_blocks(model)
    return model


def _causal_config(new: NewModelSettings, tokenizer: Any) -> Any:
    config = _sized_config(new, tokenizer, max_position_embeddings=new.context)
    _set_where_present(config, num_key_value_heads=new.heads, head_dim=new.hidden // new.heads)
    _set_where_present(config, intermediate_size=_intermediate(new))
    return config


def _encoder_decoder_config(new: NewModelSettings, tokenizer: Any) -> Any:
    """Both sides alike. A response starts after BOS or, where the tokenizer has none, after padding (as in T5)."""
    start = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    config = _sized_config(new, tokenizer, decoder_start_token_id=start)
    # T5 has relative positions and no limit; BART has a limit, which holds for each side.
    _set_where_present(config, max_position_embeddings=new.context, forced_eos_token_id=None)
    _set_where_present(config, decoder_layers=new.layers, num_decoder_layers=new.layers)
    _set_where_present(config, decoder_attention_heads=new.heads, d_kv=new.hidden // new.heads)
    for name in ("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"):
        _set_where_present(config, **{name: _intermediate(new)})
    return config


@torch.no_grad()
def _shrink_embedding(network: Any) -> None:
    """T5's embedding starts with numbers of size 1, for a head that divides by the root of the width.

    Without that scale (T5 1.1, mT5) the first logits would be of size √hidden; the embedding takes it over.
    """
    config = network.config
    if hasattr(config, "initializer_factor") and not getattr(config, "scale_decoder_outputs", False):
        network.get_input_embeddings().weight.mul_(config.hidden_size**-0.5)


def _sized_config(new: NewModelSettings, tokenizer: Any, **more: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        SHORT_NAMES.get(new.type, new.type),
        vocab_size=len(tokenizer),
        hidden_size=new.hidden,
        num_hidden_layers=new.layers,
        num_attention_heads=new.heads,
        tie_word_embeddings=new.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _intermediate(new: NewModelSettings) -> int:
    return new.intermediate or -(-new.hidden * 8 // 3 // 32) * 32


def _set_where_present(config: Any, **values: Any) -> None:
    for name, value in values.items():
        if hasattr(config, name):
            setattr(config, name, value)
