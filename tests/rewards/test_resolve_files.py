from pathlib import Path

import pytest
from reward_helpers import own_folder, refused, totals, write

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.errors import ConfigError, UserCodeError
from proxlm.rewards import build_reward


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder(tmp_path, monkeypatch)


SOURCE = """
from __future__ import annotations
from dataclasses import dataclass

LIMIT = 3

@dataclass
class Helper:
    scale: float = 2.0

def score(completions, scale=Helper().scale):
    return [scale * len(c.text) for c in completions]

def squares(completions):
    return [float(len(c.text)) ** 2 for c in completions]
"""


def test_a_function_in_a_file() -> None:
    use = write("some folder/my.py", SOURCE)
    assert totals(build_reward(RewardSettings(use=f"{use}:score"))) == [2, 4, 6]
    assert totals(build_reward(RewardSettings(use=f"{use}:score", args={"scale": 0.5}))) == [0.5, 1, 1.5]
    absolute = Path(use).resolve()
    assert totals(build_reward(RewardSettings(use=f"{absolute}:squares"))) == [1, 4, 9]
    assert [p.name for p in absolute.parent.iterdir()] == ["my.py"]


def test_an_edited_file_is_read_anew() -> None:
    use = write("my.py", "def score(completions): return [1.0] * len(completions)")
    assert totals(build_reward(RewardSettings(use=f"{use}:score"))) == [1, 1, 1]
    write("my.py", "def score(completions): return [2.0] * len(completions)")
    assert totals(build_reward(RewardSettings(use=f"{use}:score"))) == [2, 2, 2]


def test_a_file_is_compiled_without_the_librarys_own_future_imports() -> None:
    use = write(
        "my.py", "def score(cs: list): return [1.0] * len(cs)\nassert score.__annotations__ == {'cs': list}"
    )
    assert totals(build_reward(RewardSettings(use=f"{use}:score"))) == [1, 1, 1]


def test_a_file_may_import_its_neighbours_even_late() -> None:
    write("lib/neighbour_for_test.py", "VALUE = 4.0")
    use = write(
        "lib/my.py",
        "def score(completions):\n    import neighbour_for_test\n"
        "    return [neighbour_for_test.VALUE] * len(completions)",
    )
    assert totals(build_reward(RewardSettings(use=f"{use}:score"))) == [4, 4, 4]


def test_two_terms_from_one_file_run_it_once() -> None:
    use = write(
        "my.py",
        "seen = []\ndef a(cs):\n    seen.append(1)\n    return [0.0] * len(cs)\n"
        "def b(cs): return [float(len(seen))] * len(cs)",
    )
    terms = {"a": RewardTerm(use=f"{use}:a"), "b": RewardTerm(use=f"{use}:b")}
    assert totals(build_reward(RewardSettings(terms=terms))) == [1, 1, 1]


def test_a_missing_file_or_function() -> None:
    message = refused(ConfigError, RewardSettings(use="no/my.py:score"))
    assert message == f'reward.use: no file "no/my.py" in {Path.cwd()}'
    use = write("my.py", SOURCE)
    message = refused(ConfigError, RewardSettings(use=f"{use}:scroe"))
    assert message == (
        'reward.use: no "scroe" in my.py; did you mean score? it defines Helper, score, squares'
    )
    assert refused(ConfigError, RewardSettings(use=use)) == (
        'reward.use = "my.py": add the name of the function: my.py:FUNCTION'
    )
    assert "it defines no functions or classes" in refused(
        ConfigError, RewardSettings(use=f"{write('e.py', '')}:f")
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import math\nimport no_such_module",
            "ModuleNotFoundError: No module named 'no_such_module' at my.py:2",
        ),
        ("x = 1\n\nx / 0\n", "ZeroDivisionError: division by zero at my.py:3"),
        ("import sys\nsys.exit(2)", "SystemExit: 2 at my.py:2"),
        ("import json\n\njson.loads('{')", "at my.py:3"),
        ("x = 1\ndef f(:\n", "my.py:2: invalid syntax"),
        ("x = '\0'", "null bytes"),
    ],
)
def test_a_file_that_cannot_be_run(source: str, message: str) -> None:
    use = write("my.py", source)
    found = refused(UserCodeError, RewardSettings(use=f"{use}:score"))
    assert found.startswith("reward.use: my.py")
    assert message in found
