"""Steps repeated from a recording, as a CUDA graph repeats them, against the same steps run each time."""

from __future__ import annotations

import pytest
import torch
from recorded_pass import record
from torch import Tensor

from block_types import CONFIGS, model_of
from proxlm.config import RolloutWeights
from proxlm.engine.block_decoder import BlockDecoder
from proxlm.engine.static_steps import StaticSteps
from proxlm.errors import ModelError

ROWS = [[1, 5, 9], [7], [3, 4, 8, 8, 2], [7], [6, 6]]


def test_a_recording_repeats_operations_and_not_python() -> None:
    given, python = torch.tensor([1.0, 2.0]), [10.0]
    replay = record(lambda: given * 2 + python[0])
    given.fill_(5)
    python[0] = 99
    assert replay().tolist() == [20.0, 20.0]


@pytest.mark.parametrize("weights", ["policy", "int8"])
@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_repeated_steps_give_the_states_of_steps_run_one_by_one(name: str, weights: RolloutWeights) -> None:
    one_by_one = BlockDecoder(model_of(name), weights)
    repeated = BlockDecoder(model_of(name), weights, capture=record)
    both = (one_by_one, repeated)
    before = [decoder.add(ROWS, 4, [None] * 5) for decoder in both]
    torch.testing.assert_close(*before, atol=0, rtol=0)
    for step in range(9):
        number = len(one_by_one.cache)
        tokens = torch.tensor([(11 * step + 3 * i) % 320 for i in range(number)])
        torch.testing.assert_close(*(decoder.step(tokens) for decoder in both), atol=2e-6, rtol=0)
        if step == 1:  # fewer rows; the last takes the place of the second
            for decoder in both:
                decoder.keep(torch.tensor([0, 4, 2]))
        if step == 3:  # others join, longer than all before: the cache moves
            for decoder in both:
                decoder.add([[9] * 12, [9] * 12, [2]], 8, [None] * 3)
        if step == 6:
            for decoder in both:
                decoder.keep(torch.tensor([3]))


@torch.no_grad()
def test_each_power_of_two_is_recorded_once() -> None:
    recorded: list[int] = []

    def run(tokens: Tensor, positions: Tensor) -> Tensor:
        return torch.stack([tokens.float(), positions.float()], -1)

    def counted(run: object) -> object:
        replay = record(run)  # type: ignore[arg-type]
        recorded.append(len(replay()))
        return replay

    steps = StaticSteps(run, 6, torch.device("cpu"), counted)  # type: ignore[arg-type]
    for rows in (6, 5, 4, 3, 2, 1, 6, 3):
        tokens, positions = torch.arange(rows) + 10 * rows, torch.arange(rows)
        assert steps(tokens, positions).tolist() == [[10 * rows + i, i] for i in range(rows)]
    assert recorded == [6, 4, 2, 1]  # no more rows than there are slots


@torch.no_grad()
def test_a_repetition_that_gives_other_numbers_is_an_error() -> None:
    steps = StaticSteps(
        lambda tokens, positions: torch.stack([tokens, positions], -1).float(),
        4,
        torch.device("cpu"),
        lambda run: lambda: run() + 1,
    )
    with pytest.raises(
        ModelError, match=r"rollout.cuda_graphs: .* of 2 rows gives states that differ by 1; set"
    ):
        steps(torch.tensor([3, 4]), torch.tensor([0, 1]))
