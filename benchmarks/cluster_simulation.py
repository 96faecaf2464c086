"""When synchronous PPO stops getting faster with more GPUs, and what asynchrony buys: a discrete-event simulation.

    python benchmarks/cluster_simulation.py [--gpus 1024] [--seed 0]

Engines write responses whose lengths are drawn from a log-normal distribution; a token of all rows of an engine takes
τ(b) = base + each · b seconds. Trainers learn from `batch` responses at a time. What starts when is the mode:

    synchronous     all GPUs write, then all train; a step waits for its longest response
    one step ahead  some GPUs write the next batch while the others train on this one
    bounded         so many batches more are begun before their turn that none is older than `staleness` updates when
                    it is learnt from; each is learnt from in its turn, so what is long has so many updates to end

Rates are about those of the plan (planning/) for a 7B policy on H100s. Writes docs/images/cluster-simulation.svg and
benchmarks/results/cluster_simulation.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy

Mode = Literal["synchronous", "one step ahead", "bounded"]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        gpus: All of them.
        engines: Those that write; in the synchronous mode all do, in turn with training.
        batch: Responses of an update.
        slots: Rows that an engine writes at once.
        base: Seconds of a token without any row: the weights are read.
        each: And for each row.
        train: Seconds of an update on one GPU.
        fixed: Seconds of an update that more GPUs do not shorten: what they exchange.
        refit: Seconds that engines stand still while they get new weights.
        mean: Tokens of a response on average, before the limit.
        spread: Standard deviation of the lengths' logarithm; 0: all are of one length.
        limit: Most tokens.
        staleness: Updates that a response may be old, in the bounded mode.
    """

    gpus: int
    engines: int
    batch: int = 1024
    slots: int = 128
    base: float = 0.006
    each: float = 2.7e-4
    train: float = 480.0
    fixed: float = 2.0
    refit: float = 2.0
    mean: float = 800.0
    spread: float = 0.9
    limit: int = 8192
    staleness: int = 1

    def token(self, rows: int) -> float:
        """τ: seconds of a token of so many rows."""
        return self.base + self.each * rows

    def update(self, trainers: int) -> float:
        """Seconds of an update."""
        return self.train / trainers + (self.fixed if trainers > 1 else 0.0)


class Lengths:
    """Draws the lengths of responses, whole tokens from 1 to the limit."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.random = cluster, numpy.random.default_rng(seed)

    def draw(self, count: int) -> list[int]:
        mean, spread = self.cluster.mean, self.cluster.spread
        drawn = self.random.lognormal(math.log(mean) - spread**2 / 2, spread, count)
        return numpy.clip(numpy.rint(drawn), 1, self.cluster.limit).astype(int).tolist()


class Engine:
    """Rows that grow together, a token at a time. `progress` counts tokens since its beginning."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.rows = cluster, list[tuple[float, int]]()  # where each ends, and its batch
        self.progress = self.at = 0.0

    def advance(self, now: float) -> None:
        """To a time at which nothing that ends before has been left out."""
        if self.rows:
            self.progress += max(0.0, now - self.at) / self.cluster.token(len(self.rows))
        self.at = max(self.at, now)

    def ends(self) -> float:
        """When the next row ends, if none joins."""
        if not self.rows:
            return math.inf
        return self.at + (self.rows[0][0] - self.progress) * self.cluster.token(len(self.rows))

    def join(self, length: int, batch: int) -> None:
        heapq.heappush(self.rows, (self.progress + length, batch))

    def pop(self) -> int:
        """Take out the row that has ended; its batch."""
        end, batch = heapq.heappop(self.rows)
        self.progress = end
        return batch


class Simulation:
    """Engines, and a queue of what waits to be written.

    Attributes:
        begun: The version of the policy that each batch is written with.
        finished: How many of each batch are finished.
    """

    def __init__(self, cluster: Cluster, engines: int, seed: int) -> None:
        self.cluster, self.engines = cluster, [Engine(cluster) for _ in range(engines)]
        self.lengths, self.waiting, self.now = Lengths(cluster, seed), deque[tuple[int, int]](), 0.0
        self.begun, self.finished = list[int](), list[int]()
        self._heap: list[tuple[float, int]] = []

    def ask(self, version: int) -> None:
        """Queue a batch to be written with this version of the policy, and begin what there is room for."""
        self.waiting.extend((length, len(self.begun)) for length in self.lengths.draw(self.cluster.batch))
        self.begun.append(version)
        self.finished.append(0)
        free = [(len(engine.rows), i) for i, engine in enumerate(self.engines)]
        heapq.heapify(free)
        changed = set[int]()
        while self.waiting and free and free[0][0] < self.cluster.slots:
            rows, i = free[0]
            self._begin(i)
            changed.add(i)
            heapq.heapreplace(free, (rows + 1, i))
        for i in changed:
            heapq.heappush(self._heap, (self.engines[i].ends(), i))

    def _begin(self, i: int) -> None:
        engine = self.engines[i]
        engine.advance(self.now)
        engine.join(*self.waiting.popleft())

    def next_end(self) -> float:
        """When the next response ends; infinity: none is being written."""
        while self._heap and self._heap[0][0] != self.engines[self._heap[0][1]].ends():
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def step(self) -> None:
        """Go on to the end of the next response; its slot is given to one that waits."""
        self.now = self.next_end()
        i = self._heap[0][1]
        engine = self.engines[i]
        engine.at = self.now
        self.finished[engine.pop()] += 1
        if self.waiting:
            self._begin(i)
        heapq.heappush(self._heap, (engine.ends(), i))

    def write(self, batch: int) -> None:
        """Until a batch is finished."""
        while self.finished[batch] < self.cluster.batch:
            self.step()

    def run_until(self, time: float) -> None:
        """All that ends before a time."""
        while self.next_end() <= time:
            self.step()
        self.now = max(self.now, time)

    def pause(self, seconds: float) -> None:
        """Every engine stands still for so long."""
        for engine in self.engines:
            engine.advance(self.now)
            engine.at += seconds
        self.now += seconds
        self._heap = [(engine.ends(), i) for i, engine in enumerate(self.engines) if engine.rows]
        heapq.heapify(self._heap)


