"""What a tokenizer makes of a text: how many tokens, how many of them unknown or parts of characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from proxlm.config.signature import checked
from proxlm.data.documents import Documents
from proxlm.data.han import HAN
from proxlm.data.tokenizer import INCOMPLETE, decode
from proxlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Each Han character counts as a word; other words are what white space separates.
_WORDS = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
_PART = 2**16  # bytes of a text at a time


@dataclass
class TextCounts:
    """What a tokenizer made of a text.

    Attributes:
        documents: Number of documents.
        bytes: Its size in UTF-8.
        characters: Unicode characters.
        words: What white space separates; each Han character is one.
        tokens: Without special ones.
        unknown: Tokens that stand for what has no token.
        parts: Tokens that are part of a character, or end or begin inside one.
        changed: Documents that decode to another text, apart from white space at their ends.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    parts: int = 0
    changed: int = 0

    @property
    def bytes_per_token(self) -> float:
        """How much text a token holds; more is better at the same vocabulary."""
        return self.bytes / max(1, self.tokens)

    @property
    def tokens_per_word(self) -> float:
        """Fertility (Ács 2019; Rust et al. 2021); 1: every word is one token."""
        return self.tokens / max(1, self.words)

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / max(1, self.characters)


@dataclass
class TokenizerReport:
    """What a tokenizer makes of texts.

    Attributes:
        name: The tokenizer's.
        vocabulary: Its tokens, special ones included.
        special: Its special tokens.
        used: Of its other tokens, how many stand in the texts.
        whole: All texts together.
        texts: Each text, by its name.
        longest: Its longest tokens, as text.
    """

    name: str
    vocabulary: int
    special: int
    used: int = 0
    whole: TextCounts = field(default_factory=TextCounts)
    texts: dict[str, TextCounts] = field(default_factory=dict)
    longest: list[str] = field(default_factory=list)

    @property
    def share_used(self) -> float:
        """Share of the vocabulary, special tokens apart, that stands in the texts."""
        return self.used / max(1, self.vocabulary - self.special)

    def as_json(self) -> dict[str, Any]:
        """All numbers, with the ratios."""
        found = asdict(self) | {"share_used": self.share_used}
        found["whole"] |= _ratios(self.whole)
        for name, counts in self.texts.items():
            found["texts"][name] |= _ratios(counts)
        return found


def _ratios(counts: TextCounts) -> dict[str, float]:
    return {
        name: getattr(counts, name) for name in ("bytes_per_token", "tokens_per_word", "tokens_per_character")
    }


@checked("texts")
def tokenizer_report(
    tokenizer: Any,
    texts: Iterable[str] | Mapping[str, Iterable[str]],
    name: str = "tokenizer",
    longest: int = 10,
) -> TokenizerReport:
    """What a tokenizer makes of texts that it was not trained on.

    Args:
        tokenizer: One of transformers.
        texts: Documents, or several named lists of them, each of which is counted by itself, too.
        name: The tokenizer's, for tables.
        longest: How many of its longest tokens to list.

    Raises:
        ConfigError: `tokenizer` is none, or `texts` are no texts.
        DataError: There is no text.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise ConfigError("tokenizer: expected a tokenizer of transformers")
    named = texts if isinstance(texts, Mapping) else {"text": texts}
    if any(isinstance(one, str | bytes) or not isinstance(one, Iterable) for one in named.values()):
        raise ConfigError("texts: expected a list of texts, or lists of texts by name")
    vocabulary = tokenizer.get_vocab()
    as_text = {token: decode(tokenizer, [token]) for token in vocabulary.values()}
    special = {*tokenizer.all_special_ids}
    partial = {token for token, text in as_text.items() if INCOMPLETE in text and token not in special}
    report = TokenizerReport(name, len(vocabulary), len(special & as_text.keys()))
    seen: set[int] = set()
    for group, documents in named.items():
        report.texts[str(group)] = counts = TextCounts()
        for document in documents:
            _count(tokenizer, document, counts, partial, seen)
        for attribute, value in asdict(counts).items():
            setattr(report.whole, attribute, getattr(report.whole, attribute) + value)
    if not report.whole.characters:
        raise DataError("texts: there is no text to report on")
    report.used = len(seen - special)
    plain = (text for token, text in as_text.items() if len(text) > 1 and token not in special | partial)
    report.longest = sorted(plain, key=lambda text: (-len(text), text))[:longest]
    return report


def _count(
    tokenizer: Tokenizer, document: Any, counts: TextCounts, partial: set[int], seen: set[int]
) -> None:
    """Add a document to the counts."""
    if not isinstance(document, str):
        raise ConfigError(f"texts: expected texts, got a {type(document).__name__}")
    size = len(document.encode("utf-8", "surrogatepass"))
    changed = False
    for part in [document] if size <= _PART else Documents([document]).parts(0, _PART):
        ids = tokenizer(part, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        counts.characters += len(part)
        counts.words += len(_WORDS.findall(part))
        counts.tokens += len(ids)
        counts.unknown += sum(token == tokenizer.unk_token_id for token in ids)
        counts.parts += sum(token in partial for token in ids)
        changed |= decode(tokenizer, ids).strip() != part.strip()
        seen.update(ids)
    counts.documents += 1
    counts.bytes += size
    counts.changed += changed
