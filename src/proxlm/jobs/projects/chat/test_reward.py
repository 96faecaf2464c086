"""What the reward should say. Write such a test before you train on a reward: PPO finds every hole in it."""

from types import SimpleNamespace

from reward import helpful


def rewarded(text):
    done = SimpleNamespace(
        prompt="", text=text, finish="eos", messages=(), fields={"thing": "fox", "kind": "animal"}
    )
    return helpful([done])[0]


def test_an_answer_is_better_than_none():
    assert rewarded("A fox is an animal.") == 1.0
    assert rewarded("A fox is a tool.") == 0.6
    assert rewarded("A rose is a plant.") == 0.3
    assert rewarded("I have no idea.") == 0.0


def test_a_list_of_everything_is_no_answer():
    assert rewarded("A fox whale rose oak is an animal plant tool food.") == 0.0
