"""Word vectors as the first embeddings of a new model: read from a text file, or learnt with word2vec."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from proxlm.config import WordVectorSettings
from proxlm.data.lines import byte_lines
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import INCOMPLETE, response_tokens_as_text
from proxlm.errors import ConfigError, DataError
from proxlm.models.language_model import LanguageModel
from proxlm.text import shown

Vectors = dict[int, npt.NDArray[np.float32]]
"""Token id → its vector."""

# Bytes of a line beside its numbers, and of a number.
_LONGEST_WORD, _LONGEST_NUMBER = 2**16, 64
# Tokens of a sentence for word2vec, which passes over the rest of a longer one.
_SENTENCE = 10_000
# Texts that are encoded at once.
_AT_ONCE = 64


def start_embeddings(
    model: LanguageModel,
    settings: WordVectorSettings,
    texts: Callable[[], Iterable[str]],
    seed: int,
    key: str = "new",
) -> str:
    """Put word vectors into the embeddings of a new model, and freeze these if asked.

    Args:
        model: Its embeddings are changed in place.
        settings: Where the vectors are from.
        texts: Gives the training texts, as often as it is called.
        seed: Of word2vec.
        key: The settings' section, for messages.

    Returns:
        How many tokens have a vector, in words; "": none was asked for.

    Raises:
        ConfigError: The vectors are of another width, or gensim is not installed.
        DataError: The file cannot be read or holds no vectors of this tokenizer's words.
    """
    weight = model.network.get_input_embeddings().weight
    if settings.freeze:
        weight.requires_grad_(False)
    if settings.file:
        vectors = read_vectors(Path(settings.file), model.tokenizer, weight.shape[1], key)
        source = f"words of {shown(Path(settings.file).name, 60)}"
    elif settings.train != "none":
        vectors = _learnt(settings, model.tokenizer, texts, weight.shape[1], seed, key)
        source = f"word2vec ({settings.train})"
    else:
        return ""
    ids = sorted(vectors)
    values = torch.from_numpy(np.stack([vectors[i] for i in ids]))
    if settings.std:
        values *= settings.std / float(values.std().clamp_min(1e-12))
    with torch.no_grad():
        weight[torch.tensor(ids, device=weight.device)] = values.to(weight)
    return f"embeddings: {len(ids):,} of {len(weight):,} tokens begin with vectors of {source}"


def check_vectors(settings: WordVectorSettings, width: int, key: str = "new") -> None:
    """Look at what can be known before any text is read.

    Raises:
        ConfigError: The vectors are of another width, or gensim is not installed.
        DataError: The file cannot be read.
    """
    if settings.train != "none":
        _word2vec(key)
    if settings.file:
        next(_lines(Path(settings.file), width, key), None)


def read_vectors(path: Path, tokenizer: Any, width: int, key: str = "new") -> Vectors:
    """The vectors of a tokenizer's words from a text file, which is read line by line.

    A token that begins with a space stands for the word behind it, one without only if it begins with no cased letter
    (a figure, a sign, a Chinese character): "on" inside of a word is not the word "on". A word that the file has in
    lower case only has that vector. Of a word that is there twice the first vector counts.

    Args:
        path: Each line is a word and its numbers, separated by spaces; the first may be the numbers of words and of
            numbers (word2vec, fastText).
        tokenizer: Whose tokens are looked for.
        width: Numbers of a vector.
        key: The settings' section, for messages.

    Raises:
        ConfigError: The vectors are of another width.
        DataError: The file cannot be read, a number is none or not finite, or none of the words is there.
    """
    exact = _words(tokenizer)
    lower = dict[str, list[int]]()
    for word, ids in exact.items():
        lower.setdefault(word.lower(), []).extend(ids)
    found, in_lower_case = Vectors(), Vectors()
    for number, fields in _lines(path, width, key):
        word = fields[0].decode(errors="replace") if fields else ""
        if not (word in exact or word in lower):
            continue
        vector = _numbers(path, number, fields[1:], width)
        for words, into in ((exact, found), (lower, in_lower_case)):
            for token in words.get(word, []):
                into.setdefault(token, vector)
    vectors = in_lower_case | found
    if not vectors:
        raise DataError(
            f"{path}: holds none of the tokenizer's {len(exact):,} words; is it of this language?"
        )
    return vectors


def _words(tokenizer: Any) -> dict[str, list[int]]:
    """The tokens that stand for a whole word, by word."""
    special, words = set(tokenizer.all_special_ids), dict[str, list[int]]()
    for token in range(len(tokenizer)):
        text = "" if token in special else response_tokens_as_text(tokenizer, [token])[0]
        word = text.strip()
        begins = bool(word) and (
            text[0].isspace() or not text[0].isalpha() or unicodedata.category(text[0]) == "Lo"
        )
        if begins and INCOMPLETE not in word:
            words.setdefault(word, []).append(token)
    return words


def _lines(path: Path, width: int, key: str) -> Iterator[tuple[int, list[bytes]]]:
    """The number of each line, and its word and numbers; without the header. Raises ConfigError for another width."""
    for number, line in byte_lines(path, Skipped(), _LONGEST_WORD + _LONGEST_NUMBER * width):
        if number == 1:
            first = line.split()
            header = len(first) == 2 and all(field.isdigit() for field in first)
            found = int(first[1]) if header and len(first[1]) < 9 else len(first) - 1
            if found != width:
                raise ConfigError(
                    f"{path}: its vectors have {found} numbers, but {key}.hidden = {width}; set that to {found}"
                )
            if header:
                continue
        yield number, line.rsplit(maxsplit=width)


def _numbers(path: Path, number: int, fields: list[bytes], width: int) -> npt.NDArray[np.float32]:
    try:
        vector = np.array([float(field) for field in fields])
    except ValueError:
        vector = np.empty(0)
    if len(vector) != width or not (np.abs(vector) <= np.finfo(np.float32).max).all():
        raise DataError(
            f"{path}:{number}: not a word and {width} finite numbers; write the file again, or leave it out"
        )
    return vector.astype(np.float32)


def _learnt(
    settings: WordVectorSettings,
    tokenizer: Any,
    texts: Callable[[], Iterable[str]],
    width: int,
    seed: int,
    key: str,
) -> Vectors:
    """The vectors that word2vec (Mikolov et al. 2013) learns for the tokens of texts, with one thread: repeatable."""
    model = _word2vec(key)(
        _Sentences(tokenizer, texts),
        vector_size=width,
        window=settings.window,
        epochs=settings.epochs,
        sg=int(settings.train == "skipgram"),
        min_count=1,
        workers=1,
        seed=seed % 2**32,
    )
    return {int(token): model.wv[token] for token in model.wv.index_to_key}


def _word2vec(key: str) -> Any:
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise ConfigError(
            f'{key}.embeddings.train: gensim is not installed; do so with: pip install "proxlm[embeddings]"'
        ) from error
    return Word2Vec


class _Sentences:
    """The texts as lists of token ids written as text, which can be gone through again."""

    def __init__(self, tokenizer: Any, texts: Callable[[], Iterable[str]]) -> None:
        self.tokenizer, self.texts = tokenizer, texts

    def __iter__(self) -> Iterator[list[str]]:
        texts = iter(self.texts())
        while some := list(islice(texts, _AT_ONCE)):
            for ids in self.tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
                for first in range(0, len(ids), _SENTENCE):
                    yield [str(token) for token in ids[first : first + _SENTENCE]]
