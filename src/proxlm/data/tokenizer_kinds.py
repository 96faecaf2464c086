"""The kinds of tokenizers that are trained here, as backends of the library `tokenizers`."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from proxlm.config.tokenizer import TokenizerSettings
from proxlm.data.documents import Documents
from proxlm.data.han import HAN
from proxlm.errors import ConfigError, DataError
from proxlm.text import reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BOS, EOS, PAD, UNK = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# How GPT-2 splits text into words; a word keeps the space before it, so nothing is lost.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_INSIDE = "##"  # before a token of WordPiece that does not begin a word


def trained_backend(texts: Iterable[str], vocabulary: int, settings: TokenizerSettings) -> Backend:
    """A tokenizer of the given kind, without a post-processor; special tokens have the first ids.

    Args:
        texts: What to train on.
        vocabulary: The most tokens.
        settings: Its kind.

    Raises:
        ConfigError: The vocabulary is too small for what has to be in it.
        DataError: The texts hold nothing to train on.
    """
    special = special_tokens(settings)
    if settings.byte_level:
        return _byte_level(texts, vocabulary, special, settings)
    texts = texts if iter(texts) is not texts else Documents(texts)  # they are read twice
    spelled = BYTES if settings.in_bytes else ()
    room = vocabulary - len(special) - len(spelled)
    normalizer = _normalizer(settings)
    counts = _character_counts(texts, normalizer)
    alphabet = _alphabet(counts, room, settings)
    if settings.kind == "characters":
        vocab = {token: i for i, token in enumerate([*special, *spelled, *alphabet])}
        return _finished(_bpe(vocab, [], settings), special, settings)
    known = _known_runs(texts, normalizer, sorted(counts.keys() - set(alphabet)))
    inside = _inside_words(alphabet, settings) if settings.kind == "wordpiece" else []
    model = _train(known, vocabulary - len(spelled), [*special, *inside], settings)
    return _finished(_with_bytes(model, special, spelled, settings), special, settings)


def special_tokens(settings: TokenizerSettings) -> list[str]:
    """The special tokens of a tokenizer, in the order of their ids."""
    unknown = [] if settings.in_bytes else [UNK]
    return [*dict.fromkeys([BOS, EOS, PAD, *unknown, *settings.special])]


def _byte_level(
    texts: Iterable[str], vocabulary: int, special: Sequence[str], settings: TokenizerSettings
) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    if (normalizer := _normalizer(settings)) is not None:
        backend.normalizer = normalizer
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if settings.digits else words
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _character_counts(texts: Iterable[str], normalizer: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text) if normalizer is not None else text)
    if not counts:
        raise DataError("the texts that a tokenizer is to be trained on are empty")
    return counts


def _alphabet(counts: Counter[str], room: int, settings: TokenizerSettings) -> list[str]:
    """The characters that get a token: the Han characters that were promised one, then the most frequent others."""
    is_han = re.compile(f"[{HAN}]").match
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    least = settings.whole_han
    promised = {c for c in by_count if least and counts[c] >= least and is_han(c)}
    left = room - len(promised)
    # WordPiece has a character twice: where it begins a word, and inside one. A whole Han character is a word.
    left = left // 2 if settings.kind == "wordpiece" else left
    if left < 1:
        raise ConfigError(
            f"vocabulary: {len(promised):,} Han characters, the special tokens and what else is needed leave no room;"
            f" at least {len(promised) - room + 2:,} more, or a higher whole_han, which counts rarer ones as unknown"
        )
    kept = {*promised, *[c for c in by_count if c not in promised][:left]}
    return [c for c in by_count if c in kept]


def _inside_words(alphabet: Sequence[str], settings: TokenizerSettings) -> list[str]:
    """The characters that may stand inside a word, as WordPiece writes them; given first, they have fixed ids."""
    alone = re.compile(rf"[\s{re.escape(string.punctuation)}{HAN if settings.whole_han else ''}]")
    return [f"{_INSIDE}{character}" for character in alphabet if not alone.match(character)]


def _known_runs(texts: Iterable[str], normalizer: Any, dropped: Sequence[str]) -> Iterator[str]:
    """The texts, cut where they have a character without a token."""
    cut = re.compile(f"[{re.escape(''.join(dropped))}]+") if dropped else None
    for text in texts:
        text = normalizer.normalize_str(text) if normalizer is not None else text
        yield from cut.split(text) if cut else (text,)


def _train(
    texts: Iterable[str], vocabulary: int, first: Sequence[str], settings: TokenizerSettings
) -> dict[str, Any]:
    """The trained model as it stands in a tokenizer.json; the tokens `first` come first."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    same: dict[str, Any] = {"vocab_size": vocabulary, "special_tokens": [*first], "show_progress": False}
    if settings.kind == "unigram":
        backend = Backend(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(**same, unk_token=PAD)
    elif settings.kind == "wordpiece":
        backend = Backend(models.WordPiece(unk_token=UNK))
        trainer = trainers.WordPieceTrainer(**same, continuing_subword_prefix=_INSIDE)
    else:
        backend = Backend(models.BPE())
        trainer = trainers.BpeTrainer(**same)
    backend.pre_tokenizer = _pre_tokenizer(special_tokens(settings), settings)
    try:
        backend.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"the tokenizer cannot be trained on these texts: {reason_of(error, 160)}") from error
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    return model


