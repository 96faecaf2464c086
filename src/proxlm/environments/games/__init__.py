"""Games that come with the library, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from proxlm.environments.games.frozen_lake import FrozenLake
from proxlm.environments.games.number_game import NumberGame
from proxlm.environments.games.tic_tac_toe import TicTacToe
from proxlm.environments.protocol import Task
from proxlm.seeds import Purpose, derive_seed

GAMES: dict[str, Callable[..., Any]] = {
    "number-game": NumberGame,
    "tic-tac-toe": TicTacToe,
    "frozen-lake": FrozenLake,
}


def random_play(name: str, args: dict[str, Any], turns: int, seed: int) -> str:
    """One game of legal replies at random, as the policy would read it: a text to pretrain on."""
    game, draw = GAMES[name](**args), random.Random(seed)
    text = game.reset(Task(seed=derive_seed(seed, Purpose.TASK), chance=derive_seed(seed, Purpose.CHANCE)))
    for _ in range(turns):
        reply = game.random_reply(draw)
        answer, _, done = game.step(reply)
        text += f" {reply}\n"
        if done:
            break
        text += answer
    return text
