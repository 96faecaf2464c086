"""From defaults, a TOML file, Python and the command line to one job's settings, and back to TOML."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from proxlm.config import arguments as command_line
from proxlm.config.from_run import BEST, kept_models, settings_of_run, uses_runs
from proxlm.config.gguf_paths import is_gguf
from proxlm.config.jobs import JOBS
from proxlm.config.no_effect import leave_out, without_effect
from proxlm.config.paths import expand_user, relative_to
from proxlm.config.secrets import SECRET, SECRET_PATH, hide_environment, secret_settings
from proxlm.config.signature import checked
from proxlm.config.toml_text import CONFIG_NAME, DEEPEST, read_toml
from proxlm.config.tree import Assembly, is_section, kinds, split_key
from proxlm.config.values import Key, dotted, nested_beyond, shown_value, toml_key, toml_value
from proxlm.errors import ConfigError
from proxlm.text import counted, did_you_mean, shown

# The key of a TOML file that names the job its settings are for.
JOB = "job"

# Settings that are set one by one: each makes a copy of the tree.
MOST_ARGUMENTS = 10_000

# Problems of settings that are listed.
MOST_PROBLEMS = 10

# The source of settings that Python gives over a file.
OVERRIDES = "overrides"

T = TypeVar("T")


@overload
def load_config(
    job: str,
    file: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> Any: ...
@overload
def load_config(
    job: type[T],
    file: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> T: ...
def load_config(
    job: Any,
    file: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> Any:
    """A job's settings: defaults < TOML file < overrides < command-line arguments.

    What of a file has no effect any more, because a later source turns off what it needs, has its default; a line on
    stderr names it.

    Args:
        job: A name in JOBS, or the class of a job's settings.
        file: A TOML file, in which relative paths are relative to it; for evaluate and generate also a run's folder.
            Or a mapping with the same content: tables as in the file ({"ppo": {"steps": 3}}), dotted keys, or both.
        overrides: Values by dotted key ({"ppo.kl_coef": 0.1}).
        arguments: What follows the job's name on the command line; it may name the file. None: the caller is Python,
            which messages take into account.

    Raises:
        ConfigError: A line with the source, the key, the value and what is allowed; of settings that cannot be
            combined, do nothing or are missing, a line for each.
    """
    kind = job_class(job) if isinstance(job, str) else job
    _check_call(kind, file, overrides, arguments or ())
    bare, options = command_line.read_arguments(kind, arguments or ())
    positional = getattr(kind, "positional", "")
    takes_recipe = getattr(kind, "takes_recipe", not positional)
    if positional and kinds(kind).get(positional) == list[str]:
        named = [argument for argument in bare if not (takes_recipe and argument.endswith(".toml"))]
        bare = [argument for argument in bare if takes_recipe and argument.endswith(".toml")]
        options = {(positional,): [*named, *options.pop((positional,), [])], **options} if named else options
    for name in positional.split():
        if kinds(kind).get(name) != list[str] and bare and not (takes_recipe and bare[0].endswith(".toml")):
            options = {tuple(name.split(".")): bare.pop(0), **options}
    if takes_recipe and bare and file is None:
        file = bare.pop(0)
    if bare:
        raise ConfigError(f"{command_line.SOURCE}: {shown_value(bare[0])}: one argument too many")
    assembly = Assembly(kind)
    if isinstance(file, Mapping):
        _add_mapping(assembly, _without_job(file, assembly.job, "settings"), "settings")
    elif file is not None:
        _add_file(assembly, Path(file))
    _add_mapping(assembly, overrides or {}, OVERRIDES)
    for key, value in options.items():
        assembly.set(key, value, command_line.SOURCE)
    for line in leave_out(assembly, (OVERRIDES, command_line.SOURCE)):
        where = "the settings given" if isinstance(file, Mapping) else shown(str(file), 100)
        print(f"note: {where}: {line}", file=sys.stderr, flush=True)
    return _finished(assembly, _from_python if arguments is None else _from_the_command_line)


def _check_call(kind: Any, file: Any, overrides: Any, arguments: Any) -> None:
    """Raise ConfigError for arguments of load_config that are not what it takes."""
    if not isinstance(kind, type) or not is_section(kind):
        raise ConfigError(
            f"job: expected one of {', '.join(JOBS)} or a class such as PPOConfig, got {shown_value(kind)}"
        )
    if file is not None and not isinstance(file, str | os.PathLike | Mapping):
        raise ConfigError(f"file: expected a path or a mapping, got {shown_value(file)}")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides: expected a mapping, got {shown_value(overrides)}")
    listed = isinstance(arguments, Sequence) and not isinstance(arguments, str | bytes)
    if not listed or not all(isinstance(argument, str) for argument in arguments):
        raise ConfigError(
            f'arguments: expected a list of texts such as ["--ppo.steps", "3"], got {shown_value(arguments)}'
        )
    for name, given in (("settings", file), ("overrides", overrides), ("command line", arguments)):
        if (
            isinstance(given, Mapping | Sequence)
            and not isinstance(given, str)
            and len(given) > MOST_ARGUMENTS
        ):
            raise ConfigError(f"{name}: more than {MOST_ARGUMENTS:,} entries; write a recipe with tables")


@checked("config")
def validate(config: T, parameters: Mapping[str, str] | None = None) -> T:
    """Check a job's settings that were built in Python, as load_config checks those it reads.

    Every type, bound and choice is checked, and then what cannot be combined.

    Args:
        config: A job's settings, `PPOConfig(ppo=PPOSettings(steps=3))` for instance.
        parameters: What the caller can be passed instead of a setting, by the setting's key, for messages.

    Returns:
        The settings with values of exactly the declared types: a path has become text, a tuple a list, a whole
        number where a number is declared a float, and a dict in place of a section that section.

    Raises:
        ConfigError: "CLASS: key = value: what is wrong".
    """
    kind = type(config)
    if not is_section(kind):
        raise ConfigError(f"expected a job's settings such as PPOConfig(), got {shown_value(config)}")
    assembly = Assembly(kind)
    assembly.set((), config, kind.__name__)

    def advice(_kind: type, name: str) -> str:
        parameter = (parameters or {}).get(name)
        passed = f"pass {parameter}=..., or " if parameter else ""
        return f"{passed}set it in the {kind.__name__}"

    return cast("T", _finished(assembly, advice))


def settings_or_default(kind: type[T], config: T | None) -> T:
    """The settings that a caller passed, or the defaults of their class. Raises ConfigError for anything else."""
    if config is None:
        return kind()
    if isinstance(config, kind):
        return config
    raise ConfigError(
        f"config: expected a {kind.__name__}, got {shown_value(config)}; write proxlm.{kind.__name__}(...) with its"
        " sections, or load_config for a whole recipe"
    )


# (class of the job's settings, key) → how to give a setting that is missing.
_Advice = Callable[[type, str], str]


def _from_the_command_line(kind: type, name: str) -> str:
    job = job_name(kind)
    positional = getattr(kind, "positional", "")
    if name in positional.split():
        return f"write proxlm {job} {positional.upper().replace('.', '_')}"
    run = f", or write proxlm {job} RUN, a run's folder" if uses_runs(kind) else ""
    return f"set it in a recipe, or with --{name}{run}"


def _from_python(_kind: type, name: str) -> str:
    return f'set it in the file or the mapping, or pass overrides={{"{name}": ...}}'


def _finished(assembly: Assembly, advice: _Advice) -> Any:
    """The assembled settings, checked, with `~` in paths expanded. advice: see `_check`."""
    hide_environment(assembly.config)
    for key in secret_settings(assembly.config):  # first: other messages show values
        source = assembly.source(key)
        reason = SECRET_PATH if _is_path(assembly.job, key) else SECRET
        raise ConfigError(f"{f'{source}: ' if source else ''}{dotted(key)}: {reason}")
    assembly.config = expand_user(assembly.config)
    _check(assembly, advice)
    return assembly.config


def _is_path(section: Any, key: Key) -> bool:
    """Whether a setting is a path, which `env:NAME` cannot stand for; its tables of arguments are not."""
    name, *below = key
    if below:
        return is_section(kinds(section).get(name)) and _is_path(kinds(section)[name], tuple(below))
    field = section.__dataclass_fields__.get(name)
    return field is not None and bool(field.metadata.get("path")) and kinds(section)[name] is str


def job_class(name: str) -> type:
    """The settings of the job called `name`. Raises ConfigError that names the nearest job."""
    if name not in JOBS:
        hint = did_you_mean(name, JOBS, otherwise=f"the jobs are {', '.join(JOBS)}")
        raise ConfigError(f"{shown_value(name)}: unknown job; {hint}")
    return JOBS[name]


def _add_mapping(assembly: Assembly, values: Mapping[str, Any], source: str) -> None:
    for name, value in values.items():
        if not isinstance(name, str):
            raise ConfigError(f"{source}: {shown_value(name)}: not a key; write section.key")
        if nested_beyond(value, DEEPEST):
            raise ConfigError(
                f"{source}: {shown(name)}: nested too deeply: more than {DEEPEST} lists and tables"
            )
        assembly.set(split_key(name, source), value, source)


def job_name(kind: type) -> str:
    """The name of the job whose settings have this class; "" if no job's have."""
    return next((name for name, known in JOBS.items() if known is kind), "")


