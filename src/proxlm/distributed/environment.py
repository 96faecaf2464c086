"""Which of the processes that torchrun has started this one is, from its environment. Imports no torch."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes run together; 1: this one alone."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def restarts() -> int:
    """How often torchrun has started the processes of this run again, because one of them had failed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def max_restarts() -> int:
    """How often torchrun starts them again at most."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0)


def machines() -> int:
    """How many of torchrun's agents run this run's processes."""
    return _number("GROUP_WORLD_SIZE", 1)


def restarts_apart() -> bool:
    """Whether several agents may start this run's processes again, each by its own count."""
    return machines() > 1 and max_restarts() > 0


def _number(name: str, otherwise: int) -> int:
    """A variable's number; otherwise: where it is not set, or is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise
