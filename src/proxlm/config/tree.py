"""Trees of settings: the sections and keys of a job, and setting them one key after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, get_args, get_type_hints

from proxlm.config.other_names import NOT_IN_PPO, OTHER_NAMES
from proxlm.config.secret_names import secret_name
from proxlm.config.setting import Bounds
from proxlm.config.toml_text import DEEPEST
from proxlm.config.values import Key, convert, dotted, expected, from_text, is_table, mismatch, shown_value
from proxlm.errors import ConfigError
from proxlm.masking import UNSHOWN
from proxlm.text import nearest, shown


def kinds(section: Any) -> dict[str, Any]:
    """The names of a section's settings, in order, with their declared types. section: a dataclass."""
    return _kinds(section)


@cache
def _kinds(section: Any) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def is_section(kind: Any) -> bool:
    """Whether a declared type is a section of settings, not a single value or a table."""
    return dataclasses.is_dataclass(kind)


def known_keys(section: Any, at: Key = ()) -> Iterator[Key]:
    """The keys of every section and setting in `section`, which stands at `at`; not those inside tables."""
    for name, kind in kinds(section).items():
        yield (*at, name)
        if is_section(kind):
            yield from known_keys(kind, (*at, name))


def split_key(text: str, source: str) -> Key:
    """The names in a dotted key: ppo.lam → ("ppo", "lam")."""
    key = tuple(text.split("."))
    if len(key) > DEEPEST:
        raise ConfigError(f"{source}: {shown(text)}: nested too deeply: a key of more than {DEEPEST} parts")
    if "" in key or not text.isprintable():  # bytes that are not UTF-8 arrive as lone surrogates
        raise ConfigError(f"{source}: {shown(ascii(text))}: not a key; write section.key")
    return key


def unknown_key(job: Any, section: Any, at: Key, below: Key, source: str) -> ConfigError:
    """The error for a key that does not exist; it names the nearest key that does.

    Args:
        job: The class of the job's settings.
        section: The section, a dataclass, that lacks the key.
        at: The section's key.
        below: The unknown key, relative to the section.
        source: Where the key was given.
    """
    key, names = (*at, *below), list(kinds(section))
    known = list(known_keys(job))
    if ("ppo",) in known and key[-1] in NOT_IN_PPO:
        return ConfigError(f"{source}: {dotted(key)}: unknown key; {NOT_IN_PPO[key[-1]]}")
    if ("set",) in known and len(key) > 1 and (key[0],) not in {other[:1] for other in known}:
        return ConfigError(
            f"{source}: {dotted(key)}: unknown key; a recipe's is given as --set {dotted(key)}=VALUE"
        )
    near = [name for name in OTHER_NAMES.get(key[-1], ()) if tuple(name.split(".")) in known]
    near = near or [dotted(other) for other in known if other[-1] == key[-1]]
    if not near and len(below) == 1 and (name := nearest(below[0], names)):
        near = [dotted((*at, name))]
    if not near and (last := nearest(key[-1], [other[-1] for other in known], least=0.65)):
        alike = [dotted(other) for other in known if other[-1] == last]
        near = [nearest(dotted(key), alike) or alike[0]]
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed here: {', '.join(names)}"
    return ConfigError(f"{source}: {dotted(key)}: unknown key; {hint}")


def key_below_value(at: Key, below: Key, source: str) -> ConfigError:
    """The error for a key `below` the key `at`, which holds a single value."""
    return ConfigError(f"{source}: {dotted((*at, *below))}: unknown key; {dotted(at)} is a single value")


