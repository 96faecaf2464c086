"""Numbers as short text: durations, sparklines, and which metrics a running job shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from proxlm.runlog import metric_names as names
from proxlm.text import shown

BARS = "▁▂▃▄▅▆▇█"

# The metrics that the terminal shows besides the headline, in this order, under the names that they have everywhere.
SHOWN: tuple[str, ...] = (
    names.REWARD,
    names.KL,
    names.LOSS,
    names.VALIDATION_LOSS,
    names.ENTROPY,
    names.CLIP_FRACTION,
    names.APPROX_KL,
    names.EXPLAINED_VARIANCE,
    names.RESPONSE_LENGTH,
    names.ENDED_SHARE,
    names.LR,
    names.LR_MODEL("policy"),
    names.TOKENS_PER_SECOND,
    names.EPISODE_RETURN,
    names.EPISODE_LENGTH,
    names.STEPS_PER_SECOND,
    names.MEMORY_GB,
)


IN_A_LINE = (names.ENTROPY, names.CLIP_FRACTION, names.LR)


def duration(seconds: float) -> str:
    """38 → "38s", 338 → "5m 38s", 7500 → "2h 05m", 183600 → "2d 03h"; "?" where it is not known."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes // 60 // 24}d {minutes // 60 % 24:02d}h"


def number(value: float) -> str:
    """About three significant digits: 0.412, 3.21, 12.3, 1,234, 2.5e-05."""
    size = abs(value)
    if not math.isfinite(value):
        return str(float(value))
    if value == 0 or size >= 100:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.1e}"
    return f"{value:.{3 if size < 1 else 2 if size < 10 else 1}f}"


def sparkline(values: Sequence[float], width: int) -> str:
    """All values in at most `width` characters, lowest ▁, highest █; more values are averaged in groups.

    Values that are not finite are left out of the averages; a group without any other is a space. Values that
    are all the same are ▄.
    """
    if width < 1:
        return ""
    groups = min(width, len(values))
    bounds = [len(values) * i // groups for i in range(groups + 1)] if groups else []
    means = [_mean(values[a:b]) for a, b in pairwise(bounds)]
    finite = [m for m in means if not math.isnan(m)]
    if not finite:
        return " " * groups
    low, high = min(finite), max(finite)
    return "".join(" " if math.isnan(m) else _bar(m, low, high) for m in means)


def _bar(value: float, low: float, high: float) -> str:
    if low == high:
        return BARS[3]
    # Halves, since high - low can be more than the largest float.
    share = (value / 2 - low / 2) / (high / 2 - low / 2)
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]


def _mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN where there are none."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(v / len(finite) for v in finite) if finite else math.nan


def headline_and_more(
    latest: Mapping[str, float], headline: Sequence[str], more: Iterable[str]
) -> dict[str, str]:
    """What there is of the headline's metrics and `more`, as name → number, in this order."""
    known = [name for name in (*headline, *more) if name in latest]
    return {shown(name): number(latest[name]) for name in dict.fromkeys(known)}
