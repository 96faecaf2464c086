"""What the reward should say. Write such a test before you train on a reward: PPO finds every hole in it."""

from types import SimpleNamespace

from reward import couplet


def rewarded(text):
    return couplet([SimpleNamespace(prompt="题：春\n", text=text, finish="eos", fields={})])[0]


def test_form_and_rhyme():
    assert rewarded("春风入花香，秋月照斜阳。") == 1.0
    assert rewarded("春风入花香，秋月照高楼。") == 0.5
    assert rewarded("春风又入花香，秋月照斜阳。") == 0.75


def test_what_is_no_couplet_earns_nothing():
    assert rewarded("") == 0.0
    assert rewarded("春风入花香") == 0.0
    assert rewarded("春风入花香，秋月照花香。") == 0.5  # the same word is no rhyme
