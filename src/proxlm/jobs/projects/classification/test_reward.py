"""What the reward should say. Write such a test before you train on a reward: PPO finds every hole in it."""

from types import SimpleNamespace

from reward import right_label


def rewarded(text):
    return right_label([SimpleNamespace(prompt="", text=text, finish="eos", fields={"label": "positive"})])[0]


def test_the_right_label():
    assert rewarded(" positive") == 1.0
    assert rewarded(" negative") == 0.0


def test_naming_them_all_earns_nothing():
    assert rewarded(" positive negative neutral") == 0.0
