"""Our blocks and KV cache against transformers' own forward: every type, rows that join, leave, move and continue."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from block_types import CONFIGS, SIZES, model_of
from proxlm.engine.block_decoder import BlockDecoder
from proxlm.engine.decoders import CachedDecoder, make_decoder
from proxlm.kernels.block_layouts import has_layout
from proxlm.models.language_model import LanguageModel

pytestmark = pytest.mark.checklist(32)

ROWS = [[1, 5, 9], [7], [3, 4, 8, 8, 2], [7], [6, 6]]


@torch.no_grad()
def alone(model: LanguageModel, row: list[int]) -> Tensor:
    """The state after a row, by transformers' forward of the whole."""
    return model.states(torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]


def read(decoder: BlockDecoder, rows: list[list[int]], room: int) -> Tensor:
    """Add rows of which nothing is cached."""
    return decoder.add(rows, room, [None] * len(rows))


def expect(model: LanguageModel, states: Tensor, rows: list[list[int]], atol: float = 2e-5) -> None:
    torch.testing.assert_close(states, torch.stack([alone(model, row) for row in rows]), atol=atol, rtol=0)


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_every_state_is_that_of_the_whole_row_read_again(name: str) -> None:
    model, rows = model_of(name), [list(row) for row in ROWS]
    assert isinstance(make_decoder(model), BlockDecoder)
    decoder = BlockDecoder(model)
    expect(model, read(decoder, rows, 4), rows)
    for step in range(7):  # more than there was room for
        tokens = [(11 * step + 3 * i) % 320 for i in range(len(rows))]
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        expect(model, decoder.step(torch.tensor(tokens)), rows)
        if step == 1:  # the last row takes the place of the second
            decoder.keep(torch.tensor([0, 4, 2, 3]))
            rows = [rows[i] for i in (0, 4, 2, 3)]
        if step == 3:  # others join; two alike, longer than all before
            new = [[9] * 12, [9] * 12, [2]]
            expect(model, read(decoder, new, 8), new)
            rows += new


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_a_dropped_row_continues_from_its_cached_prefix(name: str) -> None:
    model, decoder = model_of(name), BlockDecoder(model_of(name))
    read(decoder, [[1, 2, 3, 4, 5, 6], [8, 9]], 8)
    decoder.step(torch.tensor([7, 10]))
    prefix = decoder.snapshot(0, length=7)
    assert prefix.length == 7
    decoder.keep(torch.tensor([1]))
    seen: list[int] = []
    network = decoder.model.trunk.embed_tokens if name == "llama" else decoder.model.trunk.wte
    network.register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
    rows = [[1, 2, 3, 4, 5, 6, 7, 20, 21], [30, 31, 32]]
    expect(model, decoder.add(rows, room=2, prefixes=[prefix, None]), rows)
    assert seen == [6]  # two rows of at most three new tokens
    expect(model, decoder.step(torch.tensor([1, 2, 3])), [[8, 9, 10, 1], [*rows[0], 2], [*rows[1], 3]])


@torch.no_grad()
def test_rows_alike_are_read_once() -> None:
    decoder, seen = BlockDecoder(model_of("llama")), list[int]()
    decoder.model.trunk.embed_tokens.register_forward_hook(
        lambda module, given, out: seen.append(len(given[0]))
    )
    read(decoder, [[1, 2, 3]] * 8 + [[4, 5, 6]] * 8, 4)
    assert seen == [2]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_bf16_is_as_near_as_transformers_in_bf16(name: str) -> None:
    model = model_of(name, bfloat16=True)
    full = model_of(name)
    decoder, rows = BlockDecoder(model), [[1, 5, 9, 4, 4, 8, 2, 17], [7, 8]]
    states = [read(decoder, rows, 4), decoder.step(torch.tensor([3, 4]))]
    assert decoder.cache.dtype == torch.bfloat16
    for state, now in zip(states, (rows, [[*rows[0], 3], [*rows[1], 4]]), strict=True):
        exact = torch.stack([alone(full, row) for row in now])
        theirs = torch.stack([alone(model, row) for row in now])
        limit = 3 * float((theirs - exact).abs().max())
        assert float((state - exact).abs().max()) < limit < 0.3


def test_types_that_look_back_through_a_window_go_through_transformers() -> None:
    window = MistralConfig(**SIZES, sliding_window=4)
    model = LanguageModel(AutoModelForCausalLM.from_config(window), None, torch.device("cpu"))
    assert not has_layout(model.network.config)
    assert isinstance(make_decoder(model), CachedDecoder)
    dynamic = LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert not has_layout(dynamic)


@torch.no_grad()
def test_many_contexts_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass over more tokens than PREFILL_TOKENS, padding included, and the same states."""
    model, seen = model_of("llama"), list[int]()
    rows = [[(7 * i + 3 * k) % 320 for k in range(1 + 5 * i % 17)] for i in range(12)]
    whole = read(BlockDecoder(model), rows, 2)
    monkeypatch.setattr("proxlm.engine.prefill.PREFILL_TOKENS", 24)
    model.trunk.embed_tokens.register_forward_hook(lambda m, given, out: seen.append(given[0].numel()))
    decoder = BlockDecoder(model)
    torch.testing.assert_close(read(decoder, rows, 2), whole, atol=2e-5, rtol=0)
    assert max(seen) <= 24
    assert len(seen) > 4
    expect(model, decoder.step(torch.arange(12)), [[*row, i] for i, row in enumerate(rows)])
