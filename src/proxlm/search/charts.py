"""Charts of a search as SVG texts: they need no script, and every point says what it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.config.values import toml_value
from proxlm.runlog.text import number
from proxlm.text import in_html, shown

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34


@dataclass(frozen=True)
class Axis:
    """Where a value stands between 0 and 1, and which values are named at the axis.

    Attributes:
        at: Value → place; not for values that the axis has not.
        ticks: Named values.
    """

    at: Callable[[Any], float]
    ticks: Sequence[Any]


@dataclass(frozen=True)
class Point:
    """A point of a chart. title: What it is; filled: Whether it counts."""

    x: Any
    y: float
    title: str
    filled: bool = True


def axis_of(values: Sequence[Any], log: bool = False) -> Axis:
    """An axis for these values: of numbers from the lowest to the highest, else of each different one."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _numbers(sorted(map(float, values)), log)
    names = list(dict.fromkeys(map(toml_value, values)))
    return Axis(lambda value: (names.index(toml_value(value)) + 0.5) / len(names), list(dict.fromkeys(values)) if
                all(isinstance(value, str) for value in values) else names)  # fmt: skip


def _numbers(values: Sequence[float], log: bool) -> Axis:
    low, high = values[0], values[-1]
    scale: Callable[[float], float] = math.log if log else float
    if low == high:
        return Axis(lambda _: 0.5, [low])
    first, width = scale(low), scale(high) - scale(low)
    places = [first + width * share for share in (0, 0.25, 0.5, 0.75, 1)]
    ticks = [math.exp(place) if log else place for place in places]
    if all(value.is_integer() for value in values):
        ticks = sorted({float(round(tick)) for tick in ticks})
    return Axis(lambda value: (scale(value) - first) / width, ticks)


def points_chart(
    points: Sequence[Point], x: Axis, y: Axis, label: str, line: Sequence[tuple[Any, float]] = ()
) -> str:
    """A chart of points, with a line in steps through others.

    Args:
        points: In any order.
        x, y: Their axes.
        label: Below the horizontal axis.
        line: Corners of the line, from left to right.
    """
    marks = "".join(
        f'<circle cx="{_x(x.at(one.x)):.1f}" cy="{_y(y.at(one.y)):.1f}" r="4" stroke="{_COLOUR}"'
        f' fill="{_COLOUR if one.filled else "none"}"><title>{in_html(one.title)}</title></circle>'
        for one in points
    )
    corners = [(f"{_x(x.at(at)):.1f}", f"{_y(y.at(value)):.1f}") for at, value in line]
    steps = " ".join(f"H{across} V{up}" if i else f"M{across} {up}" for i, (across, up) in enumerate(corners))
    path = f'<path d="{steps}" fill="none" stroke="var(--c1)" stroke-width="2"/>' if steps else ""
    return _frame(x, y, label) + path + marks + "</svg>"


def bars_chart(shares: Sequence[tuple[str, float]]) -> str:
    """A bar for each name, from 0 to the largest share."""
    most, height = max([share for _, share in shares] or [1.0]) or 1.0, 26
    rows = "".join(
        f'<text x="190" y="{i * height + 17}" text-anchor="end" {_TEXT}>{in_html(shown(name, 30))}</text>'
        f'<rect x="198" y="{i * height + 4}" width="{max(1.0, 220 * share / most):.1f}" height="18"'
        f' fill="{_COLOUR}"/>'
        f'<text x="{204 + 220 * share / most:.1f}" y="{i * height + 17}" {_TEXT}>{share:.0%}</text>'
        for i, (name, share) in enumerate(shares)
    )
    return f'<svg viewBox="0 0 {_WIDTH} {max(1, len(shares)) * height}" role="img">{rows}</svg>'


def parallel_chart(
    names: Sequence[str], axes: Sequence[Axis], rows: Sequence[tuple[Sequence[Any], str]]
) -> str:
    """A line for each trial through an axis for each name; the first row is drawn above all others.

    Args:
        names: Of the axes.
        axes: One for each name.
        rows: The values of each trial in the order of the names, None where it has none; and its title. Best first.
    """
    width, height = max(_WIDTH, 150 * len(names)), 300
    places = [60 + i * (width - 120) / max(1, len(names) - 1) for i in range(len(names))]

    def y(axis: Axis, value: Any) -> float:
        return 40 + (1 - axis.at(value)) * (height - 70)

    lines = []
    for rank, (values, title) in enumerate(rows):
        corners = [
            f"{place:.1f},{y(axis, value):.1f}"
            for place, axis, value in zip(places, axes, values, strict=True)
            if value is not None
        ]
        colour, wide = ("var(--c1)", 2.5) if rank == 0 else (_COLOUR, 1)
        faint = 1 if rank == 0 else max(0.15, 0.8 - rank / max(1, len(rows)))
        lines.append(
            f'<polyline points="{" ".join(corners)}" fill="none" stroke="{colour}" stroke-width="{wide}"'
            f' opacity="{faint:.2f}"><title>{in_html(title)}</title></polyline>'
        )
    stands = "".join(
        f'<line x1="{place:.1f}" x2="{place:.1f}" y1="40" y2="{height - 30}" stroke="var(--line)"/>'
        f'<text x="{place:.1f}" y="18" text-anchor="middle" {_TEXT}>{in_html(shown(name, 22))}</text>'
        + "".join(
            f'<text x="{place + 4:.1f}" y="{y(axis, tick) + 4:.1f}" {_TEXT}>{in_html(_named(tick))}</text>'
            for tick in (axis.ticks if len(axis.ticks) < 5 else axis.ticks[::2])
        )
        for place, axis, name in zip(places, axes, names, strict=True)
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(reversed(lines))}{stands}</svg>'


_COLOUR = "var(--c0)"
_TEXT = 'font-size="11" fill="var(--soft)"'


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _named(value: Any) -> str:
    return (
        number(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else shown(str(value), 14)
    )


def _frame(x: Axis, y: Axis, label: str) -> str:
    across = "".join(
        f'<text x="{_x(x.at(one)):.1f}" y="{_HEIGHT - 18}" text-anchor="middle" {_TEXT}>{in_html(_named(one))}</text>'
        for one in x.ticks
    )
    up = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(y.at(one)):.1f}" y2="{_y(y.at(one)):.1f}"'
        f' stroke="var(--line)"/><text x="{_LEFT - 6}" y="{_y(y.at(one)) + 4:.1f}" text-anchor="end" {_TEXT}>'
        f"{in_html(_named(one))}</text>"
        for one in y.ticks
    )
    named = f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 3}" text-anchor="middle" {_TEXT}>{in_html(label)}</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{up}{across}{named}'
