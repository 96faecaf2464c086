"""`proxlm new`: a project's folder, from the files in `projects/`."""

from __future__ import annotations

import os
import runpy
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from proxlm.config import NewConfig
from proxlm.errors import RunError
from proxlm.system_errors import cannot_write
from proxlm.text import shown

# Stands for the project's name in its README.
PLACEHOLDER = "PROJECT"
README, MAKE_DATA = "README.md", "make_data.py"


def main(config: NewConfig) -> None:
    """Make the folder, and print what is in it and what to run."""
    folder = new_project(config.name, config.kind)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    print(f"made {folder}: {', '.join(names)}\n\nnext:\n")
    for line in commands_of((folder / README).read_text(encoding="utf-8")):
        print(f"  {line}")


def new_project(name: str, kind: str) -> Path:
    """Make a project's folder in the current one, whole or not at all.

    Args:
        name: The folder's name.
        kind: A folder in `projects/`.

    Raises:
        RunError: There is something of that name already, or it cannot be written.
    """
    folder, part = Path(name), Path(f".writing-{name}-{os.getpid()}")
    if os.path.lexists(folder):
        raise RunError(f"{shown(name)}: is there already, and nothing is written over; give another name")
    try:
        with as_file(files("proxlm.jobs") / "projects" / kind) as template:
            shutil.copytree(template, part, ignore=shutil.ignore_patterns("__pycache__"))
        readme = part / README
        readme.write_text(readme.read_text(encoding="utf-8").replace(PLACEHOLDER, name), encoding="utf-8")
        runpy.run_path(str(part / MAKE_DATA))["main"](part)
        part.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def commands_of(readme: str) -> Iterator[str]:
    """The lines of a README's first block of commands."""
    _, _, block = readme.partition("```bash\n")
    yield from block.partition("```")[0].splitlines()
