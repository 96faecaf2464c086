"""A function out of a Python file of the user's, named path/to/file.py:function."""

from __future__ import annotations

import re
import sys
import types
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from proxlm.errors import ConfigError, RewardError
from proxlm.rewards.call import describe_error


def did_you_mean(word: str, options: list[str]) -> str:
    """The nearest of the options, as the start of a hint; nothing if none is near."""
    near = get_close_matches(word, options, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else ";"


def function_from_file(key: str, path: str, attribute: str, modules: dict[str, dict[str, Any]]) -> Any:
    """The function `attribute` of the Python file `path`; the file is run as a module."""
    if not Path(path).is_file():
        raise ConfigError(f'{key}: no file "{path}" (seen from the current folder)')
    if path not in modules:
        modules[path] = _run_file(key, path)
    module = modules[path]
    if attribute not in module:
        kinds = (types.FunctionType, type)
        own = [n for n, v in module.items() if isinstance(v, kinds) and v.__module__ == module["__name__"]]
        listed = f"it defines {', '.join(own)}" if own else "it defines no functions or classes"
        raise ConfigError(f'{key}: no "{attribute}" in {path}{did_you_mean(attribute, own)} {listed}')
    return module[attribute]


def _run_file(key: str, path: str) -> dict[str, Any]:
    """Run a user's file and return its names. No bytecode is left beside it."""
    module = types.ModuleType("proxlm_user_" + re.sub(r"\W", "_", path))
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look modules up by name
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file can import its neighbours, now and when it is called
    try:
        exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}" if error.filename else path
        raise RewardError(f"{key}: {place}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise RewardError(f"{key}: {path} raised {describe_error(error, path)}") from error
    return module.__dict__
