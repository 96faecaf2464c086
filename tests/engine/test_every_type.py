"""Every causal model type of transformers, small: generated, trained and transformers' own log-probs are the same.

Or the type is refused when it is loaded, in one line that says what differed.
"""

from __future__ import annotations

import pytest
import torch

from causal_types import AGREE, NOT_CAUSAL, REFUSED, loaded
from proxlm.config import RolloutSettings
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import BlockDecoder, CachedDecoder, RecomputeDecoder, make_decoder
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import ModelError
from proxlm.models.forward import token_outputs
from proxlm.types import Prompt

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
