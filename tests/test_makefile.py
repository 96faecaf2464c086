"""`make fast` names tests that exist; .ci/run and the pre-commit hooks run what `make lint` and `make test` run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make; .ci/run has it")
def test_the_fast_tests_are_there():
    # `make test` itself may have started this process, with its options in the environment.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "-n", "fast"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    named = re.findall(r"tests/[^\s\"']+", done.stdout)
    assert len(named) > 15
    for test in named:
        file, _, function = test.partition("::")
        assert (ROOT / file).exists(), file
        if function:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {function.partition('[')[0]}(" in source, test


def test_the_hooks_are_those_of_make_lint():
    lint = re.search(
        r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert lint is not None
    commands = {re.sub(r"^\t\$\(BIN\)/| --check| \.$", "", line) for line in lint[1].splitlines()}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"entry: \.venv/bin/(.*)", hooks)
    assert {entry.removesuffix(" --force-exclude") for entry in entries} == commands
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-2:] == ["make lint", "make test"]
