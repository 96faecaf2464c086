"""Settings built in Python are checked as those from a file are, and a mapping may stand for the file."""

import pickle
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest

from proxlm.config import (
    JOBS,
    DataSettings,
    DemoConfig,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RewardSettings,
    RewardTerm,
    RolloutSettings,
    load_config,
    validate,
)
from proxlm.errors import ConfigError

GOOD = PPOConfig(model=ModelSettings(policy="m"), data=DataSettings(prompts="p"))
UNTYPED: Any = PPOConfig  # as who does not run a type checker sees it


def test_good_settings_come_back_equal() -> None:
    assert validate(GOOD) == GOOD
    assert validate(DemoConfig(seed=3)) == DemoConfig(seed=3)


def test_values_get_their_declared_types() -> None:
    words = ["a"]
    loose = UNTYPED(
        model={"policy": PurePosixPath("some/model")},
        data=GOOD.data,
        rollout=RolloutSettings(stop=("x", "y"), temperature=2),  # type: ignore[arg-type]
        reward=RewardSettings(terms={"t": RewardTerm("keyword", 2, {"words": words})}),
    )
    config = validate(loose)
    words.append("b")
    assert config.model == ModelSettings(policy="some/model")
    assert config.rollout.stop == ["x", "y"]
    assert repr(config.rollout.temperature) == "2.0"
    assert config.reward.terms == {"t": RewardTerm("keyword", 2.0, {"words": ["a"]})}


def test_all_problems_are_named() -> None:
    """The first is the error, the others its notes; many are counted."""
    wrong = replace(
        GOOD, rollout=RolloutSettings(temperature=0), ppo=PPOSettings(critic_lam=-0.5, dual_clip=0.5)
    )
    with pytest.raises(ConfigError, match=r"^PPOConfig: rollout.temperature = 0") as raised:
        validate(wrong)
    named = [line.split()[1] for line in raised.value.more]
    assert named == ["ppo.critic_lam", "ppo.dual_clip"]
    assert raised.value.__notes__ == [f"also: {line}" for line in raised.value.more]
    many = replace(
        GOOD,
        rollout=RolloutSettings(stop=[""]),
        reward=RewardSettings(terms={str(i): RewardTerm() for i in range(30)}),
    )
    with pytest.raises(ConfigError) as raised:
        validate(many)
    assert len(raised.value.more) == 10
    assert raised.value.more[-1] == "and 21 problems more"
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.more) == (str(raised.value), raised.value.more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ppo": PPOSettings(steps=0)}, "ppo.steps = 0: must be at least 1"),
        ({"ppo": PPOSettings(lam=float("nan"))}, "ppo.lam = nan: must be at least 0 and at most 1"),
        ({"ppo": PPOSettings(steps="3")}, 'ppo.steps: expected a whole number, got "3"'),
        ({"ppo": PPOSettings(steps=True)}, "ppo.steps: expected a whole number, got true"),
        ({"ppo": 3}, "ppo = 3: a section of settings; did you mean ppo.steps?"),
        ({"ppo": {"stepz": 1}}, "ppo.stepz: unknown key; did you mean ppo.steps?"),
        ({"ppo": None}, "ppo: expected a table of settings, got None"),
        (
            {"model": ModelSettings(policy="m", critic="Shared")},
            'model.critic: expected one of "shared", "separate", "adapter", got "Shared"',
        ),
        (
            {"optim": OptimisersSettings(critic=OptimiserSettings(lr=0))},
            "optim.critic.lr = 0.0: must be more than 0",
        ),
        (
            {"reward": RewardSettings(terms={"t": RewardTerm(use="x", weight="2")})},
            'reward.terms.t.weight: expected a number, got "2"',
        ),
        ({"reward": RewardSettings(weights={"a": float("inf")})}, "reward.weights.a = inf: must be a finite number"),
        ({"rollout": RolloutSettings(stop="a")}, 'rollout.stop: expected a list of texts, got "a"'),
        ({"model": ModelSettings()}, 'model.policy: required, but not given (set it in the PPOConfig)'),
        ({"ppo": PPOSettings(minibatches=99)}, "ppo.minibatches = 99: more minibatches than responses in a step"),
        ({"reward": RewardSettings(args={"api_key": "abcdefgh12"})}, "reward.args.api_key: looks like a secret"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_key_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(replace(GOOD, **change))
    assert str(caught.value).startswith(f"PPOConfig: {message}")


@pytest.mark.parametrize("job", JOBS)
def test_validate_and_load_config_find_the_same_in_defaults(job: str) -> None:
    def problem(check: Any) -> str:
        try:
            check()
        except ConfigError as error:
            return str(error).removeprefix(f"{JOBS[job].__name__}: ").split(":")[0].split(" ")[0]
        return ""

    assert problem(lambda: validate(JOBS[job]())) == problem(lambda: load_config(job))


@pytest.mark.parametrize("value", [PPOConfig, {"ppo.steps": 3}, None, "ppo"])
def test_what_is_no_settings_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^expected a job's settings such as PPOConfig\(\), got "):
        validate(value)


def test_a_mapping_may_stand_for_the_file() -> None:
    config = load_config(
        "ppo", {"model.policy": "m", "data": {"prompts": "p"}, "ppo": {"steps": 3, "lam": 0.5}}
    )
    assert config == replace(GOOD, ppo=PPOSettings(steps=3, lam=0.5))
    assert (
        load_config(
            "ppo", {"model.policy": "m", "data.prompts": "p", "ppo.lam": 0.5}, {"ppo.lam": 0.6}
        ).ppo.lam
        == 0.6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo": {"stepz": 3}}, "settings: ppo.stepz: unknown key; did you mean ppo.steps?"),
        ({"ppo.steps": 0}, "settings: ppo.steps = 0: must be at least 1"),
        ({3: 0}, "settings: 3: not a key; write section.key"),
    ],
)
def test_errors_in_a_mapping(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("ppo", settings)
    assert str(caught.value) == message
