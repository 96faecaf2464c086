"""Secrets in text that leaves the program: what came from `env:NAME` is replaced by `env:NAME`.

`hide` receives every value that settings took from the environment; `masked` is applied at the few places where text
leaves: the streams of a command, errors, and the files of a run. Texts that have the shape of a token, a password
in a URL or a private key are secrets wherever they stand in settings and errors (`without_tokens`).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus

SHORTEST = 6
"""A value of fewer characters cannot be told from ordinary text and is not masked; nor is one plain short word."""

UNSHOWN = "(a secret, not shown)"

_hidden: dict[str, str] = {}
_pattern: re.Pattern[str] | None = None

_ENDS = r"(?![A-Za-z0-9])"
# Tokens by their prefixes: OpenAI, Anthropic, Stripe, Hugging Face, GitHub, GitLab, Slack, AWS, Google, npm, PyPI, …
_PREFIXED = (
    r"(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|xapp-|npm_|pypi-|gsk_|r8_|nvapi-|pplx-|dop_v1_|ya29\."
    r"|[rsp]k_(?:live|test)_|SG\.)(?=[\w.-]{12})(?=[a-z_-]*[A-Z0-9]|[\w-]{20})[\w.-]+"
)
_SK = r"sk-(?:[a-z]+\d*-)*(?=\w{12})(?=[a-z_]*[A-Z0-9]|\w{20})[\w-]+"
_KEYS = r"(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{12,}"
_JWT = r"eyJ[\w-]+\.[\w-]+\.[\w-]*"
_HEADER = (
    r"(?i:bearer|basic|token|apikey)[ \t]+(?=[\w.~+/=-]{8})(?=\S*(?:[a-z]\S*[A-Z]|[0-9]))(?=\S*[A-Za-z])[\w.~+/=-]+"
    r"|(?i:bearer)[ \t]+[\w-]{16,}"
)
_PEM = r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
_IN_URL = r"(?<=://)[^\s/?#@:]*:[^\s/?#@]+(?=@)|(?<=://)[^\s/?#@:]{16,}(?=@)"
_IN_QUERY = (
    r"(?i:(?<=[?&;#])(?:[\w.-]*(?:token|secret|password|passwd|pwd|passphrase|signature|credential|apikey)"
    r"|(?:[\w.-]*[_.-])?(?:key|sig|auth))=)(?!env:)[^\s&;#\"']{4,}"
)
_PAIR = (
    r"(?i:(?:password|passwd|pwd|passphrase|api[_-]?key|secret[_-]?key|access[_-]?key"
    r"|access[_-]?token|auth[_-]?token|client[_-]?secret|private[_-]?key)[\"']?[ \t]*[=:][ \t]*[\"']?)"
    r"(?!env:|\(a secret)(?:(?=[^\s,;&\"']*[0-9])[^\s,;&\"']{4,}|[^\s,;&\"']{12,})"
)
_SLACK = r"(?<=hooks\.slack\.com/services/)[\w/]{20,}"
_TOKEN = re.compile(
    rf"(?<![\w-])(?:{_PREFIXED}|{_SK}|{_KEYS}|{_JWT}|{_HEADER}){_ENDS}|{_PEM}|{_IN_URL}|{_IN_QUERY}|{_PAIR}|{_SLACK}"
)


def holds_token(text: str) -> bool:
    """Whether some part of the text has the shape of a secret."""
    return _TOKEN.search(text) is not None


def without_tokens(text: str) -> str:
    """The text with every part that has the shape of a secret replaced."""
    return _TOKEN.sub(UNSHOWN, text)


def hide(value: str, name: str) -> None:
    """From now on `masked` replaces the value, as it is or as JSON, Python, URLs and HTML spell it, by `name`."""
    global _pattern
    for part in {value, " ".join(value.split()), *value.splitlines()}:
        for spelled in _spellings(part.strip()):
            if _is_masked(spelled):
                _hidden.setdefault(spelled, name)
    if _hidden:
        longest_first = sorted(_hidden, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))


def masked(text: str) -> str:
    """The text without the values that came from the environment."""
    return text if _pattern is None else _pattern.sub(lambda found: _hidden[found[0]], text)


def masked_tree(value: Any) -> Any:
    """What JSON holds, with every text in it masked, names too."""
    if _pattern is None:
        return value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {masked(name) if isinstance(name, str) else name: masked_tree(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked_tree(item) for item in value]
    return value


def mask_error(error: BaseException) -> None:
    """Mask the arguments of an error and of those that it came from, in place, before a traceback prints them."""
    waiting, seen = [error], set[int]()
    while waiting and _pattern is not None:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(masked(part) if isinstance(part, str) else part for part in one.args)
        if notes := getattr(one, "__notes__", None):
            notes[:] = [masked(note) if isinstance(note, str) else note for note in notes]
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _spellings(value: str) -> set[str]:
    return {
        value,
        repr(value)[1:-1],
        ascii(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        html.escape(value),
    }


def _is_masked(value: str) -> bool:
    return len(value) >= 8 or (len(value) >= SHORTEST and not (value.isalpha() and value.islower()))
