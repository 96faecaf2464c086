"""A function of the user's among an environment's arguments, as path/to/file.py:name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from proxlm.errors import ConfigError
from proxlm.text import shown
from proxlm.user_code import load, parse_reference


@functools.lru_cache(maxsize=64)
def user_function(argument: str, text: str) -> Callable[..., Any]:
    """The function that the text names; its file is run once, since each conversation asks for it.

    Args:
        argument: of the environment, for messages.
        text: path/to/file.py:name.

    Raises:
        ConfigError: it names none.
        UserCodeError: the file cannot be run.
    """
    reference = parse_reference(text)
    if reference is None:
        raise ConfigError(f'environment.args.{argument} = "{shown(text)}": must be path/to/file.py:function')
    found = load(f"environment.args.{argument}", reference)
    if not callable(found):
        raise ConfigError(f'environment.args.{argument} = "{shown(text)}": is no function')
    return found