def _add_file(assembly: Assembly, file: Path) -> None:
    """Set what a recipe says or, for evaluate and generate, what a run's folder does."""
    if is_gguf(str(file)):
        raise ConfigError(f"{file}: a model, not a recipe; write --model.policy {file}")
    if not (uses_runs(assembly.job) and os.path.isdir(file)):  # unlike Path.is_dir, never an error
        content = read_toml(file)
        table = relative_to(assembly.job, _without_job(content, assembly.job, str(file)), file.parent)
        assembly.set((), _in_its_own_folder(table, file) if JOB in content else table, str(file))
        return
    if file.name == BEST and (file.parent / CONFIG_NAME).is_file():
        run, kept = file.parent, kept_models(file.parent)
        if not kept:
            raise ConfigError(f"{file}: the run has kept no model")
        settings = run / CONFIG_NAME
        assembly.set((), settings_of_run(assembly.job, run, read_toml(settings), kept[-1]), str(settings))
        return
    settings = file / CONFIG_NAME
    if not settings.is_file():
        if (file / "config.json").is_file():
            raise ConfigError(f"{file}: a model, not a run; write --model.policy {file}")
        raise ConfigError(f"{file}: not a run's folder: it holds no config.toml")
    assembly.set((), settings_of_run(assembly.job, file, read_toml(settings)), str(settings))


