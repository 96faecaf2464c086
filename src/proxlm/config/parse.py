"""From defaults, a TOML file, Python and the command line to one job's settings, and back to TOML."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from proxlm.config import arguments as command_line
from proxlm.config.jobs import (
    ControlConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    GenerateConfig,
    PPOConfig,
    PretrainConfig,
    ReportConfig,
    SFTConfig,
)
from proxlm.config.secrets import SECRET
from proxlm.config.tree import Assembly, is_section, kinds, split_key
from proxlm.config.values import Key, dotted, shown, toml_key, toml_value
from proxlm.errors import ConfigError

JOBS: dict[str, type] = {
    "ppo": PPOConfig,
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "control": ControlConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
    "demo": DemoConfig,
}

# What evaluate and generate take over from a run's settings; its other sections are about training.
RUN_SECTIONS = ("model", "data", "rollout", "reward")

T = TypeVar("T")


@overload
def load_config(
    job: str,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> Any: ...
@overload
def load_config(
    job: type[T],
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> T: ...
def load_config(
    job: Any,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> Any:
    """A job's settings: defaults < TOML file < overrides < command-line arguments.

    `job` is a name in JOBS or a class; `overrides` has dotted keys ({"ppo.kl_coef": 0.1}); `arguments` are
    what follows the job's name on the command line, and may name the file. For evaluate and generate the file
    may also be a run's folder. Raises ConfigError: one line with source, key, value and what is allowed.
    """
    kind = job_class(job) if isinstance(job, str) else job
    bare, given = command_line.read_arguments(kind, arguments)
    positional = getattr(kind, "positional", "")
    takes_recipe = getattr(kind, "takes_recipe", not positional)
    if positional and bare and not (takes_recipe and bare[0].endswith(".toml")):
        given = {tuple(positional.split(".")): bare.pop(0), **given}
    if takes_recipe and bare and file is None:
        file = bare.pop(0)
    if bare:
        raise ConfigError(f"{command_line.SOURCE}: {shown(bare[0])}: one argument too many")
    assembly = Assembly(kind)
    if file is not None:
        _add_file(assembly, Path(file))
    for name, value in (overrides or {}).items():
        assembly.set(split_key(name, "overrides"), value, "overrides")
    for key, value in given.items():
        assembly.set(key, value, command_line.SOURCE)
    _check(assembly)
    return assembly.config


def job_class(name: str) -> type:
    """The settings of the job called `name`. Raises ConfigError that names the nearest job."""
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the jobs are {', '.join(JOBS)}"
        raise ConfigError(f"{shown(name)}: unknown job; {hint}")
    return JOBS[name]


def _add_file(assembly: Assembly, file: Path) -> None:
    """Set what a recipe says or, for evaluate and generate, what the folder of a PPO run does."""
    if not os.path.isdir(file):  # unlike Path.is_dir, never an error
        assembly.set((), _read_toml(file), str(file))
        return
    settings = file / "config.toml"
    if assembly.job not in (EvaluateConfig, GenerateConfig):
        hint = f"; did you mean {settings}?" if settings.is_file() else ""
        raise ConfigError(f"{file}: a folder, where a TOML file is needed{hint}")
    if not settings.is_file():
        raise ConfigError(f"{file}: not a run's folder: it holds no config.toml")
    of_run, source = _read_toml(settings), str(settings)
    for name in RUN_SECTIONS:
        if name in of_run and name in kinds(assembly.job):
            assembly.set((name,), _without_prompts(assembly.job, of_run[name]), source)
    policy = str(file / "policy")
    if assembly.job is EvaluateConfig:
        assembly.set(("models",), [policy], source)
        of_training = of_run.get("run")
        if isinstance(of_training, dict) and "seed" in of_training:
            # The seed picks the held-out prompts, which must be those that were not trained on.
            assembly.set(("seed",), of_training["seed"], source)
    else:
        assembly.set(("model", "policy"), policy, source)


def _without_prompts(job: type, section: Any) -> Any:
    """The section as it is, but for generate without the run's prompts: it is to ask for one."""
    if job is not GenerateConfig or not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in ("prompts", "eval_prompts")}


def _read_toml(file: Path) -> dict[str, Any]:
    """A TOML file's contents. Raises ConfigError that names the file, and the line where there is one."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{str(file)!a}: not a path") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line}: not UTF-8 text") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: nested too deeply") from None
    except ValueError as error:
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line_number = (place and place[1]) or str(text.count("\n") + 1)
        reason = str(error)[: place.start()] if place else str(error)
        raise ConfigError(f"{file}: line {line_number}: not valid TOML: {reason}") from None


def _check(assembly: Assembly) -> None:
    """Raise ConfigError for the first thing that cannot be right between two settings."""
    for name, problem in assembly.config.problems():
        key, value = _find(assembly.config, name) or ((name,), None)
        source = assembly.source(key)
        if source is not None:
            # A secret must not be shown, so not on the terminal either.
            told = name if problem == SECRET else f"{name} = {shown(value)}"
            raise ConfigError(f"{source}: {told}: {problem}")
        if value in ("", [], {}, None):
            raise ConfigError(f"{name}: {problem} (set it in a recipe, or with --{name})")
        raise ConfigError(f"{name} = {shown(value)} (the default): {problem}")


def _find(node: Any, name: str) -> tuple[Key, Any] | None:
    """The key and value that a dotted name stands for; names that users chose may hold dots themselves."""
    if is_section(node):
        node = {field: getattr(node, field) for field in kinds(type(node))}
    if not isinstance(node, Mapping):
        return None
    for head, child in node.items():
        if name == head:
            return (head,), child
        below = _find(child, name[len(head) + 1 :]) if name.startswith(f"{head}.") else None
        if below:
            return (head, *below[0]), below[1]
    return None


def to_toml(config: Any) -> str:
    """All settings of a job as TOML, from which load_config makes an equal object.

    Raises ConfigError for a value that TOML cannot hold, which only Python can have put there.
    """
    return "\n".join(_toml_lines(config, ())).strip() + "\n"


def _toml_lines(section: Any, at: Key) -> list[str]:
    own: list[str] = []
    below: list[str] = []
    for name in kinds(type(section)):
        key, value = (*at, name), getattr(section, name)
        if is_section(value):
            below += _toml_lines(value, key)
        elif isinstance(value, dict) and any(is_section(item) for item in value.values()):
            below += [line for term, item in value.items() for line in _toml_lines(item, (*key, term))]
        else:
            try:
                own.append(f"{toml_key(name)} = {toml_value(value)}")
            except TypeError:
                raise ConfigError(f"{dotted(key)} = {shown(value)}: cannot be written as TOML") from None
    header = ["", f"[{dotted(at)}]"] if at and own else []
    return [*header, *own, *below]
