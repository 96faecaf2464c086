"""Tiny networks with random weights, of many of transformers' model types."""

from __future__ import annotations

from typing import Any

import torch

CAUSAL_TYPES = [
    "arcee", "biogpt", "bitnet", "bloom", "cohere", "cohere2", "cwm", "diffllama", "doge", "ernie4_5", "exaone4",
    "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox",
    "gpt_neox_japanese", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "internlm3", "jais2", "jamba", "jetmoe", "lfm2", "llama", "mamba", "minimax", "ministral", "mistral", "mixtral",
    "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3",
    "phimoe", "qwen2", "qwen3", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
]  # fmt: skip
TWO_SIDED_TYPES = ["t5", "mt5", "longt5"]


def tiny_network(model_type: str, tokenizer: Any, std: float = 0.3, **fields: Any) -> Any:
    """A network of the type, of width 32 and two blocks, with matrices so large that every part of it matters."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    plain = AutoConfig.for_model(model_type)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    known = {name: value for name, value in sizes.items() if hasattr(plain, name)}
    config = AutoConfig.for_model(model_type, **known, **fields)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    network = kind.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * std)
            else:  # biases begin as zeros, and scales as ones, which a loss of them would not change
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return network


@torch.no_grad()
def logits_of(network: Any, tokens: list[int]) -> torch.Tensor:
    """[T, V] float32; an encoder–decoder reads the tokens on one side and their reverse on the other."""
    ids = torch.tensor([tokens])
    sides = {"decoder_input_ids": ids.flip(-1)} if network.config.is_encoder_decoder else {}
    found: torch.Tensor = network(input_ids=ids, use_cache=False, **sides).logits[0].float()
    return found
