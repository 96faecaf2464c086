"""How foreign text is shown in a message: on one line, shortened, with control characters spelled out.

Foreign text is whatever the program did not write itself: names and values of files and settings, a model's
responses, and the messages of other libraries' errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_VALUE = 80
LONGEST_REASON = 300
LONGEST_LIST = 20

# C0 and C1 controls (ESC and DEL among them), bidirectional controls, line and paragraph separators, the byte order
# mark, and lone surrogates, as which bytes that are not UTF-8 arrive.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    r"""The text with each control character as its escape: a line end as \n, ESC as \x1b, U+202E as \u202e.

    A terminal that prints the result obeys none of it, and every character stands where it was written.

    Args:
        text: Any text, also one with lone surrogates.
        keep: Control characters to leave as they are, "\n\t" for instance.

    Returns:
        Text that can be encoded and holds no control character except those in `keep`.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, limit: int) -> str:
    """The text, cut to `limit` characters of which the last is then "…"."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown(text: str, limit: int = LONGEST_VALUE) -> str:
    """Foreign text for a message: one line of at most `limit` characters, control characters spelled out."""
    # Cut first, so that a text of many megabytes costs nothing; an escape is never shorter than its character.
    return shortened(visible(text[: limit + 1]), limit)


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as a single space."""
    return " ".join(text.split())


def reason_of(error: BaseException, limit: int = LONGEST_REASON) -> str:
    """An error's own message, for the end of one of ours: one line; its type where it has no message."""
    return shown(one_line(str(error)), limit) or type(error).__name__


def headline(error: BaseException, limit: int = LONGEST_REASON) -> str:
    """The first line of an error's message, for libraries that add pages of advice; its type without a message."""
    return shown(str(error).strip().split("\n")[0].strip(), limit) or type(error).__name__


def system_reason(error: OSError) -> str:
    """What the operating system said, without the error's number and path ("Permission denied")."""
    return error.strerror or reason_of(error)


def listed(names: Iterable[str], empty: str = "none", most: int = LONGEST_LIST) -> str:
    """Names for a message: "a, b, c", the first `most` of them and how many more there are; `empty` for no names."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more or empty


def nearest(word: str, options: Iterable[str], least: float = 0.5) -> str | None:
    """The option that is spelled most like `word`; None if none is at least so much like it (0 to 1)."""
    return next(iter(get_close_matches(word, list(options), n=1, cutoff=least)), None)


def did_you_mean(word: str, options: Iterable[str], otherwise: str = "") -> str:
    """A hint for an unknown name: "did you mean NEAREST?", or `otherwise` if no option is near."""
    near = nearest(word, options)
    return f"did you mean {shown(near)}?" if near is not None else otherwise


def suggestion(word: str, options: Iterable[str], listing: str) -> str:
    """A hint for an unknown name that says what there is: "did you mean NEAREST? " if one is near, and `listing`."""
    return f"{did_you_mean(word, options)} {listing}".lstrip()
