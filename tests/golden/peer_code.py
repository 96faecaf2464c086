"""Cutting statements out of other people's source, running them, and storing what comes out."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
Names = dict[str, Any]


def read_at_head(repo: str, path: str) -> str:
    return subprocess.run(
        ["git", "-C", repo, "show", f"HEAD:{path}"], capture_output=True, text=True, check=True
    ).stdout


def head(repo: str) -> str:
    done = subprocess.run(
        ["git", "-C", repo, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def assigned(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def run_between(source: str, function: str, first: str, last: str, names: Names) -> Names:
    """Run statements in the namespace `names`: from the first that assigns `first` to the last that assigns `last`.

    They are taken from the innermost block that holds both, in `function` ("" for the module).
    """
    tree: ast.AST = ast.parse(source)
    if function:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    found: list[list[ast.stmt]] = []
    for node in ast.walk(tree):
        block = getattr(node, "body", None)
        if not isinstance(block, list):
            continue
        starts = [i for i, s in enumerate(block) if first in assigned(s)]
        ends = [i for i, s in enumerate(block) if last in assigned(s)]
        if starts and ends and starts[0] <= ends[-1]:
            found.append(block[starts[0] : ends[-1] + 1])
    # Blocks are walked from the outside in; the innermost that holds more than one statement is meant.
    chosen = [block for block in found if len(block) > 1][-1]
    exec(compile(ast.Module(chosen, []), function or "module", "exec"), names)
    return names


def define(source: str, name: str, names: Names) -> Any:
    """The function or class `name` of the source, made in the namespace `names`."""
    wanted = (ast.FunctionDef, ast.ClassDef)
    node = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, wanted) and n.name == name)
    exec(compile(ast.Module([node], []), name, "exec"), names)
    return names[name]


def plain(value: Any) -> Any:
    """Tensors and arrays → lists; floats to 12 digits after the point."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    return np.round(array, 12).tolist() if array.dtype.kind == "f" else array.tolist()


def store(name: str, provenance: Names, content: Names) -> None:
    text = json.dumps({"provenance": provenance, **plain(content)}, separators=(",", ":"))
    # One line for each array or number, so that a change shows as a change of few lines.
    text = text.replace('],"', '],\n"').replace('},"', '},\n"').replace("},{", "},\n{")
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def draw(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0
) -> np.ndarray:
    return np.round(rng.normal(shift, scale, shape), 4)


def policy_arrays(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Log-probs and values whose ratios and moves lie well inside and well outside both clips."""
    old = -np.abs(draw(rng, shape, 1.5)) - 0.5
    values = draw(rng, shape)
    return {
        "old_logprobs": old,
        "new_logprobs": np.round(old + rng.normal(0, 0.5, shape), 4),
        "values": values,
        "new_values": np.round(values + rng.normal(0, 0.4, shape), 4),
    }
