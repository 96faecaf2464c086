"""The space of a search: what may stand in it, and what is refused before any trial."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from markdown_blocks import all_blocks
from proxlm.config import (
    DataSettings,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RewardSettings,
)
from proxlm.errors import ConfigError
from proxlm.search.points import grid, own_values, random_values, refusals, settings_with
from proxlm.search.ready_spaces import ready_space
from proxlm.search.space import read_space, space_of

BASE = PPOConfig(
    model=ModelSettings(policy="model"),
    data=DataSettings(prompts="prompts.txt", eval_count=4),
    reward=RewardSettings(use="length", args={"target": 3}),
    ppo=PPOSettings(kl_coef=0.05),
    optim=OptimisersSettings(policy=OptimiserSettings(lr=1e-4)),
)


def test_a_file_says_ranges_choices_ties_and_conditions(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        '[optim.policy]\nlr = {low = 1e-5, high = 1e-3, log = true}\n[ppo]\nepochs = {low = 1, high = 8}\n'
        'clip_low = {low = 0.1, high = 0.3, also = ["ppo.clip_high"]}\nkl_controller = ["fixed", "adaptive"]\n'
        'kl_target = {low = 1.0, high = 9.0, when = {ppo.kl_controller = "adaptive"}}\n'
        "[reward.args]\ntarget = [2, 3, 4]\n",
        encoding="utf-8",
    )  # fmt: skip
    space = read_space(file, BASE)
    generator = random.Random(0)
    drawn = [random_values(BASE, space, generator) for _ in range(300)]
    assert all(1e-5 <= one["optim.policy.lr"] <= 1e-3 for one in drawn)
    assert 0.4 < sum(one["optim.policy.lr"] < 1e-4 for one in drawn) / 300 < 0.6  # half of the decades
    assert {one["ppo.epochs"] for one in drawn} == set(range(1, 9))
    assert all(("ppo.kl_target" in one) == (one["ppo.kl_controller"] == "adaptive") for one in drawn)
    assert {one["reward.args.target"] for one in drawn} == {2, 3, 4}
    one = settings_with(BASE, {"ppo.clip_low": 0.25, "reward.args.target": 2}, space)
    assert one.ppo.clip_low == one.ppo.clip_high == 0.25
    assert one.reward.args == {"target": 2}
    assert BASE.reward.args == {"target": 3}
    assert own_values(BASE, space) == {
        "optim.policy.lr": 1e-4, "ppo.epochs": 4, "ppo.clip_low": 0.2, "ppo.kl_controller": "fixed",
        "reward.args.target": 3,
    }  # fmt: skip


def test_the_space_of_the_page_is_one() -> None:
    (text,) = (
        block.text for block in all_blocks("text") if block.page == "docs/search.md" and "low =" in block.text
    )
    space = {one.key: one for one in space_of(tomllib.loads(text), BASE)}
    assert space["ppo.clip_low"].also == ("ppo.clip_high",)
    assert space["optim.policy.momentum"].when == (("optim.policy.name", ("sgd",)),)
    assert space["ppo.epochs"].whole
    assert space["optim.policy.lr"].log


def test_a_grid_has_every_combination_and_no_idle_one() -> None:
    space = space_of(
        {
            "ppo.kl_controller": ["fixed", "adaptive"],
            "ppo.kl_target": {"choices": [3.0, 6.0], "when": {"ppo.kl_controller": "adaptive"}},
            "ppo.epochs": {"low": 1, "high": 3, "step": 2},
            "ppo.lam": {"low": 0.9, "high": 1.0, "step": 0.05},
        },
        BASE,
    )
    found = grid(BASE, space)
    assert len(found) == (1 + 2) * 2 * 3
    assert len({str(sorted(one.items())) for one in found}) == len(found)
    assert found[0] == {"ppo.kl_controller": "fixed", "ppo.epochs": 1, "ppo.lam": 0.9}
    assert {round(one["ppo.lam"], 9) for one in found} == {0.9, 0.95, 1.0}
    assert not any("ppo.kl_target" in one for one in found if one["ppo.kl_controller"] == "fixed")


def test_the_ready_space_is_of_the_letters_of_ppo_around_the_recipe() -> None:
    table = ready_space("ppo", BASE)
    assert table is not None
    space = {one.key: one for one in space_of(table, BASE)}
    assert set(space) == {
        "optim.policy.lr", "ppo.kl_coef", "ppo.gamma", "ppo.lam", "ppo.clip_low", "ppo.epochs",
    }  # fmt: skip
    assert space["optim.policy.lr"].low == pytest.approx(1e-5)
    assert space["optim.policy.lr"].high == pytest.approx(1e-3)
    assert space["ppo.clip_low"].also == ("ppo.clip_high",)
    assert own_values(BASE, tuple(space.values())) is not None
    assert ready_space("supervised", BASE) is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "an empty space"),
        ({"ppo": {"lambda": [0.9]}}, "ppo.lambda: unknown key; did you mean ppo.lam"),
        ({"pppo": {"lam": [0.9]}}, "pppo: unknown key"),
        ({"ppo": [1, 2]}, "ppo: a section; search a setting in it"),
        ({"ppo.lam": 0.9}, "ppo.lam = 0.9: one value is no search"),
        ({"ppo.lam": []}, "choices: expected a list of values"),
        ({"ppo.lam": [0.9, 1.5]}, "ppo.lam = 1.5: must be at most 1"),
        ({"ppo.lam": {"low": 0.9, "high": 1.5}}, "ppo.lam = 1.5: must be at most 1"),
        ({"ppo.lam": {"low": 0.9}}, "ppo.lam: high: needed for a range"),
        ({"ppo.lam": {"low": 1.0, "high": 0.5}}, "low = 1.0 must be below high = 0.5"),
        ({"ppo.kl_coef": {"low": 0, "high": 1, "log": True}}, "low must be more than 0 with log"),
        ({"ppo.lam": {"low": float("nan"), "high": 1}}, "low: expected a number"),
        ({"ppo.epochs": {"low": 1, "high": 2.5}}, "must be whole numbers"),
        ({"ppo.epochs": {"low": 1, "high": 4, "hihg": 3}}, "hihg: not one of low, high"),
        ({"ppo.epochs": {"low": 1, "high": 4, "step": 9}}, "step must be between 0 and"),
        ({"ppo.epochs": [1.5, 2]}, "ppo.epochs: expected a whole number, got 1.5"),
        ({"ppo.epochs": [1, 1]}, "a value is given twice"),
        ({"ppo.loss": {"low": 1, "high": 2}}, "a range is for numbers"),
        ({"ppo.kl_controller": ["fixed", "adptive"]}, 'expected one of "fixed", "adaptive"'),
        ({"ppo.clip_low": {"choices": [0.1], "also": ["ppo.clip"]}}, "ppo.clip: unknown key"),
        ({"ppo.clip_low": {"choices": [0.1], "also": ["ppo.clip_low"]}}, "given twice"),
        ({"ppo.lam": {"choices": [1.0], "when": {"ppo.loss": 3}}}, "when: ppo.loss: expected text"),
        (
            {
                "ppo.lam": {"choices": [1.0], "when": {"ppo.gamma": 1.0}},
                "ppo.gamma": {"choices": [1.0], "when": {"ppo.lam": 1.0}},
            },
            "depends on itself",
        ),
    ],
)
def test_what_is_wrong_with_a_space_is_named(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        space_of(table, BASE)
    assert said in str(found.value)


def test_combinations_that_the_job_refuses_are_named_before_any_trial() -> None:
    space = space_of({"ppo.loss": ["ppo", "trpo"], "ppo.entropy_coef": {"low": 0.0, "high": 0.1}}, BASE)
    (line,) = refusals(BASE, space)
    share = int(line.partition("%")[0])
    assert 40 < share < 60
    assert "ppo.entropy_coef: cannot be used with ppo.loss = trpo" in line
    assert refusals(BASE, space_of({"ppo.lam": [0.9, 1.0]}, BASE)) == []
    every = space_of({"ppo.loss": ["trpo"], "ppo.entropy_coef": [0.1, 0.2]}, BASE)
    with pytest.raises(ConfigError, match="no combination is allowed"):
        refusals(BASE, every)


def test_what_a_value_leaves_without_effect_is_left_out() -> None:
    base = settings_with(BASE, {"ppo.kl_controller": "adaptive", "ppo.kl_target": 3.0})
    assert settings_with(base, {"ppo.kl_controller": "fixed"}).ppo.kl_target == PPOSettings().kl_target
