"""What a search has found: tables for the terminal, results.json, the best recipe, and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from proxlm.config import to_toml
from proxlm.config.paths import absolute
from proxlm.evaluation.tables import Table, as_text
from proxlm.runlog.folder import write_atomic, write_json_atomic
from proxlm.runlog.metric_names import KL
from proxlm.runlog.text import duration, number
from proxlm.search.confirm import Confirmed, confirmed_table
from proxlm.search.points import in_short
from proxlm.search.search import Search
from proxlm.search.study import Trial

RESULTS, PAGE, BEST, FRONT = "results.json", "search.html", "best.toml", "front"
_SHOWN = 20
# How many times as far from the reference as the recipe's a best trial is said to be.
_FURTHER = 1.5


@dataclass(frozen=True)
class SearchResults:
    """What the trials of a search have found so far.

    Attributes:
        trials: All of them, by number.
        front: The best trial, or of several objectives those that none is better than; best first.
        importance: For each objective the share of its variance that each setting explains.
        evaluator: How that was found.
        confirmed: The best trials with new seeds beside the recipe.
    """

    trials: list[Trial]
    front: list[Trial]
    importance: list[dict[str, float]]
    evaluator: str
    confirmed: list[Confirmed]

    @property
    def best(self) -> Trial | None:
        """The best trial by the first objective; None: none is finished."""
        return self.front[0] if self.front else None

    def counts(self) -> dict[str, int]:
        """How many trials there are in each state that some are in."""
        states = ("finished", "pruned", "failed", "running")
        found = {state: sum(one.state == state for one in self.trials) for state in states}
        return {state: count for state, count in found.items() if count}


def results_of(search: Search, confirmed: Sequence[Confirmed] = ()) -> SearchResults:
    """Read the trials, and find out which settings mattered."""
    shares = [search.study.importance(i) for i in range(len(search.objectives))]
    return SearchResults(
        search.study.trials(), search.front(), [share for share, _ in shares], shares[0][1], list(confirmed)
    )


def write_results(search: Search, found: SearchResults) -> None:
    """results.json, and a recipe of the best trial: best.toml, of several objectives front/TRIAL.toml each."""
    plain: dict[str, Any] = {
        "job": search.config.command,
        "objectives": [{"metric": name, "best_is": best} for name, best in search.objectives],
        "sampler": search.config.sampler,
        "pruner": search.config.pruner,
        "seeds": search.config.seeds,
        "best": [trial.number for trial in found.front],
        "importance": {"evaluator": found.evaluator, "shares": found.importance},
        "confirmed": [asdict(one) for one in found.confirmed],
        "trials": [{**asdict(trial), "folder": str(search.of(trial.number))} for trial in found.trials],
    }
    write_json_atomic(search.folder / RESULTS, plain)
    for trial in found.front:
        file = search.folder / BEST
        if len(search.objectives) > 1:
            file = search.folder / FRONT / f"{search.of(trial.number).name}.toml"
            file.parent.mkdir(exist_ok=True)
        write_atomic(file, to_toml(absolute(search.settings_of(trial))))


def trial_table(search: Search, found: SearchResults, most: int | None = _SHOWN) -> Table:
    """The trials, best first, those without a value last; `most` of them."""
    ranked = search.ranked()
    trials = [*ranked, *(trial for trial in found.trials if trial.state != "finished")]
    keys = [one.key for one in search.space]
    more = [KL] if any(KL in trial.numbers for trial in trials) and KL not in dict(search.objectives) else []
    head = ["trial", *(name for name, _ in search.objectives), *more, *keys, "time", ""]
    rows = [
        [
            str(trial.number + 1),
            *_judged(trial, len(search.objectives)),
            *(number(trial.numbers[name]) if name in trial.numbers else "–" for name in more),
            *(in_short(trial.values[key]) if key in trial.values else "–" for key in keys),
            duration(trial.seconds) if trial.seconds else "–",
            ": ".join(filter(None, ["" if trial.objective else trial.state, trial.reason])),
        ]
        for trial in trials[:most]
    ]
    notes = [f"({len(trials) - len(rows)} more are in {RESULTS})"] if len(trials) > len(rows) else []
    if search.config.seeds > 1:
        notes.append(f"(± the standard error over {search.config.seeds} seeds)")
    return Table(head, rows, "Trials, the best first", notes)


def _judged(trial: Trial, count: int) -> list[str]:
    if not trial.objective:
        return ["–"] * count
    return [
        number(value) if math.isnan(error) else f"{number(value)} ± {number(error)}"
        for value, error in zip(trial.objective, trial.deviations, strict=True)
    ]


def importance_table(search: Search, found: SearchResults) -> Table | None:
    """Which settings mattered, for each objective; None: too few trials to say."""
    if not any(found.importance):
        return None
    keys = sorted(found.importance[0], key=lambda key: -found.importance[0][key])
    rows = [[key, *(f"{share.get(key, 0):.0%}" for share in found.importance)] for key in keys]
    notes = [
        f"(share of the variance between finished trials, by {found.evaluator}; few trials give rough shares)"
    ]
    return Table(
        ["setting", *(name for name, _ in search.objectives)], rows, "Which settings mattered", notes
    )


def summary(search: Search, found: SearchResults) -> str:
    """What is printed at the end."""
    tables = [trial_table(search, found)]
    if (importance := importance_table(search, found)) is not None:
        tables.append(importance)
    if found.confirmed:
        tables.append(confirmed_table(found.confirmed))
    return "\n".join(["", as_text(tables), "", *_last_lines(search, found)])


def _bought_with_kl(search: Search, found: SearchResults) -> list[str]:
    """A note where the best trial is far further from the reference than the first one, the recipe's own."""
    first, best = found.trials[0], found.front[0]
    ends = [trial.numbers.get(KL, 0.0) for trial in (first, best)]
    if KL in dict(search.objectives) or first.values != search.own or ends[1] < max(_FURTHER * ends[0], 1.0):
        return []
    recipe, far = map(number, ends)
    return [
        f"note    the best trial is {far} nats from the reference, the recipe {recipe}: a search for the reward",
        "        alone buys it with KL. --objective reward --objective kl shows what each nat buys",
    ]


def _last_lines(search: Search, found: SearchResults) -> list[str]:
    lines = [
        f"{len(found.trials)} trials: {', '.join(f'{count} {state}' for state, count in found.counts().items())}"
    ]
    if not found.front:
        return lines
    if len(search.objectives) > 1:
        numbers = ", ".join(str(one.number + 1) for one in found.front)
        lines.append(f"front   trials {numbers}; their recipes: {search.folder / FRONT}")
    else:
        recipe = search.folder / BEST
        lines.append(f"best    trial {found.front[0].number + 1}: proxlm {search.config.command} {recipe}")
    lines += _bought_with_kl(search, found)
    if not found.confirmed:
        lines.append(
            "note    the best of many values is too good, for it was chosen for its luck, too: --confirm 3"
        )
        lines.append("        trains it and the recipe again with new seeds")
    return [*lines, f"report  {search.folder / PAGE}"]
