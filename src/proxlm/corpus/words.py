"""Texts changed word by word: Chinese segmented, simplified or traditional; stop words, stems and lemmas."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path

from proxlm.corpus.units import HAN
from proxlm.data.lines import read_lines
from proxlm.errors import ConfigError
from proxlm.text import listed

Change = Callable[[str], str]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
# jieba takes time with the square of the length of what it cuts.
_CUT_AT_ONCE = 500
_HAN_RUN = re.compile(f"[{HAN}]{{1,{_CUT_AT_ONCE}}}")
_SPACES = re.compile("  +")
_REMEMBERED = 2**16

# Function words: of English articles, pronouns, prepositions, conjunctions and auxiliaries, of Chinese particles and
# the like.
_ENGLISH = """
a about above after again against all am an and any are as at be because been before being below between both but by
can could did do does doing down during each few for from further had has have having he her here hers herself him
himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only or other
our ours ourselves out over own same she should so some such than that the their theirs them themselves then there
these they this those through to too under until up very was we were what when where which while who whom why will
with would you your yours yourself yourselves
"""
_CHINESE = """
的 了 着 过 地 得 之 与 和 及 或 而 且 但 但是 并 并且 因为 所以 如果 虽然 然而 因此
在 于 从 自 向 对 对于 关于 把 被 由 以 为 是 有 也 都 就 还 又 再 很 太 更 最 不 没 没有 吗 呢 吧 啊 呀 嘛
我 你 他 她 它 我们 你们 他们 她们 它们 这 那 这个 那个 这些 那些 哪 谁 什么 怎么 一个 一些 上 下 中 里 等
"""
STOP_WORDS = {"english": _ENGLISH.split(), "chinese": _CHINESE.split()}


def chinese_converter(conversion: str) -> Change:
    """OpenCC's conversion of this name, t2s for instance."""
    try:
        import opencc
    except ImportError as error:
        raise ConfigError('step chinese needs opencc: pip install "proxlm[corpus]"') from error
    convert: Change = opencc.OpenCC(conversion).convert
    return convert


def segmenter() -> Change:
    """Chinese with a space between its words, by jieba; everything else stays as it is."""
    try:
        import jieba
    except ImportError as error:
        raise ConfigError('step segment needs jieba: pip install "proxlm[corpus]"') from error
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    # Not in the shared folder, whose file jieba would read back whoever has written it.
    with tempfile.TemporaryDirectory(prefix="proxlm-jieba-") as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()

    def segment(text: str) -> str:
        return _HAN_RUN.sub(lambda run: f" {' '.join(tokenizer.cut(run[0]))} ", text)

    def tidy(text: str) -> str:
        return "\n".join(_SPACES.sub(" ", segment(line)).strip(" ") for line in text.split("\n"))

    return tidy


def stop_word_remover(words: Collection[str]) -> Change:
    """Leaves out the words of a list, whatever their case; of two spaces that are left one stays."""
    unwanted = frozenset(word.casefold() for word in words)

    def remove(text: str) -> str:
        less = _WORD.sub(lambda word: "" if word[0].casefold() in unwanted else word[0], text)
        return (
            "\n".join(_SPACES.sub(" ", line).strip(" ") for line in less.split("\n"))
            if less != text
            else text
        )

    return remove


def read_stop_words(name: str, file: str = "") -> list[str]:
    """The words of a built-in list, or of a file with a word a line. Raises DataError, ConfigError."""
    if not file:
        return STOP_WORDS[name]
    words = [line.strip() for line in read_lines(Path(file)) if line.strip()]
    if not words:
        raise ConfigError(f"words.stop_word_file: {file} holds no words; write one a line")
    return words


def stemmer(language: str) -> Change:
    """Each word as its stem, by a Snowball stemmer, in lower case as the stemmers need it."""
    try:
        import snowballstemmer
    except ImportError as error:
        raise ConfigError('step stem needs snowballstemmer: pip install "proxlm[corpus]"') from error
    known = snowballstemmer.algorithms()
    if language not in known:
        raise ConfigError(f"words.language: no stemmer for {language!r}; there are {listed(known, most=40)}")
    stem = lru_cache(_REMEMBERED)(snowballstemmer.stemmer(language).stemWord)
    return lambda text: _WORD.sub(lambda word: stem(word[0].lower()), text)


def lemmatiser(language: str) -> Change:
    """Each word as its lemma, by simplemma's tables."""
    try:
        import simplemma
    except ImportError as error:
        raise ConfigError('step lemma needs simplemma: pip install "proxlm[corpus]"') from error
    code = {"english": "en"}.get(language, language)

    @lru_cache(_REMEMBERED)
    def lemma(word: str) -> str:
        return str(simplemma.lemmatize(word, lang=code))

    try:
        lemma("a")
    except ValueError as error:
        raise ConfigError(
            f"words.language: simplemma knows no {language!r}; write english, or an ISO 639 code such as de"
        ) from error
    return lambda text: _WORD.sub(lambda word: lemma(word[0]), text)
