"""benchmarks/results/against_trl.json → an SVG of seconds by phase, one bar for each library and setting.

python benchmarks/bars.py benchmarks/results/against_trl.json docs/images/against_trl.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PHASES = {"generate": "#4477aa", "score": "#ccbb44", "update": "#ee6677"}
LEFT, WIDTH, BAR, GAP = 270, 420, 18, 6


def bars(found: dict[str, Any]) -> str:
    """The picture: bars of one workload share a scale, the slowest one is full width."""
    parts, y = list[str](), 26

    def text(x: float, at: float, words: str, anchor: str = "start", weight: str = "normal") -> None:
        parts.append(f'<text x="{x}" y="{at}" text-anchor="{anchor}" font-weight="{weight}">{words}</text>')

    for i, (phase, colour) in enumerate(PHASES.items()):
        parts.append(f'<rect x="{LEFT + 90 * i}" y="6" width="10" height="10" fill="{colour}"/>')
        text(LEFT + 90 * i + 14, 15, phase)
    for workload, rows in found["workloads"].items():
        y += 18
        text(8, y, workload, weight="bold")
        y += 8
        longest = max(row["step"] for row in rows.values())
        for name in ("trl", *(n for n in rows if n != "trl")):
            row, x = rows[name], float(LEFT)
            text(
                LEFT - 8,
                y + 13,
                "TRL 1.12.0, fp32, separate critic" if name == "trl" else f"proxlm, {name}",
                "end",
            )
            for phase, colour in PHASES.items():
                width = WIDTH * row[phase] / longest
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>'
                )
                x += width
            text(x + 6, y + 13, f"{row['step']:.1f} s, {row['peak_mb']:.0f} MB")
            y += BAR + GAP
    size = f'width="{LEFT + WIDTH + 130}" height="{y + 10}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        bars(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8"
    )
