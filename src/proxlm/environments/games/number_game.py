"""Find a secret number: ask a tool whether it is less than some number, then say what it is."""

from __future__ import annotations

import random
from functools import cache

from proxlm.environments.protocol import Answer, Task


class NumberGame:
    """A number from 1 to `highest`. A reply is "less N" (the tool answers yes or no) or "is N", which ends the game.

    A right guess pays 1, a wrong one 0; each question costs `price`, and so does a reply that is neither. The best
    play asks for halves: with highest 8 three questions, so 1 − 3 · price.
    """

    def __init__(self, highest: int = 8, price: float = 0.05) -> None:
        if highest < 2:
            raise ValueError(f"highest must be 2 or more, got {highest}")
        if not 0 <= price <= 1:
            raise ValueError(f"price must be from 0 to 1, got {price}")
        self.highest, self.price = highest, price

    def reset(self, task: Task) -> str:
        self.secret = random.Random(task.seed).randint(1, self.highest)
        return f"a number from 1 to {self.highest} >"

    def step(self, reply: str) -> Answer:
        match reply.split():
            case ["is", number] if number.isdecimal():
                right = int(number) == self.secret
                return ("right\n" if right else "wrong\n"), float(right), True
            case ["less", number] if number.isdecimal():
                return ("yes >" if self.secret < int(number) else "no >"), -self.price, False
        return "what >", -self.price, False

    def best_return(self, turns: int) -> float:
        """The expected return of the best play within `turns` replies, by search over what is still possible."""
        price = self.price

        @cache
        def value(count: int, left: int) -> float:
            """Of `count` numbers still possible, all as likely, with `left` replies left."""
            if left == 0:
                return 0.0
            asks = [
                -price + (k * value(k, left - 1) + (count - k) * value(count - k, left - 1)) / count
                for k in range(1, count)
            ]
            return max([1.0 / count, *asks])

        return value(self.highest, turns)

    def random_reply(self, draw: random.Random) -> str:
        """A guess in one of five cases, else a question; none is less than 1, so that is not asked."""
        if draw.random() < 1 / 5:
            return f"is {draw.randint(1, self.highest)}"
        return f"less {draw.randint(2, self.highest)}"
