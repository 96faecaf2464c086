"""What the tables of the benchmarks are worked out from: needed products, and when a target is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROMPT, RESPONSE, BATCH, RANK = 5, 7, 3, 4


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def counted_products(work: Any, rank: int) -> int:
    """Operations of the matrix products of one pass there and back through a Llama, as torch counts them.

    The head sees the response's tokens alone; attention's products are not counted.
    """
    from peft import LoraConfig, get_peft_model
    from torch import randint
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    network: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=work.vocabulary,
            hidden_size=work.hidden,
            intermediate_size=work.intermediate,
            num_hidden_layers=work.layers,
            num_attention_heads=work.heads,
            num_key_value_heads=work.groups,
        )
    )
    trunk, head = network.model, network.lm_head
    if rank:
        get_peft_model(network, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = randint(work.vocabulary, (work.batch, work.prompt + work.response))
    with FlopCounterMode(display=False) as counter:
        states = trunk(ids).last_hidden_state[:, work.prompt :]
        head(states.reshape(-1, work.hidden)).pow(2).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("rank", [0, RANK])
def test_needed_products_are_those_that_torch_counts(rank: int) -> None:
    from against_trl import Setting, needed_flops
    from step_models import Work

    work = Work(128, 2, 50, PROMPT, RESPONSE, BATCH, BATCH, epochs=1, intermediate=192, groups=1)
    needed = needed_flops(work, Setting("shared", rank=rank))
    # With adapters nothing learns before the first block: torch takes no gradient to the inputs of its query, key and
    # value matrices [128, 128 + 64 + 64], nor to those of the three adapters' first matrices.
    spared = 2 * BATCH * (PROMPT + RESPONSE) * (128 * 256 + 3 * 128 * RANK) if rank else 0
    assert counted_products(work, rank) == needed - spared


def test_blocks_below_those_that_learn_are_not_needed() -> None:
    from against_trl import Setting, needed_flops
    from step_models import Work

    deep, shallow = (
        Work(128, layers, 50, PROMPT, RESPONSE, BATCH, BATCH, epochs=2, intermediate=192) for layers in (5, 2)
    )
    assert needed_flops(deep, Setting("adapter", rank=RANK, top=2)) == needed_flops(
        shallow, Setting("adapter", rank=RANK)
    )


def test_the_first_step_of_several_is_left_out() -> None:
    from against_trl import medians

    def run(*seconds: float) -> dict[str, Any]:
        return {
            "seconds": {"step": list(seconds)},
            "peak_mb": {"update": 3.0, "score": 2.0},
            "baseline_mb": 1.0,
        }

    assert medians([run(9, 1, 2), run(9, 3, 4)]) == {"step": 2.5, "peak_mb": 3.0, "loaded_mb": 1.0}
    assert medians([run(7)])["step"] == 7


def test_a_critic_adds_what_of_it_learns() -> None:
    from against_trl import Setting, needed_flops
    from step_models import Work

    work = Work()
    none = needed_flops(work, Setting("shared", rank=8))
    adapters = needed_flops(work, Setting(rank=8)) - none
    everything = needed_flops(work, Setting(rank=8, full_critic=True)) - none
    assert needed_flops(work, Setting("adapter", rank=8)) - none == adapters
    assert everything == needed_flops(work, Setting()) - needed_flops(work, Setting("shared"))
    # Two thirds of it, and the adapters' own.
    assert 2 / 3 < adapters / everything < 3 / 4


POINTS = [[10.0, 0.0, 0.0], [20.0, 0.9, 0.0], [30.0, 0.3, 0.0], [40.0, 0.6, 0.0], [50.0, 0.3, 0.0]]


@pytest.mark.parametrize(
    ("target", "found"),
    # The means of three: 0.4 after step 3, 0.6 after step 4, 0.4 after step 5; a single step's 0.9 does not count.
    [(0.39, (3, 30.0)), (0.5, (4, 40.0)), (0.7, None)],
)
def test_a_target_is_reached_by_the_mean_of_three_steps(target: float, found: Any) -> None:
    from reward_task import when_reached

    assert when_reached(POINTS, target) == found
    assert when_reached(POINTS[:2], target) is None


def test_a_target_that_a_seed_does_not_reach_has_no_ratio() -> None:
    from time_to_reward import table

    fast, never = {"curve": POINTS}, {"curve": POINTS[:3]}
    runs = {"proxlm": {"0": fast, "1": fast}, "TRL 1.12.0": {"0": fast, "1": never}}
    rows = table({"targets": [0.5], "runs": runs}).splitlines()[2:]
    assert rows == [
        "| 0.5 | proxlm | 4, 4 | 40.0, 40.0 | 40.0 | – | 10.00 |",
        "| 0.5 | TRL 1.12.0 | 4, – | 40.0, not reached | – | – | 10.00 |",
    ]
