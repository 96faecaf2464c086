"""The layout of the library: imports point one way, rl/ imports torch alone, importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "proxlm"
FILES = sorted(SOURCE.rglob("*.py"))

# A module may import from its own layer and those before it.
LAYERS = [
    "masking", "text", "errors", "system_errors", "files", "user_code", "seeds", "rl", "types", "distributed",
    "threads", "config", "runlog", "doctor", "checkpoint", "data", "corpus", "kernels", "models", "engine", "sandbox",
    "rewards", "environments", "train", "control", "evaluation", "classification", "export", "compression", "report",
    "search", "planning", "jobs", "__main__",
]  # fmt: skip


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 else len(LAYERS)


def imported(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return [name for name in found if name.split(".")[0] == "proxlm"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    own = ".".join(["proxlm", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    if own in ("proxlm", "proxlm.__main__"):
        return
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        assert layer(name) <= layer(own), f"{own} imports {name}, which stands above it"


def test_only_the_engine_knows_its_scheduler_and_decoders():
    """Everything else speaks the Engine protocol, so that another engine fits."""
    inside = {
        "scheduler",
        "admission",
        "prefill",
        "stopping",
        "decoders",
        "block_decoder",
        "kv_cache",
        "uniforms",
    }
    for path in FILES:
        if path.parent.name != "engine":
            for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (name.startswith("proxlm.engine.") and name.split(".")[2] in inside), (
                    f"{path}: {name}"
                )


def test_mathematics_imports_torch_alone():
    for path in (SOURCE / "rl").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        roots = {name.split(".")[0] for name in names if not name.startswith("proxlm.rl")}
        assert roots <= {"torch", "typing", "collections", "dataclasses", "__future__", "math"}, path


def test_every_layer_is_listed():
    assert {p.name.removesuffix(".py") for p in SOURCE.iterdir() if not p.name.startswith((".", "__pycache__"))} <= {
        *LAYERS, "__init__", "__init__.pyi", "py.typed"
    }  # fmt: skip


@pytest.mark.parametrize("module", ["proxlm", "proxlm.config", "proxlm.doctor"])
def test_import_is_light(module):
    heavy = ("torch", "transformers", "rich", "plotly")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_contributing_lists_the_layers_in_this_order():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (chain,) = re.findall(r"^`masking`.*?`__main__`$", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", chain) == LAYERS