@dataclass(frozen=True)
class Result:
    """seconds: of an update, on average after the first ones; staleness: how old each batch was, in updates."""

    seconds: float
    staleness: list[int]


def simulate(cluster: Cluster, mode: Mode, updates: int = 12, warmup: int = 4, seed: int = 0) -> Result:
    """Updates of a cluster, the first ones left out.

    Raises:
        ValueError: A mode whose GPUs do two things at once, without GPUs for both.
    """
    if mode == "synchronous":
        return _synchronous(cluster, updates, warmup, seed)
    if not 0 < cluster.engines < cluster.gpus:
        raise ValueError(f"{cluster.engines} engines of {cluster.gpus} GPUs: both sides need one")
    return _overlapping(cluster, mode, updates, warmup, seed)


def _synchronous(cluster: Cluster, updates: int, warmup: int, seed: int) -> Result:
    sim, ends = Simulation(cluster, cluster.gpus, seed), [0.0]
    for version in range(updates):
        sim.ask(version)
        sim.write(version)
        sim.run_until(sim.now + cluster.update(cluster.gpus))
        ends.append(sim.now)
    return Result((ends[-1] - ends[warmup]) / (updates - warmup), [0] * updates)


def _overlapping(cluster: Cluster, mode: Mode, updates: int, warmup: int, seed: int) -> Result:
    """Trainers beside engines. In the bounded mode `staleness` + 1 batches are begun before the first update."""
    sim, seconds = Simulation(cluster, cluster.engines, seed), cluster.update(cluster.gpus - cluster.engines)
    ends, bounded = [0.0], mode == "bounded"
    for _ in range(cluster.staleness + 1 if bounded else 1):
        sim.ask(0)
    for version in range(updates):
        sim.write(version)
        if not bounded:  # with the policy from before this update
            sim.ask(version)
        sim.run_until(sim.now + seconds)
        sim.pause(cluster.refit)
        if bounded:
            sim.ask(version + 1)
        ends.append(sim.now)
    stale = [version - begun for version, begun in enumerate(sim.begun[:updates])]
    return Result((ends[-1] - ends[warmup]) / (updates - warmup), stale)


def best(cluster: Cluster, mode: Mode, seed: int) -> tuple[float, int]:
    """Seconds of an update with the best number of engines, and that number."""
    if mode == "synchronous":
        return simulate(cluster, mode, seed=seed).seconds, cluster.gpus
    shares = sorted({max(1, min(cluster.gpus - 1, round(cluster.gpus * i / 8))) for i in range(1, 8)})
    found = [(simulate(replace(cluster, engines=n), mode, seed=seed).seconds, n) for n in shares]
    return min(found)


CASES: dict[str, tuple[Mode, int]] = {
    "synchronous": ("synchronous", 0),
    "one step ahead": ("one step ahead", 1),
    "staleness 1": ("bounded", 1),
    "staleness 4": ("bounded", 4),
}


def main() -> None:
    from compare_runs import svg

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in CASES}
    print("| GPUs | " + " | ".join(f"{name}, s an update (engines)" for name in CASES) + " |")
    print("| --- " * (len(CASES) + 1) + "|")
    for gpus in (2**i for i in range(int(math.log2(options.gpus)) + 1)):
        for name, (mode, staleness) in CASES.items():
            if gpus > 1 or mode == "synchronous":
                cluster = Cluster(gpus, gpus, staleness=staleness)
                found[name][gpus] = best(cluster, mode, options.seed)
        cells = [f"{found[n][gpus][0]:.1f} ({found[n][gpus][1]})" if gpus in found[n] else "" for n in CASES]
        print(f"| {gpus} | " + " | ".join(cells) + " |", flush=True)
    file = HERE / "results" / "cluster_simulation.json"
    file.write_text(json.dumps({"seed": options.seed, "found": found}, indent=1) + "\n", encoding="utf-8")
    one = found["synchronous"][1][0]
    speed = {
        n: [(math.log2(g), math.log2(one / s)) for g, (s, _) in rows.items()] for n, rows in found.items()
    }
    share = {n: [(math.log2(g), one / s / g) for g, (s, _) in rows.items()] for n, rows in found.items()}
    panels = [("log₂ speed-up against log₂ GPUs", speed), ("speed-up for each GPU against log₂ GPUs", share)]
    picture = HERE.parent / "docs" / "images" / "cluster-simulation.svg"
    picture.write_text(svg(panels, list(CASES)), encoding="utf-8")


if __name__ == "__main__":
    main()
