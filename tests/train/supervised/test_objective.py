"""Supervised training of an objective that is no language model: the trainer knows nothing else of it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers import SilentLog
from line_objective import Line, line

from proxlm.checkpoint import checkpoints, load_checkpoint, newest_checkpoint
from proxlm.data.supervised import SFTExample
from proxlm.errors import RunError
from proxlm.train.supervised.examples import Examples


def test_a_line_is_learnt_and_the_best_one_is_kept(tmp_path):
    made, log = line(tmp_path), SilentLog()
    made.train(log)
    validated = [row for row in log.rows if "validation_loss" in row]
    assert [row["step"] for row in validated] == list(range(5, 61, 5))
    assert validated[-1]["slope"] == pytest.approx(2.0, abs=0.1)
    best = min(validated, key=lambda row: row["validation_loss"])
    assert (made.state.best_step, made.state.best_value) == (best["step"], best["validation_loss"])
    kept = torch.load(tmp_path / "policy" / "line.pt")
    assert float(kept["weight"]) == best["slope"]


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "rmsprop", "adafactor", "muon", "lbfgs"])
def test_a_resumed_line_is_the_line(tmp_path, optimiser):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = line(tmp_path / "whole", optimiser=optimiser)
    whole.train(SilentLog())
    first, log = line(tmp_path / "parts", optimiser=optimiser), SilentLog()
    for _ in range(13):
        first.step(log)
    first.save()
    second = line(tmp_path / "parts", optimiser=optimiser)
    second.resume()
    second.train(SilentLog())
    for (_, one), (_, two) in zip(whole.objective.trainable(), second.objective.trainable(), strict=True):
        assert torch.equal(one, two)
    assert second.state.best_value == whole.state.best_value


def test_the_end_of_patience_leaves_a_checkpoint_of_the_last_step(tmp_path):
    made, log = line(tmp_path, patience=2, lr=0.0), SilentLog()
    made.train(log)
    assert made.state.step == 15
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000015"]
    assert load_checkpoint(newest_checkpoint(tmp_path))[1]["without_better"] == 2


def test_other_rows_are_refused(tmp_path):
    line(tmp_path, steps=5).train(SilentLog())
    with pytest.raises(RunError, match="made with 8 training rows, not 9"):
        line(tmp_path, Line(rows=9)).resume()


def test_rows_with_a_gradient_that_is_not_finite_are_described(tmp_path):
    objective = Line()
    objective.x[3] = math.nan
    made = line(tmp_path, objective, steps=20, max_skipped_updates=1)
    with pytest.raises(RunError, match="no update in the last 1 steps"):
        made.train(SilentLog())
    (file,) = tmp_path.glob("non-finite-step-*.jsonl")
    rows = [json.loads(text) for text in file.read_text().splitlines()]
    assert {"step": made.state.step, "row": 3, "x": None} in rows


def test_an_example_that_is_also_held_out_is_not_trained_on():
    def example(prompt, response):
        return SFTExample(prompt, response, (True,) * len(response))

    rows = [example((1, 2), (3,)), None, example((1,), (2, 3)), example((1, 2), (4,)), example((5,), (6,))]
    every = Examples.from_rows(rows)
    # The same tokens with another prompt are another example, and so is another response to the same prompt.
    assert every.rows_without(Examples.from_rows([rows[0], rows[4]])) == [1, 2, 3]
    assert every.rows_without(Examples.from_rows([example((9,), (9,))])) == [0, 1, 2, 3, 4]
    assert every.rows_without(every.select([0, 2, 3, 4])) == [1]
