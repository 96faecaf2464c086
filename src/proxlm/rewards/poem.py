"""The built-in reward of Chinese poems: form, rhyme, no repeated lines, Han characters alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from proxlm.data.han import HAN
from proxlm.errors import ConfigError
from proxlm.rewards.scorer import Scorer
from proxlm.types import Completion

PARTS = ("form", "rhyme", "distinct", "han")
MARKS = "，。！？；、"
_HAN = re.compile(f"[{HAN}]")
# The fourteen rhymes of 中华新韵 (2005), by the finals of Hanyu Pinyin; -i is that of zhi, chi, shi, ri, zi, ci, si.
RHYMES = {
    "麻": "a ia ua", "波": "o e uo", "皆": "ie ve", "开": "ai uai", "微": "ei uei", "豪": "ao iao", "尤": "ou iou",
    "寒": "an ian uan van", "文": "en in uen vn", "唐": "ang iang uang", "庚": "eng ing ueng ong iong",
    "齐": "i er v", "支": "-i", "姑": "u",
}  # fmt: skip
_RHYME_OF = {final: name for name, finals in RHYMES.items() for final in finals.split()}
_FLAT = ("zh", "ch", "sh", "r", "z", "c", "s")  # after these an i is another vowel


def chinese_poem(lines: int = 4, characters: int = 0, named: bool = False) -> Scorer:
    """How far prompt + response is a poem of so many lines; a dict of four parts, each from 0 to 1.

    `form`: the share of its lines with the right number of Han characters, of the lines it has or should have.
    `rhyme`: of a poem of the right form, the share of its even lines that rhyme with the second one; a word does not
    rhyme with itself. `distinct`: different lines / lines. `han`: the share of Han characters, marks apart. A
    poem that is too short has less of all four.

    Args:
        lines: Lines of a poem, split at ，。！？；、 and line ends; the last must end with 。！ or ？.
        characters: Han characters of a line, 5 or 7 say; 0: as many as the first line has.
        named: The prompt begins with the rhyme that is asked for, as in 尤，白日依山尽，: `rhyme` is then the share
            of the even lines that have that one.
    """
    if lines < 2:
        raise ValueError(f"lines = {lines}: must be at least 2")
    if characters < 0:
        raise ValueError(f"characters = {characters}: must be at least 0 (0: as the first line)")
    rhyme = rhymes_by_pinyin()

    def parts_of(completion: Completion) -> dict[str, float]:
        name, _, first = completion.prompt.partition("，") if named else ("", "", completion.prompt)
        return poem_parts(first + completion.text, lines, characters, rhyme, name)

    def score(completions: list[Completion]) -> dict[str, list[float]]:
        found = [parts_of(completion) for completion in completions]
        return {name: [parts[name] for parts in found] for name in PARTS}

    return score


def poem_parts(
    text: str, lines: int, characters: int, rhyme: Callable[[str], str], name: str = ""
) -> dict[str, float]:
    """The four parts of `chinese_poem` for a text.

    Args:
        text: The poem.
        lines: As of `chinese_poem`.
        characters: As of `chinese_poem`.
        rhyme: The rhyme of a line's last character.
        name: The rhyme that is asked for; "": that of the second line.
    """
    text = text.strip()
    found = [line for line in re.split(rf"[{MARKS}\s]+", text) if line]
    bare = "".join(found)
    size = characters or (len(found[0]) if found else 0)
    right = [len(line) == size and len(_HAN.findall(line)) == size for line in found[:lines]]
    if right and len(found) <= lines and not text.endswith(("。", "！", "？")):
        right[-1] = False  # it is not at its end
    form = sum(right) / max(lines, len(found))
    return {
        "form": form,
        "rhyme": _rhyming(found[1::2], rhyme, name) if form == 1 else 0.0,
        # Of a whole poem: else one that ends early would be the easiest way to have both.
        "distinct": len({*found}) / max(lines, len(found)),
        "han": len(_HAN.findall(bare)) / max(1, lines * size, len(bare)),
    }


def _rhyming(lines: Sequence[str], rhyme: Callable[[str], str], name: str) -> float:
    """The share of the lines that have the named rhyme, or of those behind the first that have its rhyme."""
    used: set[str] = set() if name else {lines[0][-1]}
    wanted, asked = (name, lines) if name else (rhyme(lines[0]), lines[1:])
    count = 0
    for line in asked:
        count += line[-1] not in used and rhyme(line) == wanted
        used.add(line[-1])
    return count / max(1, len(asked))


def rhymes_by_pinyin() -> Callable[[str], str]:
    """A function from a line to the rhyme of its last character, as it is read in that line today.

    Raises ConfigError where pypinyin is not installed.
    """
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise ConfigError(
            'reward.use = "chinese_poem": needs pypinyin: pip install "proxlm[pinyin]"'
        ) from error

    @lru_cache(2**14)
    def rhyme(line: str) -> str:
        final = str(lazy_pinyin(line, style=Style.FINALS)[-1])
        if final == "i" and lazy_pinyin(line, style=Style.INITIALS)[-1] in _FLAT:
            final = "-i"
        return _RHYME_OF.get(final, final)

    return rhyme
