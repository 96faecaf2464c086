"""Trees of settings: walking a job's sections, and setting one key of them after another."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_type_hints

from proxlm.config.setting import Bounds
from proxlm.config.values import Key, convert, dotted, is_table, mismatch, shown
from proxlm.errors import ConfigError


def kinds(section: Any) -> dict[str, Any]:
    """The settings of a section, a dataclass, in order, and their declared types."""
    return _kinds(section)


@cache
def _kinds(section: Any) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def is_section(kind: Any) -> bool:
    """Whether a declared type is a section of settings, not a single one or a table."""
    return dataclasses.is_dataclass(kind)


def known_keys(section: Any, at: Key = ()) -> Iterator[Key]:
    """Every section and setting below `at`, but not what users name themselves inside tables."""
    for name, kind in kinds(section).items():
        yield (*at, name)
        if is_section(kind):
            yield from known_keys(kind, (*at, name))


def split_key(text: str, source: str) -> Key:
    """The names in a dotted key: ppo.lam → ("ppo", "lam")."""
    key = tuple(text.split("."))
    if "" in key or not text.isprintable():  # bytes that are not UTF-8 arrive as lone surrogates
        raise ConfigError(f"{source}: {text!a}: not a key; write section.key")
    return key


def unknown_key(job: Any, section: Any, at: Key, rest: Key, source: str) -> ConfigError:
    """The error for a key that `section`, at `at`, does not have: names the nearest key that exists."""
    key, names = (*at, *rest), list(kinds(section))
    known = list(known_keys(job))
    near = [dotted(other) for other in known if other[-1] == key[-1]]
    if not near and len(rest) == 1:
        near = [dotted((*at, name)) for name in difflib.get_close_matches(rest[0], names, n=1)]
    if not near:
        last = difflib.get_close_matches(key[-1], [other[-1] for other in known], n=1)
        alike = [dotted(other) for other in known if other[-1:] == tuple(last)]
        near = difflib.get_close_matches(dotted(key), alike, n=1, cutoff=0)
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed here: {', '.join(names)}"
    return ConfigError(f"{source}: {dotted(key)}: unknown key; {hint}")


def key_below_value(at: Key, rest: Key, source: str) -> ConfigError:
    """The error for a key `rest` below `at`, which is a single value."""
    return ConfigError(f"{source}: {dotted((*at, *rest))}: unknown key; {dotted(at)} is a single value")


class Assembly:
    """A job's settings while they are put together, and where each came from."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.config: Any = job()
        self._given: dict[Key, str] = {}

    def set(self, key: Key, value: Any, source: str) -> None:
        """Set one key. A table for a section sets the keys in it; for a dict it replaces the dict."""
        self.config = self._assigned(self.job, self.config, (), key, value, source, Bounds())

    def source(self, key: Key) -> str | None:
        """Where the key, or the latest of the keys below it, was given; None: nowhere, it is a default."""
        sources = [source for given, source in self._given.items() if given[: len(key)] == key]
        return sources[-1] if sources else None

    def _assigned(
        self, kind: Any, current: Any, at: Key, rest: Key, value: Any, source: str, bounds: Bounds
    ) -> Any:
        """`current`, which stands at `at`, with `value` at `rest` below it."""
        if is_section(kind):
            return self._section(kind, current, at, rest, value, source)
        if is_table(kind) or (kind is Any and rest):
            return self._table(kind, current, at, rest, value, source, bounds)
        if rest:
            raise key_below_value(at, rest, source)
        try:
            value = convert(kind, value)
        except ValueError as error:
            raise ConfigError(f"{source}: {dotted(at)}: {error}") from None
        problem = bounds.problem(value) if kind in (int, float) else None
        if problem:
            raise ConfigError(f"{source}: {dotted(at)} = {shown(value)}: {problem}")
        self._record(at, source)
        return value

    def _record(self, at: Key, source: str) -> None:
        self._given.pop(at, None)  # so that it stands last again
        self._given[at] = source

    def _section(self, kind: Any, current: Any, at: Key, rest: Key, value: Any, source: str) -> Any:
        if rest:
            entries = [(rest, value)]
        elif isinstance(value, kind):
            entries = [((name,), getattr(value, name)) for name in kinds(kind)]
        else:
            entries = [((name,), item) for name, item in _items(kind, value, at, source)]
        for (name, *deeper), item in entries:
            if name not in kinds(kind):
                raise unknown_key(self.job, kind, at, (name, *deeper), source)
            field = kind.__dataclass_fields__[name]
            bounds = field.metadata.get("bounds", Bounds())
            new = self._assigned(
                kinds(kind)[name], getattr(current, name), (*at, name), tuple(deeper), item, source, bounds
            )
            current = dataclasses.replace(current, **{name: new})
        return current

    def _table(
        self, kind: Any, current: Any, at: Key, rest: Key, value: Any, source: str, bounds: Bounds
    ) -> dict[str, Any]:
        element = get_args(kind)[1] if is_table(kind) else Any
        if rest:
            table = dict(current) if isinstance(current, Mapping) else {}
            entries = [(rest, value)]
        else:
            table = {}
            entries = [((name,), item) for name, item in _items(kind, value, at, source)]
            self._record(at, source)
        for (name, *deeper), item in entries:
            start = table.get(name)
            if start is None and is_section(element):
                start = element()
            table[name] = self._assigned(element, start, (*at, name), tuple(deeper), item, source, bounds)
        return table


def _items(kind: Any, value: Any, at: Key, source: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{source}: {dotted(at)}: {mismatch(kind, value)}")
    return list(value.items())
