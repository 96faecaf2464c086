"""Every script in examples/ runs as a user would run it, in an empty folder, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import proxlm

EXAMPLES = Path(__file__).parents[1] / "examples"
# What a script must print, and its arguments.
PROMISED = {
    "ppo_loop": (r"step 8  reward", []),
    "custom_reward": ("parts: ['reward/mentions_animal', 'reward/small_ids']", []),
    "custom_algorithm": ("reward by step:", []),
    "custom_environment": ("return by step:", []),
    "custom_model_type": ("saved as: SineForCausalLM", []),
    "callback": ("stopped by a callback: the KL is over 0.2", []),
    "lora": ("KL of the first step: 0.0", []),
    "encoder_decoder": ("after: ", []),
    "evaluation": ("→", []),
    "control": ("mean return:", ["4096"]),
    "gymnasium_text": ("return ", ["2", "16"]),
}


def test_every_example_is_listed() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_example(name: str, tmp_path: Path) -> None:
    promised, arguments = PROMISED[name]
    here = os.environ | {"PYTHONPATH": str(Path(proxlm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True, text=True, cwd=tmp_path, env=here, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert promised in done.stdout
    assert "Traceback" not in done.stderr
    if name == "ppo_loop":
        assert done.stdout.count("first ratio 1 ± 0e+00") == 8


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_a_page_and_uses_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 64
    assert not re.search(r"^(from proxlm\b|import proxlm\.)", text, re.MULTILINE)
