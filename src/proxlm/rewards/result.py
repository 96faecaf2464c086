"""What a reward function returned, read and checked: numbers, lists per token, or named components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.errors import RewardError
from proxlm.masking import masked
from proxlm.rewards.call import Outcome
from proxlm.text import reason_of, shown
from proxlm.types import Completion
from proxlm.user_code import describe_error, raise_interrupt

LARGEST_FLOAT32 = 3.4028234663852886e38


class UnusableResultError(Exception):
    """The whole result of a call is unusable; the message says why."""


@dataclass(frozen=True)
class Component:
    """One checked list of rewards for B completions.

    Attributes:
        values: [B]; for per-token rewards the sum over the completion's tokens. NaN: none, because the function gave
            None for the row, or because of a problem.
        per_token: Flat [R], or None; zeros for a row without a value.
        problems: Row → what is wrong with it.
    """

    values: list[float]
    per_token: list[float] | None
    problems: dict[int, str]


def parts_of(outcome: Outcome, file: str, completions: Sequence[Completion]) -> dict[str, Component]:
    """The components that a call of a reward function defined in `file` returned.

    Raises:
        UnusableResultError: It raised something, sys.exit() included, or returned what is no result.
        KeyboardInterrupt: It raised that: a request to stop is no failure of a reward.
    """
    if outcome.error is not None:
        raise_interrupt(outcome.error)
        verb = "failed:" if isinstance(outcome.error, RewardError) else "raised"
        raise UnusableResultError(f"{verb} {describe_error(outcome.error, file)}")
    return read_result(outcome.value, completions)


def read_result(result: Any, completions: Sequence[Completion]) -> dict[str, Component]:
    """The components, by name, in what a reward function returned; a plain list has the name "".

    Raises UnusableResultError if no row can be trusted: the wrong type, the wrong count, no components.
    """
    if not isinstance(result, Mapping):
        return {"": _read_list(result, completions, "")}
    if not result:
        raise UnusableResultError("returned a dict without components")
    bad = [name for name in result if not isinstance(name, str) or not name]
    if bad:
        raise UnusableResultError(f"returned a dict with the key {bad[0]!r}; components need names")
    # A name goes into metrics, statistics and checkpoints, so it must hold no secret, and be the same after a resume.
    return {
        masked(name): _read_list(values, completions, f" in component {name!r}")
        for name, values in result.items()
    }


def _read_list(values: Any, completions: Sequence[Completion], place: str) -> Component:
    values = _plain(values)
    if not isinstance(values, list | tuple):
        raise UnusableResultError(
            f"returned {_describe(values)}{place} instead of a list with a number per completion"
        )
    if len(values) != len(completions):
        raise UnusableResultError(
            f"returned {_count(values, 'score')}{place} for {_count(completions, 'completion')}"
        )
    rows = [_plain(value) for value in values]
    problems: dict[int, str] = {}
    if any(isinstance(row, list | tuple) for row in rows):
        lists: list[list[float]] = []
        for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            tokens = len(completion.tokens)
            lists.append(_read_row(row, tokens, i, place, problems) or [0.0] * tokens)
        sums = [
            math.nan if i in problems or rows[i] is None else math.fsum(row) for i, row in enumerate(lists)
        ]
        return Component(sums, [number for row in lists for number in row], problems)
    numbers = [_read_row(row, None, i, place, problems) for i, row in enumerate(rows)]
    return Component([math.nan if n is None else n for n in numbers], None, problems)


def _read_row(row: Any, tokens: int | None, index: int, place: str, problems: dict[int, str]) -> Any:
    """The row as a number, or as a list of `tokens` numbers; or None, with an entry in `problems`.

    A row may be an exception, whose message is then the problem, or None, which is no problem: it has no reward.
    """
    if row is None:
        return None
    if isinstance(row, BaseException):
        raise_interrupt(row)
        problems[index] = f"failed{place} for completion {index}: {describe_error(row)}"
        return None
    try:
        return _number(row) if tokens is None else _token_rewards(row, tokens)
    except UnusableResultError as error:
        problems[index] = f"returned {error}{place} for completion {index}"
        return None


def _token_rewards(row: Any, tokens: int) -> list[float]:
    if not isinstance(row, list | tuple):
        raise UnusableResultError(f"{_describe(row)}, where others have a list of token rewards,")
    if len(row) != tokens:
        raise UnusableResultError(f"{_count(row, 'token reward')} instead of {tokens}")
    return [_number(_plain(value)) for value in row]


def _number(value: Any) -> float:
    if not hasattr(value, "__float__"):
        raise UnusableResultError(_describe(value))
    try:
        number = float(value)
    except Exception as error:  # a foreign __float__ may raise anything
        raise UnusableResultError(f"{_describe(value)} ({reason_of(error)})") from error
    if not math.isfinite(number):
        raise UnusableResultError(f"{number}")
    if abs(number) > LARGEST_FLOAT32:
        raise UnusableResultError(f"{number} (too large for float32)")
    return number


def _plain(value: Any) -> Any:
    """A tensor or array as lists or a number; everything else as it is."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    quoted = f" ('{shown(value, 40)}')" if isinstance(value, str) else ""
    return f"{article} {kind}{quoted}"


def _count(values: Sequence[Any], what: str) -> str:
    return f"{len(values)} {what}{'' if len(values) == 1 else 's'}"
