"""The best trials again, with seeds that chose nothing, beside the recipe: what is left of the lead.

The best of many noisy values is too good: it was chosen for its luck, too (the winner's curse). New seeds chose
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxlm.evaluation.intervals import Estimate, mean_with_interval
from proxlm.evaluation.tables import Table
from proxlm.runlog.text import number
from proxlm.search.search import Search
from proxlm.search.study import Trial

_NOTE = (
    "(each pair is trained with the same new seed; the interval is Student's t over the pairs, 95%; seeds {})"
)


@dataclass(frozen=True)
class Confirmed:
    """A trial and the recipe, trained again with the same new seeds.

    Attributes:
        trial: Its number, from 0.
        objective: The metric.
        searched: The trial's value in the search, too good if it was chosen for it.
        recipe: The recipe's values, one for each seed.
        own: The trial's.
        difference: Own less recipe, paired by seed.
        seeds: The seeds.
    """

    trial: int
    objective: str
    searched: float
    recipe: tuple[float, ...]
    own: tuple[float, ...]
    difference: Estimate
    seeds: tuple[int, ...]


def confirmed(search: Search) -> list[Confirmed]:
    """Train the recipe and the best trials with new seeds, where that is not done, and compare them."""
    config = search.config
    first = search.base.run.seed + config.seeds
    seeds = tuple(range(first, first + config.confirm))
    best = (search.front() if len(search.objectives) > 1 else search.ranked())[: config.confirm_best]
    if not seeds or not best:
        return []
    print(f"\nconfirming {len(best)} of the trials with {len(seeds)} new seeds", flush=True)
    recipe = [search.numbers_of(search.base, search.folder / "confirm" / "recipe", seed) for seed in seeds]
    found = []
    for trial in best:
        settings = search.settings_of(trial)
        own = [
            search.numbers_of(settings, search.folder / "confirm" / search.of(trial.number).name, s)
            for s in seeds
        ]
        found += [_compared(search, trial, i, recipe, own, seeds) for i in range(len(search.objectives))]
    return found


def _compared(
    search: Search,
    trial: Trial,
    i: int,
    recipe: Sequence[dict[str, float]],
    own: Sequence[dict[str, float]],
    seeds: tuple[int, ...],
) -> Confirmed:
    name = search.objectives[i][0]
    ours, theirs = (tuple(search.value(one, name) for one in numbers) for numbers in (own, recipe))
    leads = [a - b for a, b in zip(ours, theirs, strict=True)]
    return Confirmed(trial.number, name, trial.objective[i], theirs, ours, mean_with_interval(leads), seeds)


def confirmed_table(found: Sequence[Confirmed]) -> Table:
    """A row for each trial and objective."""
    head = ["trial", "metric", "in the search", "recipe", "trial, new seeds", "difference", "95% interval"]
    rows = []
    for one in found:
        recipe, own = (mean_with_interval(values).mean for values in (one.recipe, one.own))
        lead = one.difference
        interval = f"{number(lead.low)} to {number(lead.high)}" if len(one.seeds) > 1 else "– (one seed)"
        cells = [number(one.searched), number(recipe), number(own), f"{lead.mean:+.3g}", interval]
        rows.append([str(one.trial + 1), one.objective, *cells])
    seeds = ", ".join(map(str, found[0].seeds)) if found else ""
    return Table(head, rows, "Confirmed with new seeds", [_NOTE.format(seeds)])
