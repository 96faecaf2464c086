"""Out of memory in a pass: the minibatch again with smaller passes, and the same gradient."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from small_runs import SFT, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.engine.agreement import check_engine
from proxlm.errors import RunError
from proxlm.models import forward
from proxlm.train.common.memory import TokenBudget, is_out_of_memory, within_memory
from proxlm.train.ppo import update

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS)
def test_which_errors_are_want_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x")])
def test_which_are_not(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        within_memory(TokenBudget(8), lambda tokens: (_ for _ in ()).throw(error), torch.tensor([4, 4]))


class SmallMemory:
    """Stands for `response_states` on a device that holds `rows` sequences at once."""

    def __init__(self, rows):
        self.rows, self.real, self.failed, self.seen = rows, forward.response_states, 0, []

    def __call__(self, model, sequences, trunk=None):
        self.seen.append(len(sequences))
        if len(sequences) > self.rows:
            self.failed += 1
            raise torch.OutOfMemoryError("out of memory, says the test")
        return self.real(model, sequences, trunk)


def patched(monkeypatch, rows):
    memory = SmallMemory(rows)
    for module in (forward, update):
        monkeypatch.setattr(module, "response_states", memory)
    return memory


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_step_in_smaller_passes_learns_the_same(tokenizer, tmp_path, monkeypatch, caplog, critic):
    config = job(critic, steps=2, batch_size=12, minibatches=1, epochs=2, micro_batch_tokens=2000)
    whole = trainer(tokenizer, config, tmp_path / "whole")
    first = whole.step(SilentLog())
    memory = patched(monkeypatch, rows=4)
    small = trainer(tokenizer, config, tmp_path / "small")
    with caplog.at_level(logging.WARNING):
        row = small.step(SilentLog())
    assert memory.failed >= 1
    assert caplog.messages[0].startswith(
        "out of memory (out of memory, says the test): continuing with at most "
    )
    one, two = parameters(whole), parameters(small)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert row["reward"] == first["reward"]
    # The plan of the update is that of the passes before it, so the first ratio is still exactly 1.
    assert row["first_minibatch/ratio_error"] == 0.0
    passes = len(memory.seen)
    small.step(SilentLog())
    assert max(memory.seen[passes:]) < 12  # the budget has stayed where it fell to
    assert small.state.lowered_budget == small.budget.tokens < 2000


def test_memory_that_fails_within_an_update_takes_back_what_the_minibatch_has_done(
    tokenizer, tmp_path, monkeypatch
):
    config = job("separate", steps=1, batch_size=12, minibatches=2, epochs=1, micro_batch_tokens=100)
    whole = trainer(tokenizer, config, tmp_path / "whole")
    whole.step(SilentLog())
    made = trainer(tokenizer, config, tmp_path / "made")
    real, calls = update.response_states, []

    def fails_once(model, sequences, trunk=None):
        calls.append(len(sequences))
        if len(calls) == 3:  # after two micro-batches' gradients have been added up
            raise torch.OutOfMemoryError("full")
        return real(model, sequences, trunk)

    monkeypatch.setattr(update, "response_states", fails_once)
    made.step(SilentLog())
    one, two = parameters(whole), parameters(made)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert made.budget.tokens < 100


def test_a_resumed_run_keeps_the_smaller_passes(tokenizer, tmp_path, monkeypatch):
    config = job("shared", steps=2, minibatches=1, micro_batch_tokens=2000)
    patched(monkeypatch, rows=4)
    made = trainer(tokenizer, config, tmp_path)
    made.step(SilentLog())
    made.save()
    again = trainer(tokenizer, config, tmp_path)
    again.resume()
    assert again.budget.tokens == made.budget.tokens < 2000


def test_where_one_sequence_is_too_much_the_run_ends_with_what_to_do(tokenizer, tmp_path, monkeypatch):
    made = trainer(tokenizer, job("shared"), tmp_path)
    check_engine(made.models.policy)
    patched(monkeypatch, rows=0)
    with pytest.raises(RunError, match=r"out of memory with one sequence of up to \d+ tokens .* shorten"):
        made.step(SilentLog())


def test_fine_tuning_goes_on_in_smaller_passes(tiny_place, capsys, monkeypatch):  # noqa: F811
    memory = SmallMemory(4)
    for module in (forward, update):
        monkeypatch.setattr(module, "response_states", memory)
    assert main([*SFT, "--train.batch-tokens", "100"]) == 0
    assert memory.failed >= 1
    assert max(n for n in memory.seen[-4:]) <= 4
    rows = (tiny_place / "sft-run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
