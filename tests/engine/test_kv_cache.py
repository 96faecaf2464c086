"""The cache of our own against transformers' own forward: every type, rows that come, go, move and go on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from block_types import CONFIGS, SIZES, model_of
from proxlm.config import RolloutSettings
from proxlm.engine.decoders import CachedDecoder, make_decoder
from proxlm.engine.kv_cache import SlotDecoder
from proxlm.engine.scheduler import Turn, Writer
from proxlm.kernels.block_layouts import has_layout
from proxlm.models.language_model import LanguageModel
from small_models import tiny_model

pytestmark = pytest.mark.checklist(32)

ROWS = [[1, 5, 9], [7], [3, 4, 8, 8, 2], [7], [6, 6]]


@torch.no_grad()
def alone(model: LanguageModel, row: list[int]) -> Tensor:
    """The state after a row, by transformers' forward of the whole."""
    return model.states(torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]


def expect(model: LanguageModel, states: Tensor, rows: list[list[int]], atol: float = 2e-5) -> None:
    torch.testing.assert_close(states, torch.stack([alone(model, row) for row in rows]), atol=atol, rtol=0)


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_every_state_is_that_of_the_whole_row_read_anew(name: str) -> None:
    model, rows = model_of(name), [list(row) for row in ROWS]
    assert isinstance(make_decoder(model), SlotDecoder)
    decoder = SlotDecoder(model)
    expect(model, decoder.add(rows, room=4), rows)
    for step in range(7):  # more than there was room for
        tokens = [(11 * step + 3 * i) % 320 for i in range(len(rows))]
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        expect(model, decoder.step(torch.tensor(tokens)), rows)
        if step == 1:  # the last row takes the place of the second
            decoder.keep(torch.tensor([0, 4, 2, 3]))
            rows = [rows[i] for i in (0, 4, 2, 3)]
        if step == 3:  # others join; two alike, longer than all before
            new = [[9] * 12, [9] * 12, [2]]
            expect(model, decoder.add(new, room=8), new)
            rows += new


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_a_row_that_was_dropped_goes_on_from_what_is_remembered(name: str) -> None:
    model, decoder = model_of(name), SlotDecoder(model_of(name))
    decoder.add([[1, 2, 3, 4, 5, 6], [8, 9]], room=8)
    decoder.step(torch.tensor([7, 10]))
    memory = decoder.remember(0)
    assert memory.length == 7
    decoder.keep(torch.tensor([1]))
    read: list[int] = []
    network = decoder.model.trunk.embed_tokens if name == "llama" else decoder.model.trunk.wte
    network.register_forward_hook(lambda module, given, out: read.append(given[0].numel()))
    rows = [[1, 2, 3, 4, 5, 6, 7, 20, 21], [30, 31, 32]]
    expect(model, decoder.add(rows, room=2, memories=[memory, None]), rows)
    assert read == [6]  # two rows of at most three new tokens
    expect(model, decoder.step(torch.tensor([1, 2, 3])), [[8, 9, 10, 1], [*rows[0], 2], [*rows[1], 3]])


@torch.no_grad()
def test_rows_alike_are_read_once() -> None:
    decoder, read = SlotDecoder(model_of("llama")), list[int]()
    decoder.model.trunk.embed_tokens.register_forward_hook(
        lambda module, given, out: read.append(len(given[0]))
    )
    decoder.add([[1, 2, 3]] * 8 + [[4, 5, 6]] * 8, room=4)
    assert read == [2]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_bf16_is_as_near_as_transformers_in_bf16(name: str) -> None:
    model = model_of(name, bfloat16=True)
    full = model_of(name)
    decoder, rows = SlotDecoder(model), [[1, 5, 9, 4, 4, 8, 2, 17], [7, 8]]
    states = [decoder.add(rows, room=4), decoder.step(torch.tensor([3, 4]))]
    assert decoder.cache is not None
    assert decoder.cache[0].dtype == torch.bfloat16
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


def written(model: LanguageModel, batch: int, late: int) -> list[tuple[list[int], list[float]]]:
    """Eleven turns with their own numbers; those from `late` on are added while others write."""
    generator = torch.Generator().manual_seed(5)
    contexts = [[1 + i, *range(2, 2 + i % 4)] for i in range(11)]
    turns = [Turn(c, torch.rand(12, generator=generator).double(), 3 + i) for i, c in enumerate(contexts)]
    writer = Writer(model, RolloutSettings(max_new_tokens=13, batch_size=batch, temperature=1.5))
    writer.add(turns[:late])
    for _ in range(2):
        writer.step()
    writer.add(turns[late:])
    while writer:
        assert len(writer.live) <= batch
        writer.step()
    return [(turn.tokens, turn.logprobs) for turn in turns]


def test_when_a_turn_joins_does_not_change_what_it_says(tokenizer) -> None:
    model = tiny_model(tokenizer)
    alone = written(model, batch=1, late=11)
    for batch, late in ((64, 11), (4, 11), (4, 5), (64, 5), (3, 1)):
        together = written(model, batch, late)
        assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]
        for (_, ours), (_, theirs) in zip(together, alone, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_place_is_taken_as_soon_as_it_is_free(tokenizer) -> None:
    """Sixteen turns of unlike lengths in four places: hardly more steps than tokens / places."""
    model = tiny_model(copy.deepcopy(tokenizer))
    model.network.generation_config.eos_token_id = model.tokenizer.eos_token_id = None  # nothing ends early
    turns = [Turn([1, 2], torch.full((32,), 0.5).double(), 4 if i % 4 else 28) for i in range(16)]
    writer, steps = Writer(model, RolloutSettings(max_new_tokens=28, batch_size=4, temperature=1.0)), 0
    writer.add(turns)
    while writer:
        writer.step()
        steps += 1
    assert sum(len(turn.tokens) for turn in turns) == 4 * 28 + 12 * 4
    assert steps <= 28 + 28  # in batches one after another it would be 4 · 28


@torch.no_grad()
def test_many_contexts_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass over more tokens than READ_TOKENS, padding included, and the same states."""
    model, seen = model_of("llama"), list[int]()
    rows = [[(7 * i + 3 * k) % 320 for k in range(1 + 5 * i % 17)] for i in range(12)]
    whole = SlotDecoder(model).add(rows, room=2)
    monkeypatch.setattr("proxlm.engine.kv_cache.READ_TOKENS", 24)
    model.trunk.embed_tokens.register_forward_hook(lambda m, given, out: seen.append(given[0].numel()))
    decoder = SlotDecoder(model)
    torch.testing.assert_close(decoder.add(rows, room=2), whole, atol=2e-5, rtol=0)
    assert max(seen) <= 24
    assert len(seen) > 4
    expect(model, decoder.step(torch.arange(12)), [[*row, i] for i, row in enumerate(rows)])
