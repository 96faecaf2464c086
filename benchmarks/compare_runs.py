"""A Markdown table and an SVG curve from finished runs of several seeds.

    python benchmarks/compare_runs.py docs/images/demo.svg runs/demo-0/ppo runs/demo-1/ppo runs/demo-2/ppo

Reads metrics.jsonl and evaluation.json of each run. Prints before → after for each run; draws the reward and the KL
of each training step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from proxlm.runlog.folder import read_jsonl

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]
WIDTH, HEIGHT, LEFT, TOP, GAP = 360, 220, 52, 34, 70
Series = list[tuple[float, float]]


def read(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of metrics.jsonl, and evaluation.json."""
    return read_jsonl(run / "metrics.jsonl"), json.loads(
        (run / "evaluation.json").read_text(encoding="utf-8")
    )


def table(runs: list[Path]) -> str:
    """before → after of each metric, a row per run."""
    lines = []
    for run in runs:
        rows, evaluation = read(run)
        before, after = (model["metrics"] for model in evaluation["models"])
        if not lines:
            lines = ["| run | " + " | ".join(after) + " | minutes |", "| --- |" + " --- |" * (len(after) + 1)]
        cells = [f"{cell(before[name])} → {cell(after[name])}" for name in after]
        lines.append(f"| {run} | " + " | ".join(cells) + f" | {rows[-1]['time'] / 60:.1f} |")
    return "\n".join(lines)


def cell(estimate: dict[str, float]) -> str:
    """mean ± half of the 95% interval."""
    half = (estimate["high"] - estimate["low"]) / 2
    return f"{estimate['mean']:.3f}" + (f" ± {half:.3f}" if half else "")


def panel(title: str, series: dict[str, Series], x: int) -> list[str]:
    """One plot: axes with five marks, and a line per run."""
    points = [p for line in series.values() for p in line]
    low, highest = min(0.0, min(y for _, y in points)), max(y for _, y in points)
    high = highest + 0.05 * abs(highest)
    last = max(s for s, _ in points)

    def place(step: float, value: float) -> tuple[float, float]:
        return x + step / last * WIDTH, TOP + HEIGHT - (value - low) / (high - low) * HEIGHT

    out = [f'<text x="{x}" y="{TOP - 12}" font-weight="bold">{title}</text>']
    for i in range(5):
        value = low + (high - low) * i / 4
        y = place(0, value)[1]
        out.append(f'<line x1="{x}" x2="{x + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        out.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{mark(value)}</text>')
        step_x = place(last * i / 4, low)[0]
        out.append(
            f'<text x="{step_x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{last * i / 4:.0f}</text>'
        )
    for colour, line in zip(COLOURS, series.values(), strict=False):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*p) for p in line))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return out


def mark(value: float) -> str:
    """A number on an axis."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def draw(runs: list[Path]) -> str:
    """Reward and KL per step, side by side."""
    rows = {str(run): read(run)[0] for run in runs}
    titles = (("reward", "mean reward of a step"), ("kl", "KL, nats per response"))
    panels = [
        (title, {run: [(r["step"], r[name]) for r in steps] for run, steps in rows.items()})
        for name, title in titles
    ]
    return svg(panels, ["/".join(run.parts[-2:]) for run in runs], spacing=250)


def svg(panels: list[tuple[str, dict[str, Series]]], names: list[str], spacing: int = 150) -> str:
    """Panels side by side over one legend, whose entries stand `spacing` apart."""
    parts: list[str] = []
    for number, (title, series) in enumerate(panels):
        parts += panel(title, series, LEFT + number * (WIDTH + GAP))
    for i, name in enumerate(names):
        x, y = LEFT + i * spacing, TOP + HEIGHT + 32
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="4" fill="{COLOURS[i]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y + 6}">{name}</text>')
    size = (LEFT + len(panels) * (WIDTH + GAP) - GAP + 20, TOP + HEIGHT + 50)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" '
        f'font-size="12" fill="#222"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folders = [Path(name) for name in sys.argv[2:]]
    print(table(folders))
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    Path(sys.argv[1]).write_text(draw(folders), encoding="utf-8")
