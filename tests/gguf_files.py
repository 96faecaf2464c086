"""Tiny GGUF files, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHAT_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|eos|>{% endfor %}"
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tiny_llama(tokenizer: Any, **settings: Any) -> Any:
    """A random Llama with fewer heads of keys and values than of queries, wide enough for blocks of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **{"tie_word_embeddings": True, **settings},
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() == 2:
                p.mul_(2.0)
    return network


def write_gguf(
    path: Path, network: Any, tokenizer: Any, kind: str = "F32", pre: str = "default", **changes: Any
) -> Path:
    """Write a Llama; its matrices as blocks of `kind` ("Q8_0"), its vectors in float32.

    Args:
        path: Where.
        network: The model.
        tokenizer: A byte-level BPE tokenizer.
        kind: The name of one of gguf's kinds of weights.
        pre: llama.cpp's name of how text is split before merging.
        changes: Settings that the file is to have instead, "llama.block_count" for instance; None: leave it out.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = network.config
    writer = GGUFWriter(path, "llama")
    settings = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size,
    }  # fmt: skip
    settings = {f"llama.{name}": value for name, value in settings.items()} | changes
    for name, value in settings.items():
        if value is not None:
            writer.add_uint32(name, value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, tokenizer, pre)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    block = GGMLQuantizationType[kind]
    for name, p in network.named_parameters():
        ours = _gguf_name(name)
        weights = p.detach().numpy()
        if (count := heads.get(ours.split(".")[-2])) is not None:
            weights = weights.reshape(count, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
        if p.dim() == 2:
            writer.add_tensor(ours, quants.quantize(np.ascontiguousarray(weights), block), raw_dtype=block)
        else:
            writer.add_tensor(ours, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(network: Any, kind: str) -> Any:
    """The model with its matrices as blocks of `kind` hold them."""
    from gguf import GGMLQuantizationType, quants

    block = GGMLQuantizationType[kind]
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() == 2:
                p.copy_(torch.from_numpy(quants.dequantize(quants.quantize(p.numpy(), block), block)))
    return network


def _gguf_name(name: str) -> str:
    stem, end = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, number, rest = stem.split(".", 3)
        return f"blk.{number}.{_NAMES[rest]}.{end}"
    return f"{_NAMES[stem]}.{end}"


def _add_tokenizer(writer: Any, tokenizer: Any, pre: str) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if token in special else 1 for token, _ in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
