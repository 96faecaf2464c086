"""The simulation of a cluster against closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def simulation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cluster_simulation

    return cluster_simulation


@pytest.mark.parametrize(("batch", "slots"), [(10, 4), (8, 8), (3, 8), (9, 1)])
def test_one_engine_writes_rows_of_one_length_in_waves(simulation, batch, slots):
    """Waves of as many rows as there are slots, a last one with the rest, and then the update."""
    cluster = simulation.Cluster(1, 1, batch=batch, slots=slots, spread=0.0, mean=100, train=3.0)
    rest = batch % slots
    waves = batch // slots * cluster.token(slots) + (cluster.token(rest) if rest else 0.0)
    assert simulation.simulate(cluster, "synchronous").seconds == pytest.approx(100 * waves + 3.0)


def test_a_row_that_ends_makes_the_others_faster(simulation):
    """Rows of 10 and of 30 tokens: 10 together, then 20 alone."""
    cluster = simulation.Cluster(1, 1, batch=2, slots=2)
    sim = simulation.Simulation(cluster, 1, seed=0)
    sim.lengths.draw = lambda _count: [10, 30]
    sim.ask(0)
    sim.write(0)
    assert sim.now == pytest.approx(10 * cluster.token(2) + 20 * cluster.token(1))


@pytest.mark.parametrize("train", [0.1, 30.0])
def test_one_step_ahead_takes_the_longer_of_both(simulation, train):
    cluster = simulation.Cluster(2, 1, batch=8, slots=8, spread=0.0, mean=100, train=train, refit=0.0)
    expected = max(train, 100 * cluster.token(8))
    assert simulation.simulate(cluster, "one step ahead").seconds == pytest.approx(expected)
    # With a pause for new weights while a batch is written, that takes longer by it.
    paused = replace(cluster, refit=0.5)
    found = simulation.simulate(paused, "one step ahead").seconds
    assert found == pytest.approx(train + 0.5 if train > 20 else expected + 0.5)


def test_without_staleness_writing_and_training_take_turns(simulation):
    cluster = simulation.Cluster(
        2, 1, batch=8, slots=8, spread=0.0, mean=100, train=3.0, refit=0.25, staleness=0
    )
    found = simulation.simulate(cluster, "bounded")
    assert found.seconds == pytest.approx(100 * cluster.token(8) + 3.0 + 0.25)
    assert found.staleness == [0] * 12


@pytest.mark.parametrize("train", [1.0, 60.0])
def test_with_much_staleness_the_slower_side_decides(simulation, train):
    """Engines that are never idle write slots / (τ(slots) · mean length) responses a second; trainers take batch in
    `train` seconds.
    """
    cluster = simulation.Cluster(
        2, 1, batch=64, slots=16, spread=0.8, mean=100, limit=10**6, train=train, refit=0.0, staleness=8
    )
    found = simulation.simulate(cluster, "bounded", updates=60, warmup=20)
    mean = sum(simulation.Lengths(cluster, 5).draw(100_000)) / 100_000
    writing = 64 * mean * cluster.token(16) / 16
    assert found.seconds == pytest.approx(max(writing, train), rel=0.06)
    assert max(found.staleness) <= 8


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_staleness_stays_within_its_bound(simulation, staleness):
    cluster = simulation.Cluster(8, 4, batch=32, mean=200, train=5.0, staleness=staleness)
    assert max(simulation.simulate(cluster, "bounded").staleness) == staleness


def test_more_staleness_is_never_slower_and_synchronous_stops_scaling(simulation):
    cluster = simulation.Cluster(64, 32, batch=128, mean=200, limit=2000, train=50.0)
    by_staleness = [
        simulation.simulate(replace(cluster, staleness=n), "bounded").seconds for n in (0, 1, 2, 4)
    ]
    assert by_staleness == sorted(by_staleness, reverse=True)
    few, many = (simulation.simulate(replace(cluster, gpus=n), "synchronous") for n in (128, 512))
    # A row an engine in both: what is left is the longest response.
    assert many.seconds > 0.9 * few.seconds


def test_lengths_have_their_mean_and_their_limit_and_follow_the_seed(simulation):
    cluster = simulation.Cluster(1, 1, mean=300, spread=0.7, limit=10**6)
    drawn = simulation.Lengths(cluster, 1).draw(50_000)
    assert sum(drawn) / len(drawn) == pytest.approx(300, rel=0.03)
    assert drawn == simulation.Lengths(cluster, 1).draw(50_000)
    assert drawn != simulation.Lengths(cluster, 2).draw(50_000)
    assert max(simulation.Lengths(replace(cluster, limit=500), 1).draw(50_000)) == 500
