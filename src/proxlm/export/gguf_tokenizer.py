"""A tokenizer as llama.cpp knows it: its tokens, how text is split before they are merged, and its special tokens.

llama.cpp has the ways of splitting in its own code, by name, so a tokenizer whose way has no name there cannot be
exported. Whether the ids are the same is then tried on texts (compare.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.errors import ModelError
from proxlm.models.language_model import LanguageModel
from proxlm.text import shown

# gguf's numbers of what a token is.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is split before merging, as the tokenizers library describes it → llama.cpp's name.
_PLAIN = ("ByteLevel", True)
_SPLITS: Mapping[tuple[Any, ...], str] = {
    (_PLAIN,): "gpt-2",
    (("Digits", True), _PLAIN): "smollm",
    (
        ("Split", rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"),
        ("ByteLevel", False),
    ): "qwen2",
    (
        ("Split", rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"),
        ("ByteLevel", False),
    ): "llama-bpe",
}
_SPACE = "▁"


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says of the tokenizer.

    Attributes:
        kind: llama.cpp's name of the algorithm: gpt2 (byte-level BPE) or llama (BPE of SentencePiece's kind).
        pre: llama.cpp's name of the split before merging; "": none.
        tokens: By id, one for every row of the embedding.
        types: Of each token, in gguf's numbers.
        merges: Of gpt2: pairs, the first one merged first.
        scores: Of llama: of each token; the higher is merged first.
        special: The ids of bos, eos, eot, unk and pad, where there are some.
        adds: Whether encoding puts BOS first and EOS last.
        space_first: Whether a space is put before a text.
        chat_template: Jinja, or "".
    """

    kind: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    special: Mapping[str, int]
    adds: tuple[bool, bool]
    space_first: bool
    chat_template: str

    def add_to(self, writer: Any) -> None:
        """Put it into a GGUFWriter's settings."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre or "default")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds[0])
        writer.add_add_eos_token(self.adds[1])
        writer.add_add_space_prefix(self.space_first)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def tokenizer_for_gguf(model: LanguageModel) -> GgufTokenizer:
    """The model's tokenizer for a GGUF file.

    Raises:
        ModelError: It is of a kind that llama.cpp does not know, or has more tokens than the embedding.
    """
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(model, "its tokenizer is not one of the tokenizers library (tokenizer.json)")
    state = json.loads(backend.to_str())
    found, rows = state["model"], model.network.get_input_embeddings().weight.shape[0]
    if found["type"] != "BPE":
        raise _refused(model, f"its tokenizer is of the kind {shown(str(found['type']), 20)}; BPE is needed")
    names = tokenizer.get_vocab()
    if (last := max(names.values(), default=-1)) >= rows:
        raise _refused(model, f"its tokenizer has {last + 1} tokens, its embedding {rows} rows")
    tokens, types = _tokens(tokenizer, names, rows)
    begin = tokenizer("a")["input_ids"]
    adds = (begin[0] == tokenizer.bos_token_id, len(begin) > 1 and begin[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    common: dict[str, Any] = {
        "tokens": tokens, "types": types, "special": _special(model), "adds": adds,
        "chat_template": template if isinstance(template, str) else "",
    }  # fmt: skip
    if found.get("byte_fallback"):
        if not found["merges"]:
            common["tokens"] = _with_space(model, state, tokens)
            space_first = False
        else:
            space_first = _sentence_piece(model, state)
        return GgufTokenizer(
            "llama", "", merges=(), scores=_scores(found, tokens), space_first=space_first, **common
        )
    if found.get("unk_token") is not None and not _is_byte_level(state):
        raise _refused(model, "unknown characters are one token each; llama.cpp spells them in bytes")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in found["merges"]]
    return GgufTokenizer(
        "gpt2", _split_name(model, state), merges=merges, scores=(), space_first=False, **common
    )


def _tokens(tokenizer: Any, names: Mapping[str, int], rows: int) -> tuple[list[str], list[int]]:
    """The tokens by id with their types; rows of the embedding that no token has are called [PAD<id>]."""
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [_UNUSED] * rows
    for name, i in names.items():
        tokens[i], types[i] = name, _NORMAL
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            types[i] = _BYTE
    for i, added in tokenizer.added_tokens_decoder.items():
        types[i] = _CONTROL if added.special else _USER_DEFINED
    for i in tokenizer.all_special_ids:
        types[i] = _CONTROL
    if (unknown := tokenizer.unk_token_id) is not None and unknown not in (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ):
        types[unknown] = _UNKNOWN
    return tokens, types


def _special(model: LanguageModel) -> dict[str, int]:
    tokenizer, end = model.tokenizer, model.turn_end
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    if end.own is not None and end.own != tokenizer.eos_token_id:
        ids["eot"] = end.own
    return {name: i for name, i in ids.items() if i is not None}


def _split_name(model: LanguageModel, state: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way that a byte-level tokenizer splits text."""
    splitter = state["pre_tokenizer"] or {}
    steps = splitter.get("pretokenizers", [splitter])
    name = _SPLITS.get(tuple(_step(step) for step in steps))
    whole = bool(state["model"].get("ignore_merges"))
    normal = (state["normalizer"] or {}).get("type")
    if name is None or normal not in ((None, "NFC") if name == "qwen2" else (None,)):
        what = ", ".join(str(step.get("type")) for step in steps if step) or "nothing"
        raise _refused(model, f"llama.cpp has no name for how its tokenizer splits text ({shown(what, 60)})")
    if whole and name != "llama-bpe":
        raise _refused(model, "its tokenizer takes whole words without merging (ignore_merges)")
    return name


def _is_byte_level(state: Mapping[str, Any]) -> bool:
    splitter = state["pre_tokenizer"] or {}
    return any(step.get("type") == "ByteLevel" for step in splitter.get("pretokenizers", [splitter]))


def _step(step: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """A step of splitting in the form of _SPLITS; None for one that is in none of them."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, bool(step.get("use_regex", True))
    if kind == "Digits":
        return kind, bool(step.get("individual_digits"))
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return kind, step.get("pattern", {}).get("Regex")
    return None


def _sentence_piece(model: LanguageModel, state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer of SentencePiece's kind puts a space first. Raises ModelError for one of another form."""
    normal, splitter = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    steps = normal.get("normalizers", [normal] if normal else [])
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first = {"type": "Prepend", "prepend": _SPACE}
    if not splitter and steps in ([spaces], [first, spaces]):
        return first in steps
    plain = splitter.get("type") == "Metaspace" and splitter.get("replacement") == _SPACE
    if plain and not splitter.get("split", True) and not steps:
        return bool(splitter.get("prepend_scheme") != "never")
    raise _refused(
        model, "its tokenizer normalises or splits text as llama.cpp's SentencePiece kind does not"
    )


def _with_space(model: LanguageModel, state: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    """The tokens of a tokenizer of single characters, whose space llama.cpp calls ▁."""
    if state["normalizer"]:
        raise _refused(model, "its tokenizer changes text before it reads it (normaliser)")
    if _SPACE in tokens:
        raise _refused(model, f"its tokenizer has a token {_SPACE}, which llama.cpp takes for a space")
    return [_SPACE if token == " " else token for token in tokens]


def _scores(found: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Minus the place of the first merge that makes each token; 0 for those that none makes."""
    ranks: dict[str, int] = {}
    for place, pair in enumerate(found["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, place)
    return [-float(ranks[token] + 1) if token in ranks else 0.0 for token in tokens]


def _refused(model: LanguageModel, why: str) -> ModelError:
    return ModelError(f"{model.source}: cannot be written as GGUF: {why}")
