"""The page of `proxlm probe`: the range tests as curves, the passes as a table; it needs no script and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxlm.report.page import STYLE, asset
from proxlm.runlog.text import number
from proxlm.text import in_html
from proxlm.train.supervised.pass_sizes import PassSize
from proxlm.train.supervised.range_test import Sweep

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 320, 64, 36


def probe_page(recipe: str, lines: Sequence[str], sweeps: Sequence[Sweep], sizes: Sequence[PassSize]) -> str:
    """The whole page as HTML.

    Args:
        recipe: The recipe's path.
        lines: The suggestions.
        sweeps: The range tests.
        sizes: The passes that were tried.
    """
    title = f"{in_html(recipe)} · proxlm probe"
    items = "".join(f"<li>{in_html(line)}</li>" for line in lines)
    rows = "".join(_row(size) for size in sizes)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{asset(STYLE)}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1><ul>{items}</ul>\n"
        f"<h2>Learning-rate range test</h2>{range_plot(sweeps)}"
        '<p class="note">Loss of each batch (pale) and its moving mean; dashed: the suggestion, a tenth of the'
        " rate at which the mean is lowest (Smith 2017).</p>\n"
        "<h2>Passes on the longest rows</h2><table><thead><tr><th>tokens</th><th>rows</th><th>seconds</th>"
        f"<th>GiB</th></tr></thead><tbody>{rows}</tbody></table>\n</body>\n</html>\n"
    )


def _row(size: PassSize) -> str:
    found = [f"{size.seconds:.3f}", f"{size.memory_gb:.2f}"] if size.fits else ["does not fit", ""]
    return (
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in (f'{size.tokens:,}', f'{size.rows:,}', *found))}</tr>"
    )


def range_plot(sweeps: Sequence[Sweep]) -> str:
    """The losses over the learning rate, on a logarithmic axis, as SVG."""
    points = [value for one in sweeps for value in one.means if math.isfinite(value)]
    rates = [rate for one in sweeps for rate in one.rates]
    if not points:
        return "<p>No loss was a number.</p>"
    low, high = min(points), min(max(points), 2 * points[0])
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    first, last = math.log10(min(rates)), math.log10(max(rates))

    def x(rate: float) -> float:
        return _LEFT + (math.log10(rate) - first) / ((last - first) or 1) * (_WIDTH - _LEFT - 10)

    def y(loss: float) -> float:
        share = (min(max(loss, low), high) - low) / (high - low)
        return (1 - share) * (_HEIGHT - _BOTTOM - 10) + 10

    def path(one: Sweep, values: Sequence[float], colour: str, more: str) -> str:
        pairs = [(x(r), y(v)) for r, v in zip(one.rates, values, strict=True) if math.isfinite(v)]
        corners = " ".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(pairs))
        return f'<path d="{corners}" fill="none" stroke="{colour}" {more}/>'

    marks = ""
    for i, one in enumerate(sweeps):
        colour = f"var(--c{i % 6})"
        marks += path(one, one.losses, colour, 'opacity="0.3"')
        marks += path(one, one.means, colour, 'stroke-width="2"')
        if one.suggested:
            at = f"{max(x(one.suggested), _LEFT):.1f}"
            marks += (
                f'<path d="M{at} 10 V{_HEIGHT - _BOTTOM}" stroke="{colour}" stroke-dasharray="5 4">'
                f"<title>{one.suggested:.2g}</title></path>"
            )
    names = "".join(
        f'<text x="{x(10.0**power):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{10.0**power:g}</text>'
        for power in range(math.ceil(first), math.floor(last) + 1)
    )
    names += "".join(
        f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>'
        for value in (low + (high - low) * share for share in (0.05, 0.5, 0.95))
    )
    frame = f'<path d="M{_LEFT} 10 V{_HEIGHT - _BOTTOM} H{_WIDTH - 10}" fill="none" stroke="var(--line)"/>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="Loss over the learning rate"'
        f' style="max-width:100%;fill:var(--soft);font-size:12px">{frame}{marks}{names}</svg>'
    )
