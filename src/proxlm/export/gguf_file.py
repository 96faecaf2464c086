"""A model as one GGUF file, for llama.cpp and what is built on it.

Names and settings are those of llama.cpp's own converter; the tensors are written one by one.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from proxlm.errors import ConfigError, ModelError
from proxlm.export.gguf_tokenizer import GgufTokenizer, tokenizer_for_gguf
from proxlm.models.language_model import LanguageModel
from proxlm.text import shown

# The types whose tensors and settings llama.cpp's converter maps one to one.
TYPES = ("llama", "qwen2", "qwen3", "gpt2")
# Our names of the kinds of weights → gguf's.
KINDS = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "q8_0": "Q8_0", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_1": "Q4_1", "q4_0": "Q4_0",
}  # fmt: skip
# gguf's names of whole files of each kind (LlamaFileType).
_FILE_TYPES = {"F32": "ALL_F32"}
# llama.cpp reads the embedding of positions as float32 alone.
_ALWAYS_FLOAT32 = ("position_embd",)
# With blocks of 4 or 5 bits, the embedding and the head have 8: they cost little, and most of the loss is theirs.
_ENDS = ("token_embd", "output.")
# A row that is no multiple of a block's length stays in this kind, as llama.cpp's own tools leave it.
_FALLBACK = "F16"
INSTALL = 'format = "gguf" needs the package gguf: pip install "proxlm[gguf]"'


def check_gguf(model: LanguageModel) -> GgufTokenizer:
    """The tokenizer as the file will hold it, if model and tokenizer can be held by one.

    Raises:
        ConfigError: The package gguf is not installed.
        ModelError: The type, one of its settings or the tokenizer has no place in a GGUF file that llama.cpp reads.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    config = model.network.config
    if config.model_type not in TYPES:
        raise _refused(
            model,
            f"model type {config.model_type}; GGUF is written for {', '.join(TYPES)}: export safetensors",
        )
    for name, wanted in _wanted(config).items():
        value = getattr(config, name, wanted)
        if value != wanted:
            raise _refused(
                model, f"{name} = {shown(str(value), 40)}, which llama.cpp's {config.model_type} has not"
            )
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) != "default":
        raise _refused(
            model, f"rotary positions of the kind {shown(str(kind), 30)}; the default kind is written"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refused(model, "rotary positions on a part of each head")
    return tokenizer_for_gguf(model)


def _wanted(config: Any) -> dict[str, Any]:
    """The settings of each type that llama.cpp takes for granted."""
    if config.model_type == "gpt2":
        return {
            "activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }  # fmt: skip
    common = {"hidden_act": "silu"}
    if config.model_type == "llama":
        return common
    return {**common, "use_sliding_window": False, "attention_bias": config.model_type == "qwen2"}


def _refused(model: LanguageModel, why: str) -> ModelError:
    return ModelError(f"{model.source}: cannot be written as GGUF: {why}")


def write_gguf(model: LanguageModel, path: Path, weights: str, tokenizer: GgufTokenizer) -> dict[str, int]:
    """Write the file.

    Args:
        model: What `check_gguf` accepts; its weights hold merged adapters.
        path: The file to write.
        weights: One of KINDS. Vectors and the embedding of positions stay in float32.
        tokenizer: What `check_gguf` returned.

    Returns:
        Kind of weights → how many tensors are of it.
    """
    from gguf import (
        GGML_QUANT_SIZES,
        MODEL_ARCH,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        get_tensor_name_map,
    )
    from gguf.quants import quantize

    config = model.network.config
    writer = GGUFWriter(path, config.model_type)
    kind = KINDS[weights]
    writer.add_quantization_version(2)
    writer.add_file_type(LlamaFileType[_FILE_TYPES.get(kind, f"MOSTLY_{kind}")])
    _add_settings(writer, model)
    tokenizer.add_to(writer)
    names = get_tensor_name_map(MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    kinds: dict[str, int] = {}
    planned = []
    for name, tensor in _tensors(model):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise _refused(model, f"llama.cpp has no place for its tensor {shown(name, 60)}")
        own = _kind_of(target, tensor, kind, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])
        kinds[own] = kinds.get(own, 0) + 1
        planned.append((target, tensor, GGMLQuantizationType[own]))
    for target, tensor, own_type in planned:
        block, width = GGML_QUANT_SIZES[own_type]
        size = tensor.numel() // block * width
        writer.add_tensor_info(target, tensor.shape, numpy.dtype("float32"), size, raw_dtype=own_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for target, tensor, own_type in planned:
        values = _arranged(config, target, tensor).float().contiguous().numpy()
        packed = quantize(values, own_type)
        if own_type.name == "F16" and not numpy.isfinite(packed).all():
            raise _refused(model, f"{target} has weights beyond 65504, the largest number of float16")
        writer.write_tensor_data(packed)
    writer.close()
    return kinds


@torch.no_grad()
def _tensors(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight once, matrices as [outputs, inputs]; a tied head is the embedding."""
    from transformers.pytorch_utils import Conv1D

    turned = {f"{name}.weight" for name, m in model.network.named_modules() if isinstance(m, Conv1D)}
    for name, p in model.network.named_parameters():
        yield name, p.detach().cpu().T if name in turned else p.detach().cpu()


def _kind_of(target: str, tensor: Tensor, kind: str, block: int) -> str:
    """What a tensor's numbers are written as."""
    if tensor.dim() < 2 or target.startswith(_ALWAYS_FLOAT32):
        return "F32"
    if tensor.shape[-1] % block:
        return _FALLBACK
    return "Q8_0" if kind[:2] in ("Q4", "Q5") and target.startswith(_ENDS) else kind


def _arranged(config: Any, target: str, tensor: Tensor) -> Tensor:
    """Queries and keys of a Llama in llama.cpp's order: pairs that are rotated together are neighbours."""
    part = target.split(".")[-2]
    if config.model_type != "llama" or part not in ("attn_q", "attn_k"):
        return tensor
    heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _add_settings(writer: Any, model: LanguageModel) -> None:
    """The shape of the model, by llama.cpp's names."""
    config = model.network.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(model.network.get_input_embeddings().weight.shape[0])
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
