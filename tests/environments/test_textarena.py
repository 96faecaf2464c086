"""Games of textarena as conversations: seeds, opponents, illegal moves, what is missing."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec

import pytest

from proxlm.config import EnvironmentSettings
from proxlm.environments.protocol import Task
from proxlm.environments.resolve import resolve
from proxlm.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")


def made(use, **args):
    return resolve(EnvironmentSettings(use=use, args=args))()


def played(game, replies, task, **args):
    environment = made(f"textarena:{game}", **args)
    said, rewards = [environment.reset(task)], []
    for reply in replies:
        text, reward, done = environment.step(reply)
        said.append(text)
        rewards.append(reward)
        if done:
            break
    return said, rewards, done


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ConfigError, match=r'pip install "proxlm\[games\]"'):
        made("textarena:TicTacToe-v0")


needs_textarena = pytest.mark.skipif(
    find_spec("textarena") is None, reason="the package textarena is not installed"
)

GAMES = {
    "TicTacToe-v0": [str(n) for n in range(9)],
    "ConnectFour-v0": ["0", "1", "2", "3", "4", "5", "6"] * 2,
    "Nim-v0": ["0 1", "1 1", "2 1", "2 2", "1 2"],
    "KuhnPoker-v0": ["check", "bet", "check"],
    "GuessTheNumber-v0": ["10", "5", "15", "12"],
    "FrozenLake-v0": ["right", "down", "right", "down"],
    "Mastermind-v0": ["1 2 3 4", "4 3 2 1"],
    "2048-v0": ["up", "left", "right"],
    "Blackjack-v0": ["hit", "stand", "hit"],
    "PigDice-v0": ["roll", "hold", "roll"],
    "Othello-v0": ["2, 3", "2, 2"],
    "IteratedPrisonersDilemma-v0": ["Cooperate", "Defect", "hello", "Defect"],
}


@needs_textarena
@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_its_seeds_and_its_moves(game):
    task = Task(seed=5, chance=7)
    first = played(game, GAMES[game], task)
    random.seed(1)  # what others draw is nothing to it, and what it draws nothing to others
    before = random.getstate()
    assert played(game, GAMES[game], task) == first
    assert random.getstate() == before


@needs_textarena
def test_conversations_at_once_do_not_share_their_numbers():
    tasks = [Task(seed=s, chance=s + 1) for s in range(4)]
    alone = [played("PigDice-v0", ["roll"] * 4, task)[0] for task in tasks]
    together = [made("textarena:PigDice-v0") for _ in tasks]
    said = [[game.reset(task)] for game, task in zip(together, tasks, strict=True)]
    for _ in range(4):
        for game, so_far in zip(together, said, strict=True):
            if not game.game.state.done:
                so_far.append(game.step("roll")[0])
    assert said == alone


@needs_textarena
def test_the_task_is_of_the_seed_and_events_are_of_chance():
    boards = {played("FrozenLake-v0", ["right"], Task(seed=1, chance=c))[0][0] for c in range(5)}
    assert len(boards) == 1
    assert len({played("FrozenLake-v0", ["right"], Task(seed=s))[0][0] for s in range(5)}) > 1
    answers = {tuple(played("TicTacToe-v0", ["4"], Task(seed=1, chance=c))[0]) for c in range(20)}
    assert len(answers) > 4  # of eight places


@needs_textarena
def test_a_random_opponent_makes_every_legal_move_and_no_other():
    replies = {
        played("ConnectFour-v0", ["0"], Task(chance=c))[0][1].split("[Player 1] ")[1][:3] for c in range(60)
    }
    assert replies == {f"[{column}]" for column in range(7)}


@needs_textarena
def test_an_opponent_of_the_users_own_and_the_other_side(tmp_path):
    file = tmp_path / "rival.py"
    file.write_text("def last(told):\n    return [m for m in '876543210' if f\"'[{m}]'\" in told][0]\n")
    said, _, _ = played("TicTacToe-v0", ["0"], Task(), opponent=f"{file}:last")
    assert "[Player 1] 8" in said[1] or "cell 8" in said[1]
    opening = made("textarena:TicTacToe-v0", player=1).reset(Task(chance=3))
    assert "You are Player 1" in opening
    assert "Player 0 placed" in opening


@needs_textarena
def test_wins_losses_and_illegal_moves_are_paid_as_the_game_says(tmp_path):
    file = tmp_path / "rival.py"
    file.write_text(
        "def weak(told):\n    return '8' if told.count('Current Board') < 3 else '7'\n"
        "def strong(told):\n    return str(told.count('Current Board') // 2 + 5)\n"
    )
    _, rewards, done = played("TicTacToe-v0", ["0", "1", "2"], Task(), opponent=f"{file}:weak")
    assert (rewards, done) == ([0.0, 0.0, 1.0], True)
    said, rewards, done = played("TicTacToe-v0", ["0", "0", "0"], Task(), opponent=f"{file}:weak")
    assert "invalid move" in said[2]
    assert (rewards, done) == ([0.0, 0.0, -1.0], True)
    assert played("GuessTheNumber-v0", [str(n) for n in range(1, 21)], Task(seed=0))[1][-1] <= 1.0


@needs_textarena
@pytest.mark.parametrize(
    ("use", "args", "said"),
    [
        ("textarena:TicTacTo-v0", {}, "did you mean"),
        ("textarena:SecretMafia-v0", {}, "one or two players"),
        ("textarena:TwentyQuestions-v0", {}, "does not work here"),
        ("textarena:TicTacToe-v0", {"player": 2}, "must be 0 or 1"),
        ("textarena:TicTacToe-v0", {"size": 2}, "size"),
        ("textarena:TicTacToe-v0", {"opponent": "weak"}, "path/to/file.py:function"),
    ],
)
def test_settings_are_checked(use, args, said, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=said):
        made(use, **args)
