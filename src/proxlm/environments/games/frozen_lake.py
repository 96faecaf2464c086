"""Gymnasium's FrozenLake, told in words."""

from __future__ import annotations

import random
from typing import Any

from proxlm.environments.protocol import Answer, Task
from proxlm.errors import ConfigError

MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}
STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
WORDS = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}


class FrozenLake:
    """Cross the ice to the goal: a reply is left, down, right or up, and the answer says what is around.

    The goal pays 1, all else 0; a hole ends the game, and a reply that is no move does nothing. slippery: the ice
    may move one to either side instead, each as likely as the way one wants to go. size "4x4" or "8x8".
    """

    def __init__(self, size: str = "4x4", slippery: bool = False) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise ConfigError('frozen-lake needs Gymnasium: pip install "proxlm[control]"') from error
        if size not in ("4x4", "8x8"):
            raise ValueError(f'size must be "4x4" or "8x8", got "{size}"')
        # How long one may walk is for environment.max_turns to say.
        options: dict[str, Any] = {"map_name": size, "is_slippery": slippery, "max_episode_steps": 10_000}
        self.lake: Any = gymnasium.make("FrozenLake-v1", **options)
        inner: Any = self.lake.unwrapped
        self.map = [[cell.decode() for cell in row] for row in inner.desc]

    def reset(self, task: Task) -> str:
        place, _ = self.lake.reset(seed=task.chance % 2**31)
        return self._shown(place)

    def _shown(self, place: int) -> str:
        """Where one is, and what is left, down, right and up of it."""
        size = len(self.map)
        row, column = divmod(int(place), size)
        around = []
        for down, across in STEPS.values():
            r, c = row + down, column + across
            inside = 0 <= r < size and 0 <= c < size
            around.append(WORDS[self.map[r][c]] if inside else "shore")
        return f"row {row + 1} column {column + 1} : {' '.join(around)} >"

    def step(self, reply: str) -> Answer:
        move = MOVES.get(reply.strip())
        if move is None:
            return "what >", 0.0, False
        place, reward, ended, _, _ = self.lake.step(move)
        return self._shown(place), float(reward), bool(ended)

    def random_reply(self, draw: random.Random) -> str:
        return draw.choice(list(MOVES))

    def best_return(self, turns: int) -> float:
        """The expected return of the best play within `turns` moves, by dynamic programming."""
        inner: Any = self.lake.unwrapped
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
