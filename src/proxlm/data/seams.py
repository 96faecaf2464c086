"""The seam between what a model is given and what it writes, which are tokenised apart.

A model learns from whole texts which tokens come before a reply. If a prompt ends in a space, the whole text has the
space in the reply's first token ("▁the"), and the prompt alone has it in a token of its own. The model has never seen
that one there: it may end at once, or write nonsense.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from proxlm.data.chat import encode_rendered
from proxlm.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_log = logging.getLogger(__name__)
# So many texts of a tokenizer are looked at, and so many characters at the end of each.
_TEXTS, _CHARACTERS = 64, 200
# How many are left to look at.
_left: WeakKeyDictionary[Tokenizer, int] = WeakKeyDictionary()


def seam_problem(tokenizer: Tokenizer, text: str) -> str | None:
    """What is wrong with the end of a text that the model is to continue, or None.

    Its tokens alone are compared with its tokens when a word follows, as it would in a text of a data set.
    """
    end = text[-_CHARACTERS:]
    alone = encode_rendered(tokenizer, end)
    for word in (" the", ".") if end[-1:].isalnum() else ("The", "the", "a", "1"):
        together = encode_rendered(tokenizer, end + word)
        if together[: len(alone)] != alone:
            return (
                f'a text that the model continues ends in "{shown(end[-12:])}": with a reply such as "{word}" the'
                " tokenizer makes other tokens of that end, so that a model which learnt from whole texts does not"
                " know it; leave out white space there"
            )
    return None


def check_seams(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Warn, once for a tokenizer, if one of the first texts has an end that a model may not know."""
    for text in islice(texts, _left.get(tokenizer, _TEXTS)):
        _left[tokenizer] = _left.get(tokenizer, _TEXTS) - 1
        if (problem := seam_problem(tokenizer, text)) is not None:
            _left[tokenizer] = 0
            _log.warning("%s", problem)
            return