def _in_its_own_folder(table: dict[str, Any], file: Path) -> dict[str, Any]:
    """The settings of a run's config.toml with run.folder as the folder that the file is in.

    A run that was moved or copied goes on where it is now; the file still names the place where it began, in which
    another run may be.
    """
    run, folder = table.get("run"), file.parent
    if file.name != CONFIG_NAME or not isinstance(run, Mapping) or not os.path.isdir(folder / "checkpoints"):
        return table
    named = run.get("folder")
    if not isinstance(named, str) or (named and os.path.realpath(named) == os.path.realpath(folder)):
        return table
    return {**table, "run": {**run, "folder": str(folder)}}


def _without_job(table: Mapping[str, Any], kind: type, source: str) -> dict[str, Any]:
    """The table without the job that it names. Raises ConfigError if that is not the job of `kind`."""
    settings = dict(table)
    job = settings.pop(JOB, job_name(kind))
    if not isinstance(job, str):
        raise ConfigError(f"{source}: {JOB}: expected text, got {shown_value(job)}")
    if job == job_name(kind):
        return settings
    try:
        job_class(job)
    except ConfigError as error:
        raise ConfigError(f"{source}: {JOB} = {error}") from None
    wanted = f", not of proxlm {job_name(kind)}" if job_name(kind) else ""
    raise ConfigError(f'{source}: {JOB} = "{job}": these are the settings of proxlm {job}{wanted}')


def _check(assembly: Assembly, advice: _Advice) -> None:
    """Raise ConfigError for all settings that cannot be combined, do nothing, or are required and missing.

    Args:
        assembly: The settings.
        advice: How to give a missing one.
    """
    problems = (*assembly.config.problems(), *without_effect(assembly.config))
    lines = list(dict.fromkeys(_problem_line(assembly, advice, *problem) for problem in problems))
    if len(lines) > MOST_PROBLEMS:
        lines[MOST_PROBLEMS:] = [f"and {counted(len(lines) - MOST_PROBLEMS, 'problem')} more"]
    if lines:
        raise ConfigError(*lines)


def _problem_line(assembly: Assembly, advice: _Advice, name: str, problem: str) -> str:
    """A problem of the setting `name`, with where its value comes from."""
    key, value = _find(assembly.config, name) or ((name,), None)
    source = assembly.source(key)
    empty = value in ("", [], {}, None)
    in_python = source == assembly.job.__name__  # `validate`, for which every value is a given one
    if empty and in_python and problem.startswith(("required,", "required:")):
        return f"{source}: {name}: {problem} ({advice(assembly.job, name)})"
    if source is not None:
        return f"{source}: {name} = {shown_value(value)}: {problem}"
    if empty:
        return f"{name}: {problem} ({advice(assembly.job, name)})"
    return f"{name} = {shown_value(value)} (the default): {problem}"


def _find(node: Any, name: str) -> tuple[Key, Any] | None:
    """The key and value that a dotted name stands for; names that users choose may contain dots."""
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
    """All settings of a job as TOML, the job's name first, from which load_config makes an equal object.

    Raises ConfigError for a value that TOML cannot hold, which only Python code can have set.
    """
    job = job_name(type(config))
    name = [f"{JOB} = {toml_value(job)}"] if job else []
    return "\n".join([*name, *_toml_lines(config, ())]).strip() + "\n"


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
                raise ConfigError(
                    f"{dotted(key)} = {shown_value(value)}: cannot be written as TOML"
                ) from None
    header = ["", f"[{dotted(at)}]"] if at and own else []
    return [*header, *own, *below]
