"""The reward of Chinese poems, by poems whose form and rhyme are known."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from proxlm.config import RewardSettings
from proxlm.errors import ConfigError
from proxlm.rewards import build_reward
from proxlm.rewards.builtin import BUILTINS
from proxlm.rewards.poem import RHYMES, chinese_poem, rhymes_by_pinyin
from proxlm.types import Completion

pytest.importorskip("pypinyin")
SPRING = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
TOWER = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
BOUDOIR = "闺中少妇不曾愁，春日凝妆上翠楼。忽见陌头杨柳色，悔教夫壻觅封侯。"
# 还 is read hái alone and huán here; pypinyin has no phrase that says so.
FRONTIER = "秦时明月汉时关，万里长征人未还。但使龙城飞将在，不教胡马度阴山。"


def parts(text: str, prompt: str = "", **arguments: Any) -> dict[str, float]:
    found: Any = chinese_poem(**arguments)([Completion(prompt, text)])
    return {name: values[0] for name, values in found.items()}


@pytest.mark.parametrize("poem", [SPRING, TOWER, BOUDOIR])
def test_poems_that_everybody_knows_have_form_and_rhyme(poem: str) -> None:
    assert parts(poem) == {"form": 1.0, "rhyme": 1.0, "distinct": 1.0, "han": 1.0}
    prompt, rest = poem[: poem.index("，") + 1], poem[poem.index("，") + 1 :]
    assert parts(rest, prompt) == parts(poem)


def test_a_reading_that_no_phrase_says_is_a_rhyme_that_is_not_found() -> None:
    assert parts(FRONTIER)["form"] == 1.0
    assert parts(FRONTIER)["rhyme"] == 0.0


def test_form_is_the_share_of_right_lines() -> None:
    assert parts("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少")["form"] == 0.75  # the last has no end
    assert parts("春眠不觉晓，处处闻啼鸟。")["form"] == 0.5
    assert parts("春眠不觉晓，处处闻鸟。夜来风雨声，花落知多少。")["form"] == 0.75
    assert parts("春眠不觉晓，处处闻a鸟。夜来风雨声，花落知多少。")["form"] == 0.75
    assert parts(SPRING + "春眠不觉晓，")["form"] == 0.8  # a fifth line
    assert parts("")["form"] == parts("，，。")["form"] == 0.0
    assert parts(SPRING, characters=7)["form"] == 0.0
    assert parts(SPRING.replace("。", "？").replace("，", "；"))["form"] == 1.0


def test_rhyme_is_that_of_the_even_lines_in_poems_of_the_right_form() -> None:
    assert parts("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多人。")["rhyme"] == 0.0
    assert parts("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落不见鸟。")["rhyme"] == 0.0  # a word with itself
    assert parts("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少，")["rhyme"] == 0.0  # not finished
    eight = SPRING + "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多人。"
    assert parts(eight, lines=8)["rhyme"] == pytest.approx(
        1 / 3
    )  # 少 rhymes, 鸟 is the word itself, 人 does not
    assert parts(eight, lines=8)["distinct"] == pytest.approx(5 / 8)


def test_a_rhyme_may_be_asked_for() -> None:
    rest = "黄河入海流。欲穷千里目，更上一层楼。"
    assert parts(rest, "尤，白日依山尽，", named=True)["rhyme"] == 1.0
    assert parts(rest, "寒，白日依山尽，", named=True)["rhyme"] == 0.0
    assert parts(rest.replace("层楼", "层天"), "尤，白日依山尽，", named=True)["rhyme"] == 0.5
    assert (
        parts(rest.replace("层楼", "层流"), "尤，白日依山尽，", named=True)["rhyme"] == 0.5
    )  # the word itself
    assert parts(rest, "尤，白日依山尽，", named=True)["form"] == 1.0


def test_repeated_lines_and_other_writing() -> None:
    assert parts("春眠不觉晓，" * 3 + "春眠不觉晓。")["distinct"] == 0.25
    assert parts(SPRING.replace("花", "<|unk|>"))["han"] == pytest.approx(19 / 26)
    assert parts("春眠不觉晓，处处闻啼鸟。") == {"form": 0.5, "rhyme": 0.0, "distinct": 0.5, "han": 0.5}


def test_the_rhymes_are_those_of_the_fourteen_groups() -> None:
    rhyme = rhymes_by_pinyin()
    characters, groups = "家多月来飞高秋天春光风中西鱼知时无远", "麻波皆开微豪尤寒文唐庚庚齐齐支支姑寒"
    known = dict(zip(characters, groups, strict=True))
    assert {character: rhyme(character) for character in known} == known
    assert {*known.values()} == {*RHYMES}
    assert rhyme("故人西辞黄鹤楼") == rhyme("流") == "尤"
    assert (rhyme("银行"), rhyme("行")) == ("唐", "庚")  # as it is read in the line


def test_arguments_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"lines": 1}, {"characters": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            chinese_poem(**wrong)
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(ConfigError, match=r"proxlm\[pinyin\]"):
        build_reward(RewardSettings(use="chinese_poem"))


def test_it_is_built_in() -> None:
    assert BUILTINS["chinese_poem"] is chinese_poem
