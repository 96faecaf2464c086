"""Unicode in one form, and what cannot be seen left out."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from proxlm.text import without_controls

# CRLF, CR, VT, FF, FS to RS, NEL, and the line and paragraph separators.
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n{3,}")


def normalised(
    text: str, form: Literal["NFC", "NFKC", "none"] = "NFC", controls: bool = True, spaces: bool = False
) -> str:
    """The text with LF line ends, in one Unicode form. Doing it again changes nothing.

    Args:
        text: Any text.
        form: The normal form.
        controls: Leave out control, bidirectional and zero-width characters except tab and line end. A joiner
            between letters or emoji stays.
        spaces: Leave out white space at the ends of lines, and blank lines after the first of several.
    """
    plain = text.isascii() and text.replace("\n", "").replace("\t", "").isprintable()
    text = text if plain else _LINE_END.sub("\n", text)
    if controls and not plain:
        text = without_controls(text, keep="\n\t")
    if form != "none" and not unicodedata.is_normalized(form, text):
        text = unicodedata.normalize(form, text)
    if spaces:
        text = _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip("\n")
    return text
