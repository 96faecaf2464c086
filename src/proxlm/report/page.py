"""A run's report: one HTML file with everything in it, which needs no network and opens from the disk."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from proxlm.report.curves import curves
from proxlm.report.evaluation import evaluation_table, side_by_side
from proxlm.report.headline import headline
from proxlm.report.run_data import RunData, read_run
from proxlm.report.samples import sample_views
from proxlm.runlog.folder import plain, write_atomic
from proxlm.runlog.outputs import check_output, title_of
from proxlm.text import in_html, on_screen

ASSETS = files("proxlm.report") / "assets"
STYLE = "style.css"
# In the order in which the browser runs them: each may use what those before it declare.
SCRIPTS = ("base.js", "chart.js", "curves.js", "texts.js", "tokens.js", "start.js")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, which may still be going on; samples and evaluation may be missing.

    Args:
        folder: the run's folder.
        output: the file to write; by default report.html in the run's folder.

    Returns:
        The path of the file.

    Raises:
        RunError: names the file, and the line, that is missing or malformed; or `output` is another file.
    """
    path = output or folder / "report.html"
    if output is not None:
        check_output(output, "report")
    write_atomic(path, page(read_run(folder)))
    return path


def page(run: RunData) -> str:
    """The whole page as HTML. Whatever came from a model or a user is escaped; only our own script may run."""
    samples = sample_views(run.samples)
    sections = _sections(run, samples)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>'
        for name, title, body in sections
    )
    script = "".join(asset(name) for name in SCRIPTS)
    drawn = _json_for_script({"curves": curves(run.metrics, run.evaluation), "samples": samples})
    title = f"{in_html(run.name)} · {title_of('report')}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(script)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{asset('style.css')}</style>\n</head>\n<body>\n"
        f'<header><h1>{in_html(run.name)}</h1><button type="button" id="theme">Light / dark</button></header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n{headline(run)}\n'
        "<noscript><p>The curves and tokens are drawn by this page's script, which is switched off.</p></noscript>\n"
        f'{bodies}\n<div id="tip" role="status" hidden></div>\n'
        f'<script type="application/json" id="data">{drawn}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """The text of a file in report/assets, which the page holds inline."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _sections(run: RunData, samples: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The page's non-empty sections in order: anchor, title, HTML."""
    sections = [("curves", "Curves", CURVES)]
    if run.evaluation:
        title = "Held-out records" if run.job == "reward" else "Before and after"
        sections.append(("evaluation", title, evaluation_table(run.evaluation)))
    if run.evaluation and (texts := side_by_side(run.evaluation)):
        sections.append(("side-by-side", "Samples side by side", texts))
    if samples["tokens"]:
        sections.append(("token-views", "Token by token", TOKENS))
    if samples["texts"]:
        sections.append(("over-training", "Samples over training", TEXTS))
    settings = f"<details><summary>config.toml</summary><pre>{in_html(run.config_text)}</pre></details>"
    sections.append(("config", "Settings", settings))
    return sections


CURVES = """<div class="controls">
<label>over <select id="axis"><option>step</option><option>minutes</option></select></label>
<label>smoothing <input type="range" id="smoothing" min="0" max="0.95" step="0.05">
<span id="smoothing-value"></span></label>
<span class="note">drag: zoom; double click: whole run; a name above a plot: that curve on or off;
smoothed curves are drawn over the values themselves</span>
</div><div id="plots"></div><p class="note" id="curve-notes"></p>"""

TOKENS = """<div class="controls"><div class="buttons" id="token-quantity" role="group" aria-label="Colour by"></div>
<div class="buttons" id="token-step" role="group" aria-label="Step"></div></div>
<div class="legend" id="legend"></div><div id="tokens"></div>"""

TEXTS = """<div class="controls"><button type="button" id="text-back" aria-label="Earlier">←</button>
<label><input type="range" id="text-step" min="0"><span id="text-step-value"></span></label>
<button type="button" id="text-on" aria-label="Later">→</button></div>
<p class="note" id="text-notes"></p><div id="texts"></div>"""


def _json_for_script(value: Any) -> str:
    """JSON that cannot close the script element around it, whatever texts it holds; the script shows them as text."""
    text = json.dumps(_on_screen(plain(value)), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _on_screen(value: Any) -> Any:
    """The value with every text in it, names too, as `on_screen` shows it."""
    if isinstance(value, str):
        return on_screen(value)
    if isinstance(value, dict):
        return {_on_screen(name): _on_screen(item) for name, item in value.items()}
    return [_on_screen(item) for item in value] if isinstance(value, list) else value


def _policy(script: str) -> str:
    """A content security policy: the browser may load nothing and run only this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
