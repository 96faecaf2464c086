"""The files behind a setting that is a path: of a model, of data, or of a user's code and what it imports."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxlm.config.gguf_paths import gguf_file, is_gguf
from proxlm.config.paths import PathSetting, adapter_base, is_named_source, looks_like_path
from proxlm.data.hub import in_hub_cache
from proxlm.data.tables import is_data_set, split_of_folder
from proxlm.data.text import files_in
from proxlm.files import read_regular
from proxlm.user_code import parse_reference

# What transformers reads of a model's folder. A README or the folders of other checkpoints in it change nothing.
_OF_MODELS = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py", ".tiktoken")
_OF_TABLES = (".arrow", ".parquet", ".json")
_LARGEST_SOURCE = 2**24
# A PEFT adapter's configuration, which names its base model.
_ADAPTER = "adapter_config.json"


def files_of(setting: PathSetting) -> dict[str, Path]:
    """The files that a setting names, by their names below it; none for what is not on this machine's disk.

    Built-in names, data sets streamed from the hub, pipes, what only Python can pass and what is written have none.
    """
    if setting.kind == "function":
        reference = parse_reference(setting.value)
        return _of_code(Path(reference.path)) if reference else {}
    if setting.kind == "model":
        return _of_model(setting.value)
    if setting.kind == "input":
        return _of_data(setting.value, getattr(setting.section, "extensions", ()))
    return {}


def _of_model(name: str) -> dict[str, Path]:
    folder = gguf_file(name) if is_gguf(name) else Path(name)
    if os.path.isfile(folder):  # a GGUF file; the argument of a user's reward may be any other
        return {folder.name: folder}
    if not os.path.isdir(folder):
        found = None if looks_like_path(name) else in_hub_cache(name)
        if found is None:
            return {}
        folder = found
    files = {p.name: p for p in sorted(folder.iterdir()) if p.suffix in _OF_MODELS and _is_visible(p)}
    for below in sorted(folder.glob("member-*")) if "config.json" not in files else ():  # of an ensemble
        files |= {
            f"{below.name}/{p.name}": p
            for p in sorted(below.glob("*"))
            if p.suffix in _OF_MODELS and _is_visible(p)
        }
    if _ADAPTER in files:
        base = adapter_base(folder, _base_of(files[_ADAPTER]))
        # An adapter on an adapter is refused when it is loaded.
        if base and not os.path.exists(os.path.join(base, _ADAPTER)):
            files |= {f"base/{file}": path for file, path in _of_model(base).items()}
    return files


def _base_of(adapter: Path) -> str:
    """The base model that an adapter's configuration names; "": none that is a text."""
    try:
        base = json.loads(read_regular(adapter, _LARGEST_SOURCE))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return base if isinstance(base, str) else ""


def _of_data(name: str, extensions: Sequence[str]) -> dict[str, Path]:
    if is_named_source(name) or "\0" in name:
        return {}
    path = Path(name)
    if os.path.isfile(path):
        return {path.name: path}
    split = split_of_folder(path)
    folder = split[0] if split else path
    if not os.path.isdir(folder):
        return {}
    texts = files_in(folder, extensions)
    if split or is_data_set(name, texts):
        texts = files_in(folder, _OF_TABLES)
    return {file.relative_to(folder).as_posix(): file for file in texts if _is_visible(file)}


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and os.path.isfile(path)


def _of_code(file: Path) -> dict[str, Path]:
    """A user's file, and the modules beside it that it imports, and so on; those installed elsewhere are left out."""
    if not os.path.isfile(file):
        return {}
    folder, found, waiting = file.resolve().parent, dict[str, Path](), [file.resolve()]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(folder).as_posix()
        if name not in found:
            found[name] = path
            waiting += _imports_of(path, folder)
    return found


def _imports_of(path: Path, folder: Path) -> Iterator[Path]:
    """The files in `folder` that a source file imports, anywhere in it."""
    try:
        tree = ast.parse(read_regular(path, _LARGEST_SOURCE))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = folder
            if node.level:
                base = path.parent
                for _ in range(node.level - 1):
                    base = base.parent
                if not base.is_relative_to(folder):
                    continue
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _modules(base, [*parts, alias.name])


def _modules(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The files that importing a.b.c runs: a/__init__.py, a/b/__init__.py, a/b/c.py, as far as they are there."""
    for end in range(len(parts) + 1):
        package = base.joinpath(*parts[:end])
        if end and os.path.isfile(package.with_suffix(".py")):
            yield package.with_suffix(".py")
        elif end and os.path.isfile(package / "__init__.py"):
            yield package / "__init__.py"
