"""Functions and classes in a user's Python file, which settings name as path/to/file.py:name."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, TypeVar

from proxlm.errors import ConfigError, RewardError, UserCodeError
from proxlm.files import read_regular
from proxlm.masking import mask_error
from proxlm.text import listed, reason_of, suggestion

# Bytes of a user's file.
LARGEST = 2**26

ErrorT = TypeVar("ErrorT", bound=BaseException)


class Reference(NamedTuple):
    """A path, and a name in what is there."""

    path: str
    name: str


def parse_reference(text: str) -> Reference | None:
    """PATH:NAME taken apart at its last colon; None if `text` is not of that form."""
    path, _, name = text.rpartition(":")
    return Reference(path, name) if path and name else None


def load(key: str, reference: Reference, modules: dict[str, ModuleType] | None = None) -> Any:
    """Run a user's file and return what the reference names in it.

    Args:
        key: The setting that holds the reference, for messages.
        reference: The file and the name.
        modules: The files that have been run, by path; the file is added. Pass the same dict for several
            references so that each file is run once.

    Raises:
        ConfigError: There is no such file, or nothing of that name in it.
        UserCodeError: The file is not Python, or raised an error.
    """
    path, name = reference
    if not Path(path).is_file():
        where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f'{key}: no file "{path}"{where}')
    modules = modules if modules is not None else {}
    if path not in modules:
        modules[path] = _run_file(key, path)
    found = vars(modules[path])
    if name not in found:
        module = modules[path].__name__
        own = [n for n, v in found.items() if isinstance(v, FunctionType | type) and v.__module__ == module]
        defined = f"it defines {listed(own, 'no functions or classes')}"
        raise ConfigError(f'{key}: no "{name}" in {path}; {suggestion(name, own, defined)}')
    return found[name]


def describe_error(error: BaseException, file: str = "") -> str:
    """An error that a user's code raised, on one line: "TYPE: MESSAGE at FILE:LINE".

    Args:
        error: The error; of a group, the first one is described. A RewardError is its message alone.
        file: The user's file; the place is the innermost line of it if there is one, else of any file.
    """
    mask_error(error)
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, RewardError):
        return reason_of(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    reason = reason_of(error)
    message = f": {reason}" if reason != type(error).__name__ else ""
    return f"{type(error).__name__}{message}{where}"


def raise_interrupt(error: BaseException) -> None:
    """Raise the KeyboardInterrupt that the error is, or that its group holds: no failure of the code it came from."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            raise_interrupt(one)


def without_caller(error: ErrorT) -> ErrorT:
    """The error without the outermost line of its traceback, which is ours: the call of the user's code."""
    return error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)


def _run_file(key: str, path: str) -> ModuleType:
    """Run a user's file as a module. No bytecode is left beside it."""
    module = ModuleType("proxlm_user_" + re.sub(r"\W", "_", path))
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look modules up by name
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file can import its neighbours, now and when it is called
    try:
        exec(compile(read_regular(path, LARGEST), path, "exec", dont_inherit=True), vars(module))
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}" if error.filename else path
        raise UserCodeError(f"{key}: {place}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{key}: {path} raised {describe_error(without_caller(error), path)}") from error
    return module
