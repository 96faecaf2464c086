"""The plan's operations against torch's own count, and what they take."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from proxlm.models.forward import head_backward, head_logprobs, response_states
from proxlm.planning.cost import Cost, exchange_cost, generate_cost, head_flops, phases_of, trunk_flops
from proxlm.planning.machine import GPUS, Machine
from proxlm.planning.memory import Share
from proxlm.planning.shape import shape_of
from proxlm.planning.split import split_of, splits
from proxlm.planning.work import Work
from proxlm.types import Sequences
from small_models import tiny_model

CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
ROWS, PROMPT, RESPONSE = 6, 12, 20


def counted(run: Any) -> tuple[float, float]:
    """Operations of matrix products, and of attention as products, of which torch then counts the whole square."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    found = counter.get_flop_counts()["Global"]
    attention = sum(count for op, count in found.items() if "bmm" in str(op))
    return sum(found.values()) - attention, attention


def test_a_pass_there_and_back_has_the_operations_that_torch_counts(tokenizer):
    sizes = shape_of(CONFIG, "tiny")
    model = replace(tiny_model(tokenizer), network=LlamaForCausalLM(CONFIG).eval())
    batch = Sequences.from_lists([[5] * PROMPT] * ROWS, [[7] * RESPONSE] * ROWS)
    length = PROMPT + RESPONSE
    attention = 2.0 * sizes.layers * sizes.queries * ROWS * length * (length + 1)
    products = trunk_flops(sizes, ROWS, PROMPT, RESPONSE) - attention
    head = head_flops(sizes, ROWS * RESPONSE)

    def forward() -> None:
        with torch.no_grad():
            states, _ = response_states(model, batch)
            head_logprobs(model, states, batch.response_tokens, 1.0, entropy=True)

    def both() -> None:
        states, _ = response_states(model, batch)
        gradient = head_backward(
            model,
            states,
            batch.response_tokens,
            1.0,
            entropy=False,
            loss=lambda _s, logprobs, _e: logprobs.sum(),
        )
        states.backward(gradient)

    found, _ = counted(forward)
    assert products + head == pytest.approx(found, rel=0.02)
    found, _ = counted(both)
    # torch does not count a product that is added in place, as the gradient of the head's matrix is.
    assert 3 * products + 2 * head == pytest.approx(found, rel=0.02)


def test_attention_is_half_of_the_square_that_torch_counts(tokenizer):
    sizes, length = shape_of(CONFIG, "tiny"), 32
    network = LlamaForCausalLM(CONFIG).eval()
    _, square = counted(lambda: network(torch.full((2, length), 5), use_cache=False))
    own = trunk_flops(sizes, 2, length, 0, own=False) - 2.0 * sizes.layers * sizes.matrix * 2 * length
    assert own == pytest.approx(square / 2, rel=0.05)


@pytest.mark.parametrize("field", ["prompt", "response", "responses", "epochs", "minibatches", "rank"])
def test_costs_grow_with_the_work(field):
    sizes = shape_of(CONFIG, "tiny")
    work = Work(sizes, sizes, prompt=16, response=8.0, limit=64, responses=16, prompts=16, epochs=2, rank=2)
    found = [
        sum(
            (cost for cost in phases_of(replace(work, **{field: getattr(work, field) * times})).values()),
            Cost(),
        )
        for times in (1, 2, 4)
    ]
    for less, more in pairwise(found):
        assert less.flops <= more.flops
        assert less.moved < more.moved


def test_a_shared_critic_and_adapters_cost_less():
    sizes = shape_of(CONFIG, "tiny")
    separate = Work(sizes, sizes)
    update = {
        "separate": phases_of(separate)["update"].flops,
        "shared": phases_of(replace(separate, critic="shared"))["update"].flops,
        "adapters": phases_of(replace(separate, rank=2))["update"].flops,
    }
    assert update["shared"] < update["adapters"] < update["separate"]
    # 4 epochs of the policy, and 3 of the critic, whose first is taken while values are read, without an output head.
    forward = trunk_flops(sizes, 64, 256, 64)
    assert update["separate"] == pytest.approx(3 * (4 * (forward + head_flops(sizes, 64 * 64)) + 3 * forward))


def test_ranks_divide_the_work_and_graphs_the_calls():
    sizes = shape_of(CONFIG, "tiny")
    work = Work(sizes, sizes, pass_tokens=320)
    one, four = phases_of(work)["update"], phases_of(work, Share(4))["update"]
    assert one.flops == pytest.approx(4 * four.flops)
    assert generate_cost(work, 1, graphs=True).calls < generate_cost(work, 1).calls / 10


