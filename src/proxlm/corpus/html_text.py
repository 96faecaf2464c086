"""HTML as plain text, in time that grows with its length whatever it holds.

The parser of Python's library takes time with the square of the length for tags and comments that do not end, so the
markup is found here; entities are the library's.
"""

from __future__ import annotations

import html
import re

_BLOCK_NAMES = """
address article aside blockquote br center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5
h6 header hr li main nav ol option p pre section summary table tbody tfoot thead title tr ul
"""
_INLINE_NAMES = """
a abbr b body code em font head html i img input label meta link small span strong sub sup tt u
"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_PARAGRAPHS = frozenset(
    ("blockquote", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "table", "ul")
)
_CELLS = frozenset(("td", "th"))
_UNSEEN = frozenset(("script", "style", "template", "noscript", "svg"))
_KNOWN = "|".join(sorted(_BLOCKS | _CELLS | _UNSEEN | set(_INLINE_NAMES.split())))
_TAG = re.compile(rf"<(?:/?(?:{_KNOWN})(?:\s[^<>]*)?/?>|!doctype\b|!--)", re.IGNORECASE)
_NAME = re.compile(r"</?([A-Za-z][A-Za-z0-9-]{0,40})")
_SPACE = re.compile(r"\s+")
_QUOTED = re.compile("\"[^\"]*\"|'[^']*'")
_OPEN_VALUE = re.compile("=\\s*([\"'])")


def looks_like_html(text: str) -> bool:
    """Whether a known tag or a comment is in the text."""
    return _TAG.search(text) is not None


def html_to_text(source: str) -> str:
    """The text that a browser would show: a line for each block, a blank line around paragraphs, entities resolved.

    Scripts, styles and comments are left out; a comment or script that does not end takes the rest with it, as in a
    browser. White space counts in <pre> alone.
    """
    shown: list[str] = []
    at, in_pre, quotes = 0, 0, {'"', "'"}
    while (start := source.find("<", at)) >= 0:
        _add(shown, source[at:start], in_pre > 0)
        if source.startswith("<!--", start):
            at = _after(source, "-->", start + 4)
            continue
        name = _NAME.match(source, start)
        if name is None and source[start + 1 : start + 2] not in ("!", "?"):
            _add(shown, "<", True)
            at = start + 1
            continue
        end = _tag_end(source, start, quotes)
        if end < 0:  # no tag ends behind this place
            _add(shown, source[start:], in_pre > 0)
            at = len(source)
            break
        at = end + 1
        if name is None:
            continue
        tag, closes = name[1].lower(), source[start + 1] == "/"
        if tag in _UNSEEN and not closes and source[end - 1] != "/":
            found = re.compile(f"</{tag}", re.IGNORECASE).search(source, at)
            at = found.start() if found else len(source)
        elif tag in _BLOCKS:
            shown.append("\n\n" if tag in _PARAGRAPHS else "\n")
            if tag == "pre":
                in_pre = max(0, in_pre + (-1 if closes else 1))
        elif tag in _CELLS and not closes:
            shown.append(" ")
    _add(shown, source[at:], in_pre > 0)
    lines = [line.rstrip() for line in "".join(shown).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _add(shown: list[str], text: str, as_it_is: bool) -> None:
    if not text:
        return
    if not as_it_is:
        text = _SPACE.sub(" ", text)
        if text[0] == " " and (not shown or shown[-1][-1:] in ("\n", " ")):
            text = text[1:]
    if text:
        shown.append(html.unescape(text).replace("\xa0", " "))


def _after(source: str, mark: str, start: int) -> int:
    found = source.find(mark, start)
    return found + len(mark) if found >= 0 else len(source)


def _tag_end(source: str, start: int, quotes: set[str]) -> int:
    """Where the tag that begins at `start` ends, a > in quotation marks left out; -1: nowhere.

    quotes: the marks that still occur; one that is not found is removed, so that it is not looked for again.
    """
    end = source.find(">", start)
    while end >= 0:
        open_mark = _open_quote(source[start:end])
        if open_mark not in quotes:
            return end
        closing = source.find(open_mark, end)
        if closing < 0:
            quotes.discard(open_mark)
            return end
        start, end = closing + 1, source.find(">", closing)
    return -1


def _open_quote(tag: str) -> str:
    """The quotation mark of a value that has not ended in this beginning of a tag; "": none."""
    found = _OPEN_VALUE.search(_QUOTED.sub("", tag))
    return found[1] if found else ""
