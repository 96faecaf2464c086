"""How foreign text is shown: control characters spelled out, secrets masked, in a message on one line and shortened.

Foreign text is whatever the program did not write itself: names and values of files and settings, a model's
responses, and the messages of other libraries' errors. `on_screen` is for a terminal, `in_html` for a page, `shown`
for a place in a message. The streams of a command apply `on_screen` to all that is printed (runlog/output.py).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from difflib import get_close_matches

from proxlm.masking import masked, without_tokens

LONGEST_VALUE = 80
LONGEST_REASON = 300
LONGEST_LIST = 20
_LONGEST_SECRET = 4096
_LONGEST_MESSAGE = 2**16

# C0 and C1 controls (ESC and DEL among them), bidirectional controls, line and paragraph separators, lone surrogates,
# as which bytes that are not UTF-8 arrive; and what takes no room: soft hyphen, zero-width spaces, fillers, tags.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_NO_WIDTH = (
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Joiners belong to emoji and to scripts whose letters join; elsewhere they hide.
_JOINED = "\u0600-\u109f\u1780-\u18aa\u2600-\u27bf\ufe0f\U0001f000-\U0001faff"
_JOINER = f"(?<![{_JOINED}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINED}])"
_CONTROL = re.compile(f"[{_CONTROLS}{_NO_WIDTH}]|{_JOINER}")


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


def without_controls(text: str, keep: str = "") -> str:
    """The text without its control characters, except those in `keep`; a joiner inside a word or an emoji stays."""
    while (less := _CONTROL.sub(lambda found: found[0] if found[0] in keep else "", text)) != text:
        text = less  # a joiner may have lost its neighbour
    return text


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def on_screen(text: str) -> str:
    """Text for a terminal or a log: it stays in its lines, nothing in it is obeyed, and no secret is in it."""
    return visible(masked(text), keep="\n\t")


def in_html(text: object) -> str:
    """Text for a page: as `on_screen`, and none of it is markup."""
    return html.escape(on_screen(str(text)))


def shortened(text: str, limit: int) -> str:
    """The text, cut to `limit` characters of which the last is then "…"."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown(text: str, limit: int = LONGEST_VALUE) -> str:
    """Foreign text for a message: one line of at most `limit` characters, control characters spelled out."""
    # Cut first, so that a text of many megabytes costs nothing; an escape is never shorter than its character. Before
    # that, secrets are masked, or the cut might leave a part of one.
    return shortened(visible(masked(text[: limit + _LONGEST_SECRET])[: limit + 1]), limit)


def short_line(text: str, limit: int) -> str:
    """A message of ours on one line of at most `limit` characters: a longer one loses its middle.

    Its beginning says where, and its end what to do.
    """
    if len(text) > 2 * (limit + _LONGEST_SECRET):  # so that a text of many megabytes costs nothing
        text = f"{text[: limit + _LONGEST_SECRET]}…{text[-limit - _LONGEST_SECRET :]}"
    line = visible(without_tokens(masked(text)))
    if len(line) <= limit:
        return line
    head = (limit - 3) * 2 // 3
    return f"{line[:head]} … {line[len(line) - (limit - 3 - head) :]}"


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as a single space."""
    return " ".join(text.split())


def _message(error: BaseException) -> str:
    """An error's message, the beginning of a very long one; a user's error may fail even to give it."""
    try:
        return str(error)[:_LONGEST_MESSAGE]
    except Exception:
        return ""


def reason_of(error: BaseException, limit: int = LONGEST_REASON) -> str:
    """An error's own message, for the end of one of ours: one line; its type where it has no message."""
    return shown(one_line(masked(_message(error))), limit) or type(error).__name__


def headline(error: BaseException, limit: int = LONGEST_REASON) -> str:
    """The first line of an error's message, for libraries that add pages of advice; its type without a message."""
    return shown(masked(_message(error)).strip().split("\n")[0].strip(), limit) or type(error).__name__


def system_reason(error: OSError) -> str:
    """What the operating system said, without the error's number and path ("Permission denied")."""
    return error.strerror or reason_of(error)


def listed(names: Iterable[str], empty: str = "none", most: int = LONGEST_LIST) -> str:
    """Names for a message: "a, b, c", the first `most` of them and how many more there are; `empty` for no names."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more or empty


def counted(number: int, what: str) -> str:
    """A number with what it counts: "1 prompt", "0 tests", "1,024 records"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def nearest(word: str, options: Iterable[str], least: float = 0.5) -> str | None:
    """The option that is spelled most like `word`; None if none is at least so much like it (0 to 1)."""
    if len(word) > LONGEST_VALUE:  # finding a likeness takes time with the square of the length
        return None
    return next(iter(get_close_matches(word, list(options), n=1, cutoff=least)), None)


def did_you_mean(word: str, options: Iterable[str], otherwise: str = "") -> str:
    """A hint for an unknown name: "did you mean NEAREST?", or `otherwise` if no option is near."""
    near = nearest(word, options)
    return f"did you mean {shown(near)}?" if near is not None else otherwise


def suggestion(word: str, options: Iterable[str], listing: str) -> str:
    """A hint for an unknown name that says what there is: "did you mean NEAREST? " if one is near, and `listing`."""
    return f"{did_you_mean(word, options)} {listing}".lstrip()
