"""Gymnasium's FrozenLake, told in words."""

from __future__ import annotations

import random
from typing import Any

from proxlm.environments.gymnasium_text import ACTIONS, GymnasiumText

MOVES = ACTIONS["FrozenLake"]
STEPS = ((0, -1), (1, 0), (0, 1), (-1, 0))
WORDS = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}


class FrozenLake(GymnasiumText):
    """Cross the ice to the goal: a reply is left, down, right or up, and the answer says what is around.

    The goal pays 1, all else 0; a hole ends the game, and a reply that is no move does nothing. slippery: the ice
    may move one to either side instead, each as likely as the way one wants to go. size "4x4" or "8x8".
    """

    def __init__(self, size: str = "4x4", slippery: bool = False) -> None:
        if size not in ("4x4", "8x8"):
            raise ValueError(f'size must be "4x4" or "8x8", got "{size}"')
        super().__init__("FrozenLake-v1", prompt="", illegal="what >", map_name=size, is_slippery=slippery)
        self.map = [[cell.decode() for cell in row] for row in self.environment.unwrapped.desc]

    def shown(self, observation: Any) -> str:
        """Where one is, and what is left, down, right and up of it."""
        size = len(self.map)
        row, column = divmod(int(observation), size)
        around = []
        for down, across in STEPS:
            r, c = row + down, column + across
            inside = 0 <= r < size and 0 <= c < size
            around.append(WORDS[self.map[r][c]] if inside else "shore")
        return f"row {row + 1} column {column + 1} : {' '.join(around)} >"

    def random_reply(self, draw: random.Random) -> str:
        return draw.choice(MOVES)

    def best_return(self, turns: int) -> float:
        """The expected return of the best play within `turns` moves, by dynamic programming."""
        inner: Any = self.environment.unwrapped
        value = dict.fromkeys(inner.P, 0.0)
        for _ in range(turns):
            value = {
                state: max(
                    sum(
                        p * (reward + (0.0 if ended else value[after]))
                        for p, after, reward, ended in outcomes
                    )
                    for outcomes in moves.values()
                )
                for state, moves in inner.P.items()
            }
        return value[0]
