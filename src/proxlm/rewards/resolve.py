"""From the settings of a reward to functions ready to be called; every mistake in the settings is found here."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

from proxlm.config.schema import RewardSettings
from proxlm.config.secrets import from_environment
from proxlm.errors import ConfigError
from proxlm.rewards.builtin import BUILTINS
from proxlm.text import listed, suggestion
from proxlm.user_code import load, parse_reference

_BUILT_IN = f"{listed(BUILTINS, most=8)} (docs/rewards.md)"

RewardFunction = Callable[..., Any]
"""(completions: list[Completion], **args) → B floats, B lists of floats, or a dict of such; sync or async."""

Rewards = RewardFunction | str | Sequence[RewardFunction | str] | Mapping[str, RewardFunction | str]
"""One reward, or several: their sum, with a component of its own for each (by name, or the function's). A text is
the name of a built-in reward or path/to/file.py:function."""


@dataclass(frozen=True)
class Term:
    """A reward function with its arguments.

    Attributes:
        name: The term's name; "" for a reward without terms.
        title: The reward's name in messages.
        function: The completions → the result.
        file: The source file of a user's function, else "".
        weight: Its factor in the sum.
        potential: Whether its per-token values are potentials.
        component_weights: Weights other than 1 of components to which the settings give none.
    """

    name: str
    title: str
    function: Callable[..., Any]
    file: str
    weight: float
    potential: bool = False
    component_weights: Mapping[str, float] = field(default_factory=dict)


def resolve_terms(config: RewardSettings, function: Rewards | None) -> list[Term]:
    """The functions that `config` names, or `function` (one or several) instead, with their arguments checked.

    Raises:
        ConfigError: The settings are wrong.
        UserCodeError: A user's file cannot be run.
    """
    if config.terms and (config.use or function is not None):
        raise ConfigError(
            "reward.terms: give either terms or a single reward (reward.use or a function), not both"
        )
    if config.terms and config.weights:
        raise ConfigError("reward.weights: with terms, the weights are reward.terms.NAME.weight")
    if isinstance(function, str):
        return [_term("", "reward", function, config.args, 1.0, {})]
    if isinstance(function, Mapping | Sequence):
        return _several(config, function)
    if function is not None:
        args = from_environment("reward.args", config.args)
        return [_user_term("", "reward", _title(function), function, args, 1.0)]
    if config.terms:
        modules: dict[str, ModuleType] = {}
        return [
            replace(
                _term(name, f"reward.terms.{name}", term.use, term.args, term.weight, modules),
                potential=term.potential,
            )
            for name, term in config.terms.items()
        ]
    if not config.use:
        raise ConfigError(
            "reward.use: required: a built-in reward, path/to/file.py:function, or reward.terms;"
            f" built in are {_BUILT_IN}"
        )
    return [_term("", "reward", config.use, config.args, 1.0, {})]


def _several(
    config: RewardSettings, functions: Sequence[RewardFunction | str] | Mapping[str, RewardFunction | str]
) -> list[Term]:
    """A term for each of several rewards, of weight 1 where `reward.weights` has none for its name."""
    if not functions:
        raise ConfigError("reward: an empty list of functions")
    if config.args:
        raise ConfigError("reward.args: only for a single function; bind arguments with functools.partial")
    if isinstance(functions, Mapping):
        named = dict(functions)
    else:
        named = {_short_name(function): function for function in functions}
        if len(named) < len(functions):
            raise ConfigError("reward: two functions have the same name; pass a dict of names and functions")
    if unknown := [name for name in config.weights if name not in named]:
        raise ConfigError(f"reward.weights.{unknown[0]}: no such reward; there are {listed(named)}")
    modules: dict[str, ModuleType] = {}
    terms = []
    for name, function in named.items():
        weight = config.weights.get(name, 1.0)
        if isinstance(function, str):
            terms.append(_term(name, f"reward.{name}", function, {}, weight, modules))
        else:
            terms.append(_user_term(name, "reward", name, function, {}, weight))
    return terms


def _short_name(function: RewardFunction | str) -> str:
    """What a reward is called among several: a function's own name, or the last part of a text."""
    title = function if isinstance(function, str) else _title(function)
    return title.replace(":", ".").rsplit(".", 1)[-1]


def _term(
    name: str, key: str, use: str, args: Mapping[str, Any], weight: float, modules: dict[str, ModuleType]
) -> Term:
    """One term. `modules` has the user's files that have been run, so that each is run once."""
    args = from_environment(f"{key}.args", args)
    title = f"{name} ({use})" if name else use
    if reference := parse_reference(use):
        return _user_term(name, key, title, load(f"{key}.use", reference, modules), args, weight)
    if use.endswith(".py"):
        raise ConfigError(f'{key}.use = "{use}": add the name of the function: {use}:FUNCTION')
    if use not in BUILTINS:
        listing = f"built in are {_BUILT_IN}; one of your own is path/to/file.py:function"
        raise ConfigError(
            f'{key}.use = "{use}": no such built-in reward; {suggestion(use, BUILTINS, listing)}'
        )
    factory = BUILTINS[use]
    signature = inspect.signature(factory, eval_str=True)
    _check_names(f"{key}.args", use, signature, args)
    for argument, value in args.items():
        hint = signature.parameters[argument].annotation
        if not fits(value, hint):
            raise ConfigError(f"{key}.args.{argument} = {value!r}: {use} needs {_hint_name(hint)} here")
    try:
        scorer = factory(**args)
    except ValueError as error:
        raise ConfigError(f"{key}.args.{error}") from error
    return Term(name, title, scorer, "", weight, component_weights=getattr(scorer, "weights", {}))


def _user_term(
    name: str, key: str, title: str, function: Any, args: Mapping[str, Any], weight: float
) -> Term:
    if not callable(function) or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise ConfigError(f"{key}.use: {title} is {kind}, not a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none to check
        signature = inspect.Signature([inspect.Parameter("_", inspect.Parameter.VAR_POSITIONAL)])
    _check_not_trl(f"{key}.use", title, signature)
    keywords = _without_completions(f"{key}.use", title, signature)
    _check_names(f"{key}.args", title, keywords, args, taken=next(iter(signature.parameters)))
    code = getattr(inspect.unwrap(function), "__code__", None)
    bound = functools.partial(function, **args) if args else function
    return Term(name, title, bound, code.co_filename if code else "", weight)


def _check_not_trl(key: str, title: str, signature: inspect.Signature) -> None:
    """Name the difference to the rewards of TRL, which get prompts, texts and the records' columns as arguments."""
    names = list(signature.parameters)
    if "prompts" in names and "completions" in names[1:]:
        raise ConfigError(
            f"{key}: {title} has the signature of TRL's rewards; here it gets one list, (completions), of"
            " objects with prompt, text and fields (the record). docs/rewards.md shows how to wrap it"
        )


def _without_completions(key: str, title: str, signature: inspect.Signature) -> inspect.Signature:
    """The signature without its first parameter, which takes the completions."""
    parameters = list(signature.parameters.values())
    kinds = inspect.Parameter
    if not parameters or parameters[0].kind in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD):
        raise ConfigError(
            f"{key}: {title}{signature} must take the list of completions as its first argument"
        )
    if parameters[0].kind is kinds.VAR_POSITIONAL:
        return signature.replace(parameters=parameters)
    more = [p.name for p in parameters[1:] if p.kind is kinds.POSITIONAL_ONLY and p.default is kinds.empty]
    if more:
        raise ConfigError(
            f'{key}: {title}{signature} needs "{more[0]}" by position; only the completions are passed by position'
        )
    return signature.replace(parameters=parameters[1:])


def _check_names(
    key: str, title: str, signature: inspect.Signature, args: Mapping[str, Any], taken: str = ""
) -> None:
    """Raise ConfigError unless every argument in `args` exists and is not `taken`, and none is missing."""
    kinds = inspect.Parameter
    by_name = {
        p.name: p
        for p in signature.parameters.values()
        if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes = f"it takes {listed(by_name, 'no arguments')}"
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    for name in args:
        if name not in by_name and (not takes_any or name == taken):
            raise ConfigError(
                f"{key}.{name}: {title} has no such argument; {suggestion(name, by_name, takes)}"
            )
    missing = [name for name, p in by_name.items() if p.default is kinds.empty and name not in args]
    if missing:
        columns = "; a record's fields are in completion.fields, not arguments" if taken else ""
        raise ConfigError(f"{key}.{missing[0]}: required by {title}; {takes}{columns}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from TOML is of the type that a built-in's argument declares."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in parameters and not isinstance(value, bool)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in parameters)
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(one, parameters[0]) for one in value)
    if origin is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _hint_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    return str(hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint)


def _title(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
