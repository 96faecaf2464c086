"""A run's report: one HTML file with everything in it, which needs no network and opens from the disk."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

from proxlm.config import ReportConfig
from proxlm.report.curves import curves
from proxlm.report.data import RunData, read_run
from proxlm.report.samples import sample_views
from proxlm.report.script import SCRIPT
from proxlm.report.style import STYLE
from proxlm.report.texts import before_and_after, evaluation_table, headline
from proxlm.runlog.folder import plain, write_atomic


def main(config: ReportConfig) -> None:
    """Write the report of a run's folder and say where it is."""
    print(write_report(Path(config.folder), Path(config.output) if config.output else None))


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, by default report.html in its folder; returns the file's path.

    Works on a run that still goes on, and without samples or evaluation. Raises RunError that names the file, and
    the line, that is missing or not right.
    """
    path = output or folder / "report.html"
    write_atomic(path, page(read_run(folder)))
    return path


def page(run: RunData) -> str:
    """The whole page. Whatever came from a model or a user is escaped, and no other script than ours may run."""
    from plotly.offline import get_plotlyjs

    samples = sample_views(run.samples)
    sections = _sections(run, samples)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    bodies = "".join(
        f'<section id="{name}"><h2>{title}</h2>{body}</section>' for name, title, body in sections
    )
    scripts = [get_plotlyjs(), SCRIPT]
    drawn = _json_for_script({"curves": curves(run.metrics), "samples": samples})
    title = f"{escape(run.name)} · proxlm report"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(scripts)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(run.name)}</h1><button type="button" id="theme">Light / dark</button></header>\n'
        f"<nav>{links}</nav>\n{headline(run)}\n"
        "<noscript><p>The curves and tokens are drawn by this page's script, which is switched off.</p></noscript>\n"
        f'{bodies}\n<div id="tip" role="status" hidden></div>\n'
        f'<script type="application/json" id="data">{drawn}</script>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _sections(run: RunData, samples: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The page's sections in order, those that there is something for: anchor, title, HTML."""
    sections = []
    if run.evaluation:
        sections.append(("evaluation", "Before and after", evaluation_table(run.evaluation)))
    sections.append(("curves", "Curves", CURVES))
    if run.evaluation and (texts := before_and_after(run.evaluation)):
        sections.append(("side-by-side", "Samples side by side", texts))
    if samples["tokens"]:
        sections.append(("token-views", "Token by token", TOKENS))
    if samples["texts"]:
        sections.append(("over-training", "Samples over training", TEXTS))
    settings = f"<details><summary>config.toml</summary><pre>{escape(run.config_text)}</pre></details>"
    sections.append(("config", "Settings", settings))
    return sections


CURVES = """<div class="controls">
<label>over <select id="axis"><option>step</option><option>minutes</option></select></label>
<label>smoothing <input type="range" id="smoothing" min="0" max="0.95" step="0.05">
<span id="smoothing-value"></span></label>
<span class="note">drag: zoom; double click: whole run; smoothed curves stand before their own values</span>
</div><div id="plots"></div><p class="note" id="curve-notes"></p>"""

TOKENS = """<div class="controls"><div class="buttons" id="token-quantity" role="group" aria-label="Colour by"></div>
<div class="buttons" id="token-step" role="group" aria-label="Step"></div></div>
<div class="legend" id="legend"></div><div id="tokens"></div>"""

TEXTS = """<div class="controls"><button type="button" id="text-back" aria-label="Earlier">←</button>
<label><input type="range" id="text-step" min="0"><span id="text-step-value"></span></label>
<button type="button" id="text-on" aria-label="Later">→</button></div>
<p class="note" id="text-notes"></p><div id="texts"></div>"""


def _json_for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever texts it holds."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _policy(scripts: list[str]) -> str:
    """The browser may load nothing, and run these scripts only."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
