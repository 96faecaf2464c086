"""Files that a command writes where its `output` says: only what the same command wrote before is replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from proxlm.errors import RunError
from proxlm.files import check_regular, open_regular
from proxlm.system_errors import cannot_write

# The keys by which JSON of a command is known, of JSONL those of a row. Tables, pages and pictures name the command.
KEYS = {
    "evaluate": ("prompts", "seed", "metrics"),
    "evaluate --responses": ("model", "prompt_id", "prompt"),
    "compare": ("reference", "seed", "differences"),
    "generate": ("prompt", "response", "finish"),
    "classify": ("record", "text", "label", "probabilities"),
    "plan": ("gpus", "gpu_memory_gib", "work"),
    "doctor": ("folder", "steps", "rules", "cannot_judge"),
    "tokenizer": ("tokenizers",),
}
# The beginning of a file that is looked at: a row of a long response and more.
_BEGINNING = 2**20


def title_of(command: str) -> str:
    """What a command's tables and pages say of where they come from."""
    return f"proxlm {command}"


def check_output(path: Path, command: str) -> None:
    """See that a command may write a file there, before the work that it is for.

    Args:
        path: The file.
        command: One of `KEYS`, or another whose pages have its `title_of`.

    Raises:
        RunError: It cannot be written, or there is a file that the command has not written.
    """
    beside = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        check_regular(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        own = not path.exists() or _wrote(path, command)
        with open(beside, "wb"):
            pass
        beside.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
    if not own:
        raise RunError(
            f"{path}: is there already, and proxlm {command} did not write it; give another file, or remove it"
        )


def _wrote(path: Path, command: str) -> bool:
    """Whether a file is empty, or begins as the command's files do; a GIF says it in a comment."""
    with open_regular(path) as file:
        start = file.read(_BEGINNING).decode("utf-8", errors="replace")
    keys, title = KEYS.get(command, ()), title_of(command)
    named = start.startswith((f"{title}\n", f"# {title}\n")) or f"{title}</title>" in start
    named |= start.startswith("GIF8") and title in start
    return not start or named or (bool(keys) and all(f'"{key}": ' in start for key in keys))
