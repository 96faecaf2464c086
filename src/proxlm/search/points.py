"""Points of a space: the settings with their values, the grid of all, random ones, and those that are refused."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from proxlm.config.no_effect import leave_out, without_effect
from proxlm.config.parse import validate
from proxlm.config.tree import Assembly, split_key
from proxlm.config.values import toml_value
from proxlm.errors import ConfigError
from proxlm.search.space import Space, Values, value_at

# Points that are tried on the settings' own checks before a search begins.
_TRIED = 100


def settings_with(base: Any, values: Mapping[str, Any], space: Space = ()) -> Any:
    """The recipe's settings with these values instead of its own.

    What of the recipe has no effect any more has its default, as with options on the command line.

    Raises:
        ConfigError: They cannot be combined.
    """
    assembly = Assembly(type(base))
    assembly.set((), base, "recipe")
    also = {one.key: one.also for one in space}
    for key, value in values.items():
        for name in (key, *also.get(key, ())):
            assembly.set(split_key(name, "space"), value, "space")
    leave_out(assembly, ("space",))
    return validate(assembly.config)


def own_values(base: Any, space: Space) -> Values | None:
    """The recipe's own values of a space; None where the space does not hold them."""
    found: Values = {}
    for one in space:
        if not one.applies(found, base):
            continue
        value = value_at(base, one.key)
        if not one.contains(value) or any(value_at(base, key) != value for key in one.also):
            return None
        found[one.key] = value
    return found


def grid(base: Any, space: Space, most: int = 10**6) -> list[Values]:
    """Every combination of a space, the last setting fastest. Raises ConfigError for more than `most`."""
    found: list[Values] = [{}]
    for one in space:
        options = one.grid()
        found = [
            {**values, one.key: value} if one.applies(values, base) else values
            for values in found
            for value in (options if one.applies(values, base) else (None,))
        ]
        if len(found) > most:
            raise ConfigError(f"space: more than {most:,} combinations; give fewer values")
    return found


def random_values(base: Any, space: Space, generator: random.Random) -> Values:
    """A random point of a space."""
    found: Values = {}
    for one in space:
        if one.applies(found, base):
            found[one.key] = one.random(generator)
    return found


def refusals(base: Any, space: Space) -> list[str]:
    """Why points of the space are refused by the job's own checks, a line for each reason with its share.

    Tried are 100 random points. Those that a search draws later fail with the same reason, and count as trials.

    Raises:
        ConfigError: All of them are refused.
    """
    generator, reasons, known = random.Random(0), Counter[str](), dict[tuple[str, str], str]()
    for _ in range(_TRIED):
        values = random_values(base, space, generator)
        problem = _first_problem(base, values, space)
        if problem and problem not in known:
            known[problem] = _refusal(base, values, space)
        if problem and known[problem]:
            reasons[known[problem]] += 1
    if reasons.total() == _TRIED:
        raise ConfigError(f"space: no combination is allowed: {reasons.most_common(1)[0][0]}")
    return [f"{count / _TRIED:.0%} of the space is refused: {why}" for why, count in reasons.most_common(5)]


def _first_problem(base: Any, values: Values, space: Space) -> tuple[str, str] | None:
    """The first problem of a point beside the whole recipe. Leaving out what loses its effect may cure it."""
    config = base
    for one in space:
        for key in (one.key, *one.also) if one.key in values else ():
            config = _replaced(config, key.split("."), values[one.key])
    return next(iter((*config.problems(), *without_effect(config))), None)


def _replaced(section: Any, key: Sequence[str], value: Any) -> Any:
    """A copy of a section, or of a table, with another value at a key below it."""
    name, *below = key
    if isinstance(section, Mapping):
        return {**section, name: _replaced(section.get(name, {}), below, value) if below else value}
    new = _replaced(getattr(section, name), below, value) if below else value
    return dataclasses.replace(section, **{name: new})


def _refusal(base: Any, values: Values, space: Space) -> str:
    """Why a point is refused, by the setting and without its value; "": it is not."""
    try:
        settings_with(base, values, space)
    except ConfigError as error:
        key, _, reason = str(error).partition(": ")[2].partition(" = ")
        return f"{key}: {reason.partition(': ')[2]}"
    return ""


def in_words(values: Mapping[str, Any]) -> str:
    """Values on one line: optim.policy.lr = 0.0003, ppo.epochs = 4."""
    return ", ".join(f"{key} = {in_short(value)}" for key, value in values.items())


def in_short(value: Any) -> str:
    """A value for a table."""
    return f"{value:.4g}" if isinstance(value, float) else toml_value(value)
