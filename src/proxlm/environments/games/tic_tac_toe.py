"""Noughts and crosses against a scripted opponent."""

from __future__ import annotations

import random
from functools import cache

from proxlm.environments.protocol import Answer, Task

WINS = [tuple(map(int, line)) for line in ("012", "345", "678", "036", "147", "258", "048", "246")]
EMPTY, MINE, THEIRS = ".", "x", "o"


def winner(board: str) -> str:
    """Whose line is full: "x", "o", or "" for nobody's."""
    for a, b, c in WINS:
        if board[a] == board[b] == board[c] != EMPTY:
            return board[a]
    return ""


def free(board: str) -> list[int]:
    return [place for place, mark in enumerate(board) if mark == EMPTY]


def put(board: str, place: int, mark: str) -> str:
    return board[:place] + mark + board[place + 1 :]


def winning(board: str, mark: str) -> list[int]:
    """Places with which `mark` would win at once."""
    return [place for place in free(board) if winner(put(board, place, mark)) == mark]


class TicTacToe:
    """The policy has x, moves first, and replies with a place from 1 to 9.

    The opponent wins where it can at once, and moves at random else. A win pays 1, a draw 0.5, a loss 0; a reply
    that is no free place loses, too.
    """

    def reset(self, task: Task) -> str:
        self.board, self.draw = EMPTY * 9, random.Random(task.chance)
        return self._shown()

    def _shown(self) -> str:
        return " ".join(self.board) + " >"

    def step(self, reply: str) -> Answer:
        text = reply.strip()
        if text not in [str(place + 1) for place in free(self.board)]:
            return "no\n", 0.0, True
        self.board = put(self.board, int(text) - 1, MINE)
        if winner(self.board):
            return "won\n", 1.0, True
        if not free(self.board):
            return "draw\n", 0.5, True
        place = self.draw.choice(winning(self.board, THEIRS) or free(self.board))
        self.board = put(self.board, place, THEIRS)
        if winner(self.board):
            return "lost\n", 0.0, True
        return self._shown(), 0.0, False

    def random_reply(self, draw: random.Random) -> str:
        return str(draw.choice(free(self.board)) + 1)

    def best_return(self, turns: int) -> float:  # noqa: ARG002 (five moves are the most there are)
        """The expected return of the best play against this opponent, by search."""

        @cache
        def value(board: str) -> float:
            return max(after(put(board, place, MINE)) for place in free(board))

        def after(board: str) -> float:
            if winner(board):
                return 1.0
            if not free(board):
                return 0.5
            answers = [put(board, p, THEIRS) for p in winning(board, THEIRS) or free(board)]
            return sum(0.0 if winner(b) else value(b) for b in answers) / len(answers)

        return value(EMPTY * 9)
