"""Gymnasium's environments as conversations: actions by name and number, observations, seeds, other spaces."""

from __future__ import annotations

import gymnasium
import pytest

from proxlm.config import EnvironmentSettings
from proxlm.environments.protocol import Task
from proxlm.environments.resolve import resolve
from proxlm.errors import ConfigError


def made(use, **args):
    return resolve(EnvironmentSettings(use=use, args=args))()


def told(use, replies, task, **args):
    environment = made(use, **args)
    return [environment.reset(task), *(environment.step(reply) for reply in replies)]


class Echo(gymnasium.Env):
    """Takes a text of the letters a and b, and pays its length."""

    observation_space = gymnasium.spaces.Text(9)
    action_space = gymnasium.spaces.Text(5, charset="ab")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "go", {}

    def step(self, action):
        return {"heard": action, "dice": self.np_random.random()}, len(action), False, False, {}


gymnasium.register("proxlm-test/Echo-v0", Echo)


def test_actions_by_name_and_by_number():
    lake = {"is_slippery": False}
    by_name = told("gymnasium:FrozenLake-v1", ["down", " Down.\n", "RIGHT"], Task(), **lake)
    by_number = told("gymnasium:FrozenLake-v1", ["1", "[1]", "2"], Task(), **lake)
    assert by_name == by_number
    assert by_name[0] == "Reply with one of: left, down, right, up.\n0"
    assert by_name[1:] == [("4", 0.0, False), ("8", 0.0, False), ("9", 0.0, False)]


def test_names_of_the_users_own_and_what_an_illegal_reply_gets():
    environment = made(
        "gymnasium:FrozenLake-v1", actions=["w", "s", "e", "n"], prompt="Go.", illegal_reward=-0.5
    )
    assert environment.reset(Task()) == "Go.0"
    rule = "Reply with one of: w, s, e, n."
    for reply in ("left", "", "4", "-1", "w w", "1" * 5000):
        assert environment.step(reply) == (rule, -0.5, False)


def test_text_actions_and_observations_of_several_parts():
    said = told("gymnasium:proxlm-test/Echo-v0", ["ab", "abc", "", "aaaaaa"], Task(chance=3))
    assert said[0] == "go"
    assert said[1][0].startswith("heard: ab; dice: 0.")
    assert said[1][1:] == (2.0, False)
    assert [answer[:2] for answer in said[2:]] == [("This is no action.", 0.0)] * 3


def test_the_beginning_is_of_the_seed_and_events_are_of_chance():
    first = [told("gymnasium:proxlm-test/Echo-v0", ["a", "a"], Task(seed=1, chance=c)) for c in (3, 3, 4)]
    assert first[0] == first[1] != first[2]
    hands = [
        made("gymnasium:Blackjack-v1").reset(Task(seed=s, chance=c)) for s, c in ((1, 1), (1, 2), (2, 1))
    ]
    assert hands[0] == hands[1] != hands[2]
    slides = [told("gymnasium:FrozenLake-v1", ["down"] * 8, Task(seed=1, chance=c)) for c in range(6)]
    assert len({str(slide) for slide in slides}) > 3


def test_drawings_and_a_users_function(tmp_path):
    lake = {"is_slippery": False}
    drawn = told("gymnasium:FrozenLake-v1", ["down"], Task(), describe="ansi", prompt="", **lake)
    assert drawn[0] == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert drawn[1][0].endswith("SFFF\n[F]HFH\nFFFH\nHFFG")
    file = tmp_path / "word_game.py"
    file.write_text("def tell(place, lake):\n    return f'{place} of {lake.observation_space.n} >'\n")
    told_by_user = told(
        "gymnasium:FrozenLake-v1", ["down"], Task(), describe=f"{file}:tell", prompt="", **lake
    )
    assert told_by_user == ["0 of 16 >", ("4 of 16 >", 0.0, False)]
    assert told("gymnasium:CartPole-v1", [], Task(seed=1))[0].count("\n") == 1


def test_an_episode_is_as_long_as_max_turns_says():
    taxi = made("gymnasium:Taxi-v4" if "Taxi-v4" in gymnasium.registry else "gymnasium:Taxi-v3")
    taxi.reset(Task())
    assert not any(taxi.step("drop off")[2] for _ in range(300))  # Gymnasium ends it after 200


@pytest.mark.parametrize(
    ("use", "args", "said"),
    [
        ("gymnasium:FrozenLak-v1", {}, "FrozenLak"),
        ("gymnasium:Pendulum-v1", {}, "discrete ones or texts"),
        ("gymnasium:FrozenLake-v1", {"actions": ["a", "b"]}, "2 names, and gymnasium:FrozenLake-v1 has 4"),
        ("gymnasium:FrozenLake-v1", {"depth": 3}, "depth"),
        ("gymnasium:FrozenLake-v1", {"describe": "words"}, "path/to/file.py:function"),
    ],
)
def test_settings_are_checked(use, args, said):
    with pytest.raises(ConfigError, match=said):
        made(use, **args)
