"""The space of a search: settings of a job with the values that each may have, checked before any trial.

A space is TOML with the job's own sections. A list holds the values to choose from; a table holds a range, low to
high, of a number; `also` names settings that get the same value, and `when` the values of others that it is for.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from proxlm.config.toml_text import LARGEST_RECIPE, parse_toml
from proxlm.config.tree import Assembly, is_section, kinds, split_key, unknown_key
from proxlm.config.values import choices, dotted, is_table, shown_value
from proxlm.errors import ConfigError
from proxlm.files import read_regular
from proxlm.text import shown, system_reason

_RANGE = ("low", "high", "log", "step", "choices", "also", "when")
# Settings of a space at most.
_MOST = 100
# Values of one setting at most, and combinations of a grid.
MOST_VALUES = 1000


@dataclass(frozen=True)
class Parameter:
    """One setting of a space.

    Attributes:
        key: Its dotted key.
        options: The values to choose from; empty: a range.
        low, high: The ends of the range, both in it.
        whole: Whether the range is of whole numbers.
        log: Whether equal ratios are equally likely instead of equal differences.
        step: The distance of the values from low on; 0: every number.
        also: Keys that get the same value.
        when: Values of other settings with which alone this one is set.
    """

    key: str
    options: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    step: float = 0.0
    also: tuple[str, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def ends(self) -> tuple[Any, ...]:
        """The values that are checked: all options, or both ends."""
        return self.options or (self.low, self.high)

    def grid(self) -> tuple[Any, ...]:
        """All values, in order. Raises ConfigError where they are not so many that can be tried one by one."""
        if self.options:
            return self.options
        if self.log or not (self.whole or self.step):
            raise ConfigError(f"{self.key}: a grid needs a list of values, or a step without log")
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        if count > MOST_VALUES:
            raise ConfigError(f"{self.key}: {count} values in a grid; give a list, or a larger step")
        found = [self.low + i * step for i in range(count)]
        return tuple(map(int, found)) if self.whole else tuple(found)

    def contains(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if self.options:
            return any(type(one) is type(value) and one == value for one in self.options)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
        ):
            return False
        return not self.step or math.isclose((value - self.low) / self.step % 1, 0, abs_tol=1e-9)

    def applies(self, values: Mapping[str, Any], base: Any) -> bool:
        """Whether it is set, given the settings before it in the space; others have the recipe's values."""
        return all(
            (values[key] if key in values else value_at(base, key)) in allowed for key, allowed in self.when
        )

    def random(self, generator: random.Random) -> Any:
        """A value of it."""
        if self.options:
            return generator.choice(self.options)
        if self.whole or self.step:
            steps = math.floor((self.high - self.low) / (self.step or 1) + 1e-9)
            value = self.low + generator.randint(0, steps) * (self.step or 1)
            return int(value) if self.whole else value
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)


Space = tuple[Parameter, ...]
Values = dict[str, Any]


def read_space(file: Path, base: Any) -> Space:
    """The space of a TOML file for a job's settings. Raises ConfigError that names the file."""
    try:
        table = parse_toml(read_regular(file, LARGEST_RECIPE).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"space: {file}: no such file, and no ready space of that name") from None
    except OSError as error:
        raise ConfigError(f"space: {file}: cannot be read: {system_reason(error)}") from None
    except ValueError as error:
        raise ConfigError(f"space: {file}: not valid TOML: {shown(str(error), 150)}") from None
    return space_of(table, base, str(file))


def space_of(table: Mapping[str, Any], base: Any, source: str = "space") -> Space:
    """The space that a table says, checked against the settings that it is for.

    Args:
        table: Sections and keys as in a recipe, or dotted keys; {"ppo": {"epochs": [1, 2, 4]}}.
        base: The settings of the recipe.
        source: Named in messages.

    Raises:
        ConfigError: A key is unknown, a value is out of bounds, or no combination is allowed.
    """
    found = list(_parameters(table, type(base), type(base), (), source))
    if not found:
        raise ConfigError(f"{source}: an empty space; give section.key = [values] or {{low = …, high = …}}")
    if len(found) > _MOST:
        raise ConfigError(f"{source}: {len(found)} settings; at most {_MOST} can be searched")
    space = tuple(_in_order(found, source))
    keys = [key for one in space for key in (one.key, *one.also)]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise ConfigError(f"{source}: {twice[0]}: given twice")
    for one in space:
        _check_values(one, base, source)
    return space


def _parameters(
    table: Mapping[str, Any], job: Any, kind: Any, at: tuple[str, ...], source: str
) -> Iterator[Parameter]:
    """The settings below `kind`, a section of the job or a table of arguments, depth first."""
    for name, value in table.items():
        first, *more = split_key(name, source)
        if more:  # a dotted key in quotes, or from Python
            yield from _parameters({first: {".".join(more): value}}, job, kind, at, source)
            continue
        key = (*at, first)
        if is_section(kind):
            if first not in kinds(kind):
                raise unknown_key(job, kind, at, (first,), source)
            below = kinds(kind)[first]
        else:
            below = get_args(kind)[1]
        if is_section(below) or is_table(below):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {dotted(key)}: a section; search a setting in it")
            yield from _parameters(value, job, below, key, source)
        else:
            yield _parameter(key, below, value, source)


