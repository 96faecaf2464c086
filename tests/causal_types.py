"""Every causal model type of transformers that can be built small from its configuration, random and sharp."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from proxlm.config import ModelSettings
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import wrap

# What these fields mean is the same in every type that has them; a type gets those it has.
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_layers": 2, "n_heads": 4,
    "ffn_dim": 48, "ffn_hidden_size": 48, "sliding_window": 8, "attention_window": 8, "window_size": 8,
    "embedding_size": 32, "is_decoder": True, "word_embed_proj_dim": 32,
    # mixtures of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16,
    # latent attention
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16,
    # recurrences
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 8, "mamba_d_ssm": 64, "mamba_num_heads": 4, "mamba_head_dim": 16, "state_size": 8,
    "ssm_state_size": 8, "num_heads": 4, "n_groups": 1, "chunk_size": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
SIDES = {
    "encoder_layers": 1, "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}  # fmt: skip
OWN_SIZES: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4},
    "deepseek_v4": {"o_groups": 1, "o_lora_rank": 16, "index_n_heads": 4, "index_head_dim": 8, "index_topk": 8},
    "exaone4": {"sliding_window_pattern": 2},
    "gemma4_text": {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "gptj": {"rotary_dim": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {
        "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attention_head_size": 8, "feed_forward_size": 48,
    },
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"), SIDES),
    **dict.fromkeys(("pegasus", "plbart", "whisper"), SIDES),
}  # fmt: skip


# Types that agree with transformers, and that are refused when they are loaded, with what is said.
AGREE = [
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "bamba", "bart", "beam",
    "bert-generation", "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blenderbot-small", "bloom",
    "codegen", "cohere", "cohere2", "cohere2_moe", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "deepseek_v4", "diffllama", "doge", "dots1", "dots3_note_text", "ernie4_5", "ernie4_5_moe", "exaone4",
    "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text",
    "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt-sw3",
    "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite",
    "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium", "hrm_text",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "internlm3", "iquestcoder", "jais2",
    "jamba", "jetmoe", "kolibri1", "laguna", "lfm2", "lfm3", "llama", "mamba", "mamba2", "marian", "mbart",
    "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral",
    "ministral3", "mistral", "mixtral", "moshi", "mpt", "mvp", "nanochat", "nemotron", "nemotron_h", "olmo",
    "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "pegasus", "persimmon", "phi", "phi3",
    "phimoe", "plbart", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
    "qwen3_next", "qwen4_exp_text", "reformer", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2", "trocr", "vaultgemma", "whisper", "xglm", "youtu", "zaya",
]  # fmt: skip
# What is said of a type: it looks both ways; its head is more than its output layer; it is something else.
NOT_CAUSAL, OTHER, CANNOT = (
    "is not causal: another token .* by [0-9.]+;",
    "differ by [0-9.]+ between",
    "cannot be run",
)
REFUSED = {
    "bert": OTHER, "big_bird": OTHER, "camembert": OTHER, "data2vec-text": OTHER, "electra": OTHER, "ernie": OTHER,
    "llama4_text": "cannot be run as a language model on token ids alone: AttributeError: .*last_hidden_state",
    "megatron-bert": OTHER, "modernbert-decoder": OTHER, "recurrent_gemma": OTHER, "rembert": CANNOT,
    "roberta": OTHER, "roberta-prelayernorm": OTHER, "roc_bert": OTHER, "roformer": OTHER, "xlm": NOT_CAUSAL,
    "xlm-roberta": OTHER, "xlm-roberta-xl": OTHER, "xlnet": NOT_CAUSAL, "xlstm": OTHER, "xmod": OTHER,
}  # fmt: skip


def small_config(model_type: str, **more: Any) -> Any:
    """The configuration of a small model of a type."""
    default = AutoConfig.for_model(model_type)
    known, names = default.to_dict(), getattr(default, "attribute_map", {})
    sizes = {**SIZES, **OWN_SIZES.get(model_type, {}), **more}
    if "qk_rope_head_dim" in known:  # latent attention has a key for each head, and widths of its own
        sizes = {**sizes, "num_key_value_heads": 4, "head_dim": None}
    fits = {key: x for key, x in sizes.items() if x is not None and (key in known or names.get(key) in known)}
    return type(default)(**{**fits, **more})


def sharp_network(config: Any, std: float = 0.4) -> Any:
    """A model with weights large enough that positions and attention matter, in evaluation mode."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.dim() >= 2 and "A_log" not in name and "conv" not in name:
                scale = std * min(1.0, (64 / p.shape[-1]) ** 0.5)
                p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return network


def loaded(tokenizer: Any, model_type: str, **more: Any) -> LanguageModel:
    """A small sharp model of a type as a LanguageModel, compared with transformers as any model that is loaded."""
    network = sharp_network(small_config(model_type, **more))
    return wrap(network, tokenizer, ModelSettings(policy=model_type, device="cpu"))
