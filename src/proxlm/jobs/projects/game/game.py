"""The game: an environment is any object with reset and step. One is made for each conversation."""

import random

TURNS = 6


class Pig:
    """Dice: each roll is worth a point, but a one loses them all. Whoever stops keeps the points, in fifths.

    After six turns without a stop it is too late, and nothing is kept.
    """

    def reset(self, task):
        self.dice = random.Random(task.chance)  # differs between conversations; task.seed is the task's own
        self.points = self.turns = 0
        return "0 >"

    def step(self, reply):
        self.turns += 1
        if reply.strip() == "stop":
            return "kept", self.points / 5, True
        if self.turns == TURNS:
            return "too late", 0.0, True
        if reply.strip() != "roll":
            return f"{self.points} >", 0.0, False
        if self.dice.randint(1, 6) == 1:
            return "lost", 0.0, True
        self.points += 1
        return f"{self.points} >", 0.0, False


def mean_return(rolls):
    """What it earns on average to roll so many times, and then to stop."""
    return (5 / 6) ** rolls * rolls / 5
