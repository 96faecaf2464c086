"""docs/*.md → build/docs/*.html: pages that need no network, formulas as MathML. Needs the extra proxlm[docs].

python docs/build.py [OUTPUT FOLDER]
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from xml.etree.ElementTree import fromstring

from latex2mathml.converter import convert
from markdown_it import MarkdownIt

DOCS = Path(__file__).parent
STYLE = """
body { font: 17px/1.5 Georgia, "DejaVu Serif", serif; color: #1b1b1b;
  max-width: 58em; margin: 2em auto; padding: 0 1em }
h1, h2, h3 { font-family: system-ui, "DejaVu Sans", sans-serif; line-height: 1.2; margin-top: 1.6em }
code, pre { font: 0.85em ui-monospace, "DejaVu Sans Mono", monospace; background: #f4f4f2 }
pre { padding: 0.8em; overflow-x: auto } pre code { background: none; font-size: 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { border: 1px solid #ccc; padding: 0.25em 0.6em }
td, th { text-align: left; vertical-align: top }
math { font: 1.1em "STIX Two Math", "Latin Modern Math", "Cambria Math", "DejaVu Math TeX Gyre", math }
 math[display="block"] { margin: 0.9em 0 } a { color: #0b5394 }
"""
# Fenced and inline code first, so that a dollar in code is no formula; then $$…$$, then $…$ or GitHub's $`…`$.
PIECES = re.compile(
    r"(?P<code>^```.*?^```$|`[^`\n]+`)"
    r"|\$\$(?P<block>.+?)\$\$"
    r"|\$`(?P<quoted>[^`]+)`\$"
    r"|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$]*?[^\s$])?)\$(?![\w$])",
    re.DOTALL | re.MULTILINE,
)
# How many arguments an element of MathML has.
ARGUMENTS = {
    "mfrac": 2,
    "msub": 2,
    "msup": 2,
    "msubsup": 3,
    "munder": 2,
    "mover": 2,
    "munderover": 3,
    "mroot": 2,
}


class FormulaError(Exception):
    """A formula that cannot be shown; the message names its file and line."""


def mathml(tex: str, place: str, block: bool) -> str:
    """One formula as a <math> element on one line. Raises FormulaError where it cannot be converted."""
    tex = " ".join(tex.split())
    try:
        made = convert(tex, display="block" if block else "inline")
    except Exception as error:
        raise FormulaError(f"{place}: {type(error).__name__} in the formula ${tex}$: {error}") from error
    # A command that the converter does not know stays in its output as text, backslash included.
    unknown = re.search(r"(?:\\|&#x0005C;)[A-Za-z]+", made)
    if unknown:
        raise FormulaError(f"{place}: unknown command {html.unescape(unknown[0])} in the formula ${tex}$")
    lacking = [
        e.tag for e in fromstring(made).iter() if len(e) != ARGUMENTS.get(e.tag.split("}")[-1], len(e))
    ]
    if lacking or tex.replace("\\{", "").count("{") != tex.replace("\\}", "").count("}"):
        raise FormulaError(f"{place}: an argument or a brace is missing in the formula ${tex}$")
    return made


def page(text: str, name: str) -> str:
    """Markdown with formulas → a whole HTML page. name: the file's, for messages and the title."""
    formulas: list[str] = []

    def hold(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return found[0]
        tex = found["block"] or found["quoted"] or found["inline"]
        place = f"{name}:{text.count(chr(10), 0, found.start()) + 1}"
        formulas.append(mathml(tex, place, block=found["block"] is not None))
        return f"FORMULA{len(formulas) - 1}X"

    held = PIECES.sub(hold, text)
    body = str(MarkdownIt("commonmark", {"html": True}).enable("table").render(held))
    body = re.sub(r"FORMULA(\d+)X", lambda m: formulas[int(m[1])], body)
    body = re.sub(r'href="([^":#]+)\.md(#[^"]*)?"', r'href="\1.html\2"', body)
    body = re.sub(r"<(h[23])>(.*?)</\1>", _with_anchor, body)
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    head = f'<meta charset="utf-8"><title>{html.escape(title[1] if title else name)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}</body></html>\n'


def _with_anchor(found: re.Match[str]) -> str:
    """A heading with the anchor that GitHub gives it."""
    words = html.unescape(re.sub(r"<math.*?</math>|<[^>]+>", "", found[2])).lower()
    anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
    return f'<{found[1]} id="{html.escape(anchor)}">{found[2]}</{found[1]}>'


def build(source: Path, output: Path) -> list[Path]:
    """Every .md file of a folder as a page of the output folder. Raises FormulaError."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for file in sorted(source.glob("*.md")):
        target = output / f"{file.stem}.html"
        target.write_text(page(file.read_text(encoding="utf-8"), file.name), encoding="utf-8")
        written.append(target)
    return written


if __name__ == "__main__":
    try:
        pages = build(DOCS, Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "build" / "docs")
    except FormulaError as error:
        sys.exit(str(error))
    print(f"{len(pages)} pages in {pages[0].parent}")
