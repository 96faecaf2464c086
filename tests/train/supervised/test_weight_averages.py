"""Averages of the weights: by hand and as torch's AveragedModel has them, kept where better, exact on resume."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import SilentLog
from line_objective import Line, line
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from proxlm.config import SupervisedSettings
from proxlm.distributed.ranks import ONE_PROCESS
from proxlm.train.supervised.averaging import WeightAverage


def test_the_uniform_mean_is_that_of_the_last_k_validations():
    p = nn.Parameter(torch.zeros(2))
    average = WeightAverage([("w", p)], SupervisedSettings(average="uniform", average_last=3))
    found = []
    for k in range(5):
        with torch.no_grad():
            p.fill_(float(k))
        average.after_step()  # of no meaning here
        average.at_validation()
        with average.in_place():
            found.append(p[0].item())
        assert p.tolist() == [k, k]
        assert average.differs == (k > 0)
    assert found == [0.0, 0.5, 1.0, 2.0, 3.0]


def test_the_exponential_mean_is_torchs():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    wanted = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average = WeightAverage(list(model.named_parameters()), SupervisedSettings(average="ema", ema_decay=0.9))
    for _ in range(7):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.after_step()
        wanted.update_parameters(model)
        with average.in_place():
            for p, q in zip(model.parameters(), wanted.module.parameters(), strict=True):
                assert torch.equal(p, q)


class Noisy(Line):
    """The line with labels of large noise, so that late weights jump around what they should be.

    fresh: the noise is new in every step; else it depends on the rows, as a resume needs it.
    """

    fresh = False

    def gradient(self, rows, micro_batch_tokens, ranks=ONE_PROCESS):
        self.calls = getattr(self, "calls", 0) + 1
        seed = self.calls if self.fresh else rows[0] + 7 * rows[-1]
        noise = torch.randn(len(rows), 1, generator=torch.Generator().manual_seed(seed))
        loss = (self.model(self.x[rows]) - (2 * self.x[rows] - 1) - 3 * noise).square().mean()
        loss.backward()
        return float(loss.detach()), len(rows)


@pytest.mark.parametrize("kind", ["uniform", "ema"])
@pytest.mark.parametrize("lr", [0.3, 0.03])
def test_the_better_of_the_two_is_kept_and_said(tmp_path, kind, lr):
    class Log(SilentLog):
        said = ()

        def note(self, text):
            self.said = (*self.said, text)

    objective = Noisy()
    objective.fresh = True
    more = {"ema_decay": 0.95} if kind == "ema" else {}
    made, log = line(tmp_path, objective, steps=100, lr=lr, train={"average": kind, **more}), Log()
    made.train(log)
    rows = [row for row in log.rows if "validation_loss" in row]
    pairs = [
        (row["validation_loss"], row.get("average/validation_loss", math.inf), row["step"]) for row in rows
    ]
    best = min(pairs, key=lambda pair: min(pair[:2]))
    assert made.state.best_step == best[2]
    assert made.state.best_value == min(best[:2])
    better = best[1] < best[0]
    assert made.state.best_average == better
    kept = torch.load(tmp_path / "policy" / "line.pt")
    row = next(row for row in rows if row["step"] == best[2])
    slope = row["average/slope" if better else "slope"]
    assert float(kept["weight"]) == pytest.approx(slope, abs=1e-7)
    assert f"policy/: the {'averaged' if better else 'plain'} weights of step {best[2]}" in log.said[-1]
    # A mean of weights that jump is nearer to where they should be than they are.
    late = [pair for pair in pairs if pair[2] > 50]
    if lr == 0.3:
        assert sum(a for _, a, _ in late) < 0.6 * sum(p for p, _, _ in late)


@pytest.mark.parametrize("kind", ["uniform", "ema"])
@pytest.mark.parametrize("stop", [3, 13, 41])
def test_a_resumed_run_has_the_same_average(tmp_path, kind, stop):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, log = line(tmp_path / "whole", Noisy(), train={"average": kind}), SilentLog()
    whole.train(log)
    first, before = line(tmp_path / "parts", Noisy(), train={"average": kind}), SilentLog()
    for _ in range(stop):
        before.metrics(0, first.step(before))
    first.save()
    second, after = line(tmp_path / "parts", Noisy(), train={"average": kind}), SilentLog()
    second.resume()
    second.train(after)
    found = [row.get("average/validation_loss") for row in [*before.rows, *after.rows]]
    assert found == [row.get("average/validation_loss") for row in log.rows]
    assert second.state.best_value == whole.state.best_value
    for one, two in zip(whole.average.tensors().items(), second.average.tensors().items(), strict=True):
        assert one[0] == two[0]
        assert torch.equal(one[1], two[1])


def test_without_an_average_nothing_is_measured_twice(tmp_path):
    made, log = line(tmp_path, steps=10), SilentLog()
    made.train(log)
    assert not any(name.startswith("average") for row in log.rows for name in row)
    assert made.average.tensors() == {}