def test_seconds_follow_the_rates():
    machine = Machine(flops=10.0, low_flops=40.0, bandwidth=5.0, call=0.5, link=4.0, exchange=0.25)
    cost = Cost(flops=20.0, moved=10.0, calls=4.0)
    assert machine.seconds(cost) == 2 + 2 + 2
    assert machine.seconds(cost + Cost(sent=12.0, exchanges=8.0) * 2) == 6 + (3 + 2) * 2
    assert machine.seconds(cost, bfloat16=True) == 0.5 + 2 + 2
    assert machine.reaching(0.5, 0.25).seconds(Cost(20.0, 10.0)) == 4 + 8


def test_ways_that_fit_come_first_and_the_fastest_of_them():
    sizes = shape_of(CONFIG, "tiny")
    work = Work(sizes, sizes)
    found = splits(work, 8, 2**33, GPUS["h100"])
    assert all(way.trainers + way.servers == 8 and way.fits for way in found)
    assert [way.step for way in found] == sorted(way.step for way in found)
    assert {(way.strategy, way.servers) for way in found} >= {
        ("ddp", 0),
        ("fsdp", 0),
        ("ddp", 2),
        ("fsdp", 4),
    }
    small = splits(work, 8, 2**10, GPUS["h100"])
    assert not any(way.fits for way in small)
    assert small[0].fullest == min(way.fullest for way in small)


def test_responses_ahead_hide_the_shorter_side_and_hold_a_policy_more():
    sizes = shape_of(CONFIG, "tiny")
    work = Work(sizes, sizes)
    turns, beside = (split_of(replace(work, ahead=n), "ddp", 2, 2, 2**40, GPUS["h100"]) for n in (0, 2))
    writing = turns.seconds["generate"] + turns.seconds["weights to servers"]
    assert beside.step == pytest.approx(max(writing, turns.step - writing))
    assert beside.memory.kept["older policies"] == 2 * 4 * sizes.parameters
    assert "older policies" not in turns.memory.kept


def test_what_ranks_exchange():
    """ddp: a ring gives and takes each gradient nearly twice; one process exchanges nothing."""
    sizes = shape_of(CONFIG, "tiny")
    work = Work(sizes, sizes, epochs=1, minibatches=2)
    assert exchange_cost(work, Share(4)).sent == 2 * 0.75 * 4 * (work.of_policy + work.of_critic) * 2
    sharded = Share(4, sharded=True)
    found = exchange_cost(work, sharded)
    # Of both passes of two networks: weights there, back and without gradients, half as large in bf16; gradients.
    assert found.sent - 0.75 * 4 * work.of_policy == 2 * 0.75 * sizes.blocks * (4 + 4 + 4 + 4) * 2
    # Each of these is a collective of each block; the copy's are of each of a block's seven matrices.
    assert found.exchanges == 2 * 2 * sizes.layers * 4 + 7 * sizes.layers
    low = exchange_cost(replace(work, bfloat16=True), sharded)
    assert low.sent - 0.75 * 4 * work.of_policy == 2 * 0.75 * sizes.blocks * (2 + 2 + 2 + 4) * 2
    texts = exchange_cost(replace(work, job="texts", critic="none"), sharded)
    assert (texts.sent, texts.exchanges) == (2 * 0.75 * sizes.blocks * (4 + 4 + 4), 2 * sizes.layers * 3)
    assert exchange_cost(work, Share()) == Cost()
    assert "exchange" not in split_of(work, "ddp", 1, 0, 2**30, GPUS["h100"]).seconds


def test_texts_are_learnt_by_all_gpus_and_written_by_none():
    sizes = shape_of(CONFIG, "tiny")
    work = Work(sizes, sizes, job="texts", critic="none")
    found = splits(work, 4, 2**33, GPUS["h100"])
    assert {(way.strategy, way.trainers, way.servers) for way in found} == {("ddp", 4, 0), ("fsdp", 4, 0)}
    assert all(set(way.seconds) == {"update", "exchange"} for way in found)
    kept = {way.strategy: way.memory.kept for way in found}
    assert kept["fsdp"]["whole copy"] == 4 * sizes.parameters  # on rank 0, to be saved
    assert kept["fsdp"]["policy"] < kept["ddp"]["policy"]