def check_depth(value: Any, where: str) -> None:
    """Raise ConfigError if tables and lists are nested more than DEEPEST deep, or hold themselves."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    seen: dict[int, int] = {}
    while waiting:
        one, depth = waiting.pop()
        if not isinstance(one, Mapping | list | tuple) or seen.get(id(one), -1) >= depth:
            continue
        if depth >= DEEPEST:
            raise ConfigError(
                f"{where}: nested too deeply: more than {DEEPEST} lists and tables in one another"
            )
        seen[id(one)] = depth
        waiting += [(item, depth + 1) for item in (one.values() if isinstance(one, Mapping) else one)]


class Assembly:
    """A job's settings while they are put together, and the source of each.

    Attributes:
        job: The class of the settings.
        config: The settings so far; at first the defaults.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self.config: Any = job()
        self._sources: dict[Key, str] = {}

    def set(self, key: Key, value: Any, source: str) -> None:
        """Set one key; () is the whole tree. A table sets the keys of a section in it, but replaces a whole dict."""
        check_depth(value, f"{source}: {dotted(key)}" if key else source)
        self.config = self._assigned(self.job, self.config, (), key, value, source, Bounds())

    def reset(self, key: Key) -> None:
        """Give a key its default again, as if no source had set it or one below it."""
        value: Any = self.job()
        for name in key:
            value = getattr(value, name)
        self.set(key, value, "")
        for other in [other for other in self._sources if other[: len(key)] == key]:
            del self._sources[other]

    def source(self, key: Key) -> str | None:
        """The source that last set the key or one below it; None if it has its default."""
        sources = [source for other, source in self._sources.items() if other[: len(key)] == key]
        return sources[-1] if sources else None

    def _assigned(
        self, kind: Any, current: Any, at: Key, below: Key, value: Any, source: str, bounds: Bounds
    ) -> Any:
        """A copy of `current`, the value at the key `at`, with `value` set at the key `below` it."""
        if is_section(kind):
            return self._section(kind, current, at, below, value, source)
        if is_table(kind) or (kind is Any and below):
            return self._table(kind, current, at, below, value, source, bounds)
        if below:
            raise key_below_value(at, below, source)
        try:
            value = convert(kind, value)
        except ValueError as error:
            # The value is in the message.
            reason = f"expected {expected(kind)}, got {UNSHOWN}" if at and secret_name(at[-1]) else error
            raise ConfigError(f"{source}: {dotted(at)}: {reason}") from None
        numbers = [value] if kind in (int, float) else value if kind == list[int] else []
        problem = next(filter(None, map(bounds.problem, numbers)), None)
        if problem:
            raise ConfigError(f"{source}: {dotted(at)} = {shown_value(value)}: {problem}")
        self._record(at, source)
        return value

    def _record(self, at: Key, source: str) -> None:
        self._sources.pop(at, None)  # so that it is the last one again
        self._sources[at] = source

    def _section(self, kind: Any, current: Any, at: Key, below: Key, value: Any, source: str) -> Any:
        if below:
            entries = [(below, value)]
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
        self, kind: Any, current: Any, at: Key, below: Key, value: Any, source: str, bounds: Bounds
    ) -> dict[str, Any]:
        element = get_args(kind)[1] if is_table(kind) else Any
        if below:
            table = dict(current) if isinstance(current, Mapping) else {}
            entries = [(below, value)]
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


def first_setting(section: Any, at: Key) -> tuple[Key, Any]:
    """Key and declared type of the first setting of a section that stands at `at`: what it is mainly about."""
    name, kind = next(iter(kinds(section).items()))
    return first_setting(kind, (*at, name)) if is_section(kind) else ((*at, name), kind)


def _items(kind: Any, value: Any, at: Key, source: str) -> list[tuple[str, Any]]:
    if is_section(kind) and at and isinstance(value, str | int | float):
        key, wanted = first_setting(kind, at)
        with suppress(ValueError):
            convert(wanted, from_text(wanted, value) if isinstance(value, str) else value)
            said = f"{source}: {dotted(at)} = {shown_value(value)}: a section of settings"
            raise ConfigError(f"{said}; did you mean {dotted(key)}?")
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{source}: {dotted(at)}: {mismatch(kind, value)}")
    return list(value.items())
