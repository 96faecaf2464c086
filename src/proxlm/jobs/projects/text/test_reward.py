"""What the reward should say. Write such a test before you train on a reward: PPO finds every hole in it."""

from types import SimpleNamespace

from reward import happy_ending


def rewarded(text, finish="eos"):
    return happy_ending([SimpleNamespace(prompt="", text=text, finish=finish, fields={})])[0]


def test_happy_is_better_than_sad():
    assert rewarded(" It found a friend and was happy.") == 1.0
    assert rewarded(" It was alone and felt bad.") == -1.0


def test_nothing_and_endless_texts_earn_nothing():
    assert rewarded("") == 0.0
    assert rewarded("happy happy happy", finish="length") == -1.0