def _parameter(key: tuple[str, ...], kind: Any, value: Any, source: str) -> Parameter:
    where = f"{source}: {dotted(key)}"
    if isinstance(value, list | tuple):
        value = {"choices": list(value)}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} = {shown_value(value)}: one value is no search; give a list or {{low = …, high = …}}, or set it"
            " in the recipe"
        )
    if unknown := [name for name in value if name not in _RANGE]:
        raise ConfigError(f"{where}: {shown(str(unknown[0]))}: not one of {', '.join(_RANGE)}")
    also, when = value.get("also", []), value.get("when", {})
    if not isinstance(also, list) or not all(isinstance(one, str) for one in also):
        raise ConfigError(f"{where}: also: expected a list of keys, got {shown_value(also)}")
    if not isinstance(when, Mapping):
        raise ConfigError(f"{where}: when: expected a table, got {shown_value(when)}")
    shared = {"key": ".".join(key), "also": tuple(also), "when": tuple(_conditions(when))}
    if "choices" in value:
        return _of_choices(value, where, shared)
    return _of_range(kind, value, where, shared)


def _conditions(table: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, value in table.items():
        key = f"{at}.{name}" if at else name
        if isinstance(value, Mapping):
            yield from _conditions(value, key)
        else:
            yield key, tuple(value) if isinstance(value, list) else (value,)


def _of_choices(value: Mapping[str, Any], where: str, shared: Mapping[str, Any]) -> Parameter:
    options = value["choices"]
    if not isinstance(options, list) or not options:
        raise ConfigError(f"{where}: choices: expected a list of values, got {shown_value(options)}")
    if len(options) > MOST_VALUES:
        raise ConfigError(f"{where}: {len(options)} values; at most {MOST_VALUES}")
    if rest := [name for name in ("low", "high", "log", "step") if name in value]:
        raise ConfigError(f"{where}: {rest[0]}: not with choices")
    if len({repr(one) for one in options}) < len(options):
        raise ConfigError(f"{where}: a value is given twice")
    return Parameter(options=tuple(options), **shared)


def _of_range(kind: Any, value: Mapping[str, Any], where: str, shared: Mapping[str, Any]) -> Parameter:
    numbers: dict[str, Any] = {name: value.get(name) for name in ("low", "high")}
    numbers["step"] = value.get("step", 0)
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            missing = (
                "needed for a range" if number is None else f"expected a number, got {shown_value(number)}"
            )
            raise ConfigError(f"{where}: {name}: {missing}")
    if kind not in (int, float, Any):
        named = f": {', '.join(choices(kind))}" if choices(kind) else ""
        raise ConfigError(f"{where}: a range is for numbers; give a list of its values{named}")
    whole = kind is int or (kind is Any and all(isinstance(number, int) for number in numbers.values()))
    if whole and not all(isinstance(number, int) for number in numbers.values()):
        raise ConfigError(f"{where}: low, high and step must be whole numbers")
    if not isinstance(log := value.get("log", False), bool):
        raise ConfigError(f"{where}: log: expected true or false, got {shown_value(log)}")
    low, high, step = numbers["low"], numbers["high"], numbers["step"]
    if not low < high:
        raise ConfigError(f"{where}: low = {low} must be below high = {high}")
    if log and low <= 0:
        raise ConfigError(f"{where}: low must be more than 0 with log = true")
    if step < 0 or (log and step) or step > high - low:
        raise ConfigError(f"{where}: step must be between 0 and high − low, and not with log = true")
    if not whole:
        low, high, step = float(low), float(high), float(step)
    return Parameter(low=low, high=high, step=step, whole=whole, log=log, **shared)


def _in_order(found: Sequence[Parameter], source: str) -> Iterator[Parameter]:
    """Each after those that its condition names."""
    left, done = list(found), set[str]()
    searched = {one.key for one in found}
    while left:
        ready = [one for one in left if all(key in done or key not in searched for key, _ in one.when)]
        if not ready:
            raise ConfigError(f"{source}: {left[0].key}: when: depends on itself")
        yield from ready
        done |= {one.key for one in ready}
        left = [one for one in left if one not in ready]


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key; None where the recipe has none, in a table of arguments for instance."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _check_values(one: Parameter, base: Any, source: str) -> None:
    """Raise ConfigError for a value that its setting does not allow, or a condition that names none."""
    for key in (one.key, *one.also):
        for value in one.ends():
            assembly = Assembly(type(base))
            assembly.set(split_key(key, source), value, source)
    for key, allowed in one.when:
        for value in allowed:
            Assembly(type(base)).set(split_key(key, source), value, f"{source}: {one.key}: when")
