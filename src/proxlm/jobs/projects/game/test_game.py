"""What the game should say and pay. Write such a test before you train on it: PPO finds every hole in it."""

from types import SimpleNamespace

from game import TURNS, Pig, mean_return


def begun(*rolls):
    game = Pig()
    assert game.reset(SimpleNamespace(text="", fields={}, seed=0, chance=0)) == "0 >"
    found = iter(rolls)
    game.dice = SimpleNamespace(randint=lambda _low, _high: next(found))
    return game


def test_points_are_kept_by_a_stop_and_lost_by_a_one():
    game = begun(6, 2)
    assert game.step(" roll\n") == ("1 >", 0.0, False)
    assert game.step(" roll\n") == ("2 >", 0.0, False)
    assert game.step(" stop\n") == ("kept", 0.4, True)
    assert begun(1).step(" roll\n") == ("lost", 0.0, True)


def test_nonsense_gains_nothing_and_the_game_ends():
    game = begun()
    for _ in range(TURNS - 1):
        assert game.step("a cat") == ("0 >", 0.0, False)
    assert game.step("roll") == ("too late", 0.0, True)


def test_the_best_is_to_roll_five_times():
    assert max(range(TURNS), key=mean_return) == 5
