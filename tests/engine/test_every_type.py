"""Every causal model type of transformers, small: generated, trained and transformers' own log-probs are the same.

Or the type is refused when it is loaded, in one line that says what differed.
"""

from __future__ import annotations

import pytest
import torch

from causal_types import loaded
from proxlm.config import RolloutSettings
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import BlockDecoder, CachedDecoder, RecomputeDecoder, make_decoder
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import ModelError
from proxlm.models.forward import token_outputs
from proxlm.types import Prompt

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
BOTH_WAYS = [
    ("bert-generation", {"is_decoder": False}),
    ("gemma3_text", {"use_bidirectional_attention": True}),
]


def test_there_are_enough_of_them() -> None:
    assert len(set(AGREE)) == len(AGREE) >= 130


@pytest.mark.checklist(32)
@pytest.mark.parametrize("model_type", AGREE)
def test_engine_training_pass_and_transformers_agree(tokenizer, model_type) -> None:
    """Greedy responses are those of each row alone, and so are log-probs: a row of 23 tokens beside one of one."""
    model = loaded(tokenizer, model_type)
    settings = RolloutSettings(max_new_tokens=6, temperature=0.0)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 320, (n,), generator=generator).tolist() for n in (23, 1, 9, 2)]
    prompts = [Prompt(i, tuple(row), "") for i, row in enumerate(rows)]
    rollout = generate(NativeEngine(model, settings), prompts, settings, seed=0, step=0)
    sequences, found = rollout.sequences, rollout.logprobs
    own = []
    with torch.no_grad():
        trained = token_outputs(model, sequences).logprobs
        for text, length, response in zip(
            sequences.tokens.split(sequences.lengths.tolist()),
            sequences.prompt_lengths.tolist(),
            sequences.response_tokens.split(sequences.response_lengths.tolist()),
            strict=True,
        ):
            logits = model.network(input_ids=text[None], use_cache=False).logits[0, length - 1 : -1].float()
            assert response.tolist() == logits.argmax(-1).tolist()
            own.append(logits.log_softmax(-1).gather(-1, response[:, None])[:, 0])
    assert torch.allclose(trained, found, atol=1e-3, rtol=0)
    assert torch.allclose(torch.cat(own), found, atol=1e-3, rtol=0)


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_does_not_agree_is_refused_in_a_line(tokenizer, model_type) -> None:
    with pytest.raises(
        ModelError, match=f"^{model_type}: .*model type {model_type} .*{REFUSED[model_type]}"
    ) as caught:
        check_engine(loaded(tokenizer, model_type))
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(("model_type", "settings"), BOTH_WAYS)
def test_a_model_that_looks_both_ways_is_refused(tokenizer, model_type, settings) -> None:
    with pytest.raises(ModelError, match=NOT_CAUSAL):
        loaded(tokenizer, model_type, **settings)


@pytest.mark.parametrize(
    ("model_type", "kind", "cached"),
    [
        ("llama", BlockDecoder, True),
        ("olmo2", CachedDecoder, True),
        ("gemma3_text", CachedDecoder, True),
        ("mamba", RecomputeDecoder, True),
        ("deepseek_v4", RecomputeDecoder, True),  # a subclass of the sliding window's cache keeps more
        ("glm_moe_dsa", RecomputeDecoder, True),
        ("moshi", RecomputeDecoder, False),  # a plain cache, whose trunk takes no mask of the padding
    ],
)
def test_a_cache_is_used_where_it_is_one_that_is_known_and_agrees(
    tokenizer, model_type, kind, cached
) -> None:
    model = loaded(tokenizer, model_type)
    check_engine(model)
    assert type(make_decoder(model)) is kind
    assert model.cached == cached