def _with_bytes(
    model: dict[str, Any], special: Sequence[str], spelled: Sequence[str], settings: TokenizerSettings
) -> Any:
    """The trained model with the tokens of bytes behind the special ones."""
    from tokenizers import models

    if settings.kind == "unigram":
        # The library adds up in an order that changes from call to call: the last digits of the scores do, too.
        scores = {piece: round(score, 6) for piece, score in model["vocab"] if piece not in special}
        pieces = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        lowest = min((score for _, score in pieces), default=0.0)
        first = [(token, lowest) for token in (*special, *spelled)]
        # Nothing is unknown where all bytes have a token, but the library wants an id.
        unknown = special.index(PAD if settings.in_bytes else UNK)
        return models.Unigram([*first, *pieces], unk_id=unknown, byte_fallback=settings.in_bytes)
    known = sorted(model["vocab"], key=model["vocab"].get)
    order = [*special, *spelled, *(token for token in known if token not in special)]
    vocab = {token: i for i, token in enumerate(order)}
    if settings.kind == "wordpiece":
        return models.WordPiece(vocab, unk_token=UNK, continuing_subword_prefix=_INSIDE)
    return _bpe(vocab, [tuple(pair) for pair in model["merges"]], settings)


def _bpe(vocab: dict[str, int], merges: Sequence[Any], settings: TokenizerSettings) -> Any:
    from tokenizers import models

    if settings.in_bytes:
        return models.BPE(vocab, [*merges], byte_fallback=True)
    return models.BPE(vocab, [*merges], unk_token=UNK, fuse_unk=False)


def _finished(model: Any, special: Sequence[str], settings: TokenizerSettings) -> Backend:
    from tokenizers import AddedToken, decoders
    from tokenizers import Tokenizer as Backend

    backend = Backend(model)
    if (normalizer := _normalizer(settings)) is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = _pre_tokenizer(special, settings)
    if settings.kind == "wordpiece":
        backend.decoder = decoders.WordPiece(prefix=_INSIDE, cleanup=False)
    elif settings.in_bytes:
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def _normalizer(settings: TokenizerSettings) -> Any:
    from tokenizers import normalizers

    steps: list[Any] = []
    if settings.strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    if settings.normalise != "none":
        steps.append(normalizers.NFC() if settings.normalise == "nfc" else normalizers.NFKC())
    if settings.lowercase:
        steps.append(normalizers.Lowercase())
    return normalizers.Sequence(steps) if steps else None


def _pre_tokenizer(special: Sequence[str], settings: TokenizerSettings) -> Any:
    """What is never joined: words, whole Han characters, digits, and what spells the name of a token."""
    from tokenizers import Regex, pre_tokenizers

    # A text may spell <|eos|> or <0x41>; its pieces must never make up that token.
    names = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in special)
    steps: list[Any] = [pre_tokenizers.Split(Regex(rf"{names}|<(?=0x[0-9A-F]{{2}}>)"), "isolated")]
    if settings.whole_han:
        steps.append(pre_tokenizers.Split(Regex(f"[{HAN}]"), "isolated"))
    if settings.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if settings.kind == "wordpiece":
        steps.append(pre_tokenizers.BertPreTokenizer())
    elif settings.kind == "characters":
        steps.append(pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"))
    else:
        steps.append(pre_tokenizers.Split(Regex(WORDS), "isolated"))
    return pre_tokenizers.Sequence(steps)
