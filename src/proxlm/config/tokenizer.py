"""How a tokenizer that is trained splits text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting

Problems = list[tuple[str, str]]


@dataclass(frozen=True)
class TokenizerSettings:
    """How a tokenizer that is trained splits text."""

    kind: Literal["bpe", "unigram", "wordpiece", "characters"] = setting(
        "bpe",
        "bpe: byte pairs (Sennrich et al. 2016); unigram: pieces of a likelihood (Kudo 2018); wordpiece: BERT's,"
        " which loses white space; characters: each is a token",
    )
    whole_han: int = setting(
        0,
        "each Han (Chinese) character that stands in the text at least so often is one token, never joined to others"
        " and never in bytes; 0: as it comes",
        ge=0,
    )
    unknown: Literal["auto", "bytes", "unk"] = setting(
        "auto",
        "what has no token is spelled in bytes, or is the token <|unk|>; auto: bytes, with wordpiece unk. With unk no"
        " part of a character can ever be sampled",
    )
    normalise: Literal["none", "nfc", "nfkc"] = setting(
        "none", "Unicode form that text is brought into; nfkc also makes full-width letters and digits plain"
    )
    lowercase: bool = setting(False, "text is read in lowercase")
    strip_accents: bool = setting(False, "text is read without accents: é as e")
    digits: bool = setting(False, "each digit is a token of its own")
    special: list[str] = setting(
        factory=list, help="further special tokens, of a chat template for instance, such as <|im_start|>"
    )

    @property
    def in_bytes(self) -> bool:
        """Whether what has no token is spelled in bytes."""
        return self.unknown == "bytes" or (self.unknown == "auto" and self.kind != "wordpiece")

    @property
    def byte_level(self) -> bool:
        """Whether all tokens are made of bytes, as GPT-2's are: a character may be in several."""
        return self.kind == "bpe" and self.in_bytes and not self.whole_han


def tokenizer_problems(key: str, settings: TokenizerSettings) -> Problems:
    """Problems of the section `key`, which describes a tokenizer that is trained."""
    found: Problems = []
    if settings.kind == "wordpiece" and settings.unknown == "bytes":
        found.append((f"{key}.unknown", "wordpiece has no bytes; set unk, or another kind"))
    special = settings.special
    for token in special:
        if len(token) < 2 or token != token.strip():
            found.append((f"{key}.special", f"{token!r}: a special token has two characters or more, and no white"
                          " space at its ends"))  # fmt: skip
    if len({*special}) < len(special):
        found.append((f"{key}.special", "names a token twice"))
    return found
