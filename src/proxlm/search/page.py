"""search.html: a search in a browser, without network and without a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxlm.evaluation.tables import html_table
from proxlm.report.page import asset
from proxlm.runlog.text import duration, number
from proxlm.search.charts import Axis, Point, axis_of, bars_chart, parallel_chart, points_chart
from proxlm.search.confirm import confirmed_table
from proxlm.search.points import in_words
from proxlm.search.results import SearchResults, importance_table, trial_table
from proxlm.search.search import Search
from proxlm.search.study import Trial
from proxlm.text import in_html

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = "svg{width:100%;height:auto;display:block}.wide svg{min-width:40rem}"
# Charts of a search with more trials than this show the newest of them.
_MOST = 2000


def search_page(search: Search, found: SearchResults) -> str:
    """The whole page as HTML."""
    finished = [one for one in found.trials if one.state == "finished"][-_MOST:]
    sections = [("Best so far", _best_so_far(search, finished))] if finished else []
    if (table := importance_table(search, found)) is not None:
        bars = bars_chart(sorted(found.importance[0].items(), key=lambda one: -one[1]))
        sections.append(("Which settings mattered", f"<figure>{bars}</figure>{html_table(table)}"))
    if finished:
        sections += [
            ("Each setting alone", _slices(search, finished)),
            ("All settings", _parallel(search, finished)),
        ]
    if found.confirmed:
        sections.append(
            ("Confirmed", f'<div class="wide">{html_table(confirmed_table(found.confirmed))}</div>')
        )
    sections.append(("Trials", f'<div class="wide">{html_table(trial_table(search, found, _MOST))}</div>'))
    bodies = "".join(f"<section><h2>{in_html(title)}</h2>{body}</section>\n" for title, body in sections)
    name = in_html(search.folder.name)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · proxlm search</title>\n<style>{asset('style.css')}{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1></header>\n{_tiles(search, found)}\n{bodies}</body>\n</html>\n"
    )


def _tiles(search: Search, found: SearchResults) -> str:
    tiles: list[tuple[str, str]] = [
        ("Job", search.config.command),
        ("Sampler", search.config.sampler),
        ("Pruner", search.config.pruner),
    ]
    tiles += [(state.capitalize(), str(count)) for state, count in found.counts().items()]
    tiles.append(("Time of all trials", duration(sum(one.seconds for one in found.trials))))
    if found.front:
        best = found.front[0]
        tiles += [
            (f"{name}, {best_is} is best", number(value))
            for (name, best_is), value in zip(search.objectives, best.objective, strict=True)
        ]
        tiles.append(("Best trial", str(best.number + 1)))
    items = "".join(f"<div><dt>{in_html(name)}</dt><dd>{in_html(value)}</dd></div>" for name, value in tiles)
    named = "".join(
        f"<p>Trial {one.number + 1}: {in_html(in_words(one.values))}</p>" for one in found.front[:1]
    )
    return f'<dl class="tiles">{items}</dl>{named}'


def _title(search: Search, trial: Trial) -> str:
    judged = zip(search.objectives, trial.objective, strict=True)
    words = ", ".join(f"{name} {number(value)}" for (name, _), value in judged)
    return f"trial {trial.number + 1}: {words}; {in_words(trial.values)}"


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{in_html(caption)}</figcaption>{chart}</figure>"


def _best_so_far(search: Search, finished: Sequence[Trial]) -> str:
    """Each objective by trial, with the best so far; of two objectives also one over the other."""
    figures = []
    x = axis_of([0, *(one.number + 1 for one in finished)])
    for i, (name, best_is) in enumerate(search.objectives):
        y = axis_of([one.objective[i] for one in finished])
        points = [Point(one.number + 1, one.objective[i], _title(search, one)) for one in finished]
        better = max if best_is == "highest" else min
        line: list[tuple[Any, float]] = []
        for one in finished:
            line.append((one.number + 1, better([one.objective[i], *(value for _, value in line[-1:])])))
        figures.append(_figure(name, points_chart(points, x, y, "trial", line)))
    if len(search.objectives) == 2:
        figures.append(_front(search, finished))
    return f'<div class="plots">{"".join(figures)}</div>'


def _front(search: Search, finished: Sequence[Trial]) -> str:
    front = {one.number for one in search.front()}
    x, y = (axis_of([one.objective[i] for one in finished]) for i in range(2))
    points = [
        Point(one.objective[0], one.objective[1], _title(search, one), one.number in front)
        for one in finished
    ]
    (first, _), (second, _) = search.objectives
    return _figure(
        f"{second} over {first}; filled: none is better in both", points_chart(points, x, y, first)
    )


def _axes(search: Search, finished: Sequence[Trial]) -> dict[str, Axis]:
    values = {one.key: [t.values[one.key] for t in finished if one.key in t.values] for one in search.space}
    logs = {one.key: one.log for one in search.space}
    return {key: axis_of(several, logs[key]) for key, several in values.items() if several}


def _slices(search: Search, finished: Sequence[Trial]) -> str:
    """The first objective over each setting."""
    y = axis_of([one.objective[0] for one in finished])
    figures = [
        _figure(
            f"{search.objectives[0][0]} over {key}",
            points_chart(
                [
                    Point(one.values[key], one.objective[0], _title(search, one))
                    for one in finished
                    if key in one.values
                ],
                axis,
                y,
                key,
            ),
        )
        for key, axis in _axes(search, finished).items()
    ]
    return f'<div class="plots">{"".join(figures)}</div>'


def _parallel(search: Search, finished: Sequence[Trial]) -> str:
    axes = _axes(search, finished)
    names = [*axes, search.objectives[0][0]]
    scales = [*axes.values(), axis_of([one.objective[0] for one in finished])]
    ranked = search.ranked()[:_MOST]
    rows = [
        ([*(one.values.get(key) for key in axes), one.objective[0]], _title(search, one)) for one in ranked
    ]
    chart = parallel_chart(names, scales, rows)
    note = '<p class="note">a line for each trial; orange: the best</p>'
    return f'<div class="wide"><figure>{chart}</figure></div>{note}'
