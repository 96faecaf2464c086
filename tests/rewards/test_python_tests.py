"""The reward `python_tests`: what is run, what it is worth, and that hostile neighbours change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from proxlm.config import RewardSettings
from proxlm.config.schema import RewardTerm
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import build_reward
from proxlm.rewards.python_tests import code_in
from proxlm.sandbox import STATUSES, isolation
from proxlm.types import Completion, Scores

pytestmark = pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")

TESTS = [
    "assert add(1, 2) == 3",
    "assert add(-1, 1) == 0",
    "assert add('a', 'b') == 'ab'",
    "assert add(0, 0) == 0",
]
RIGHT = "def add(a, b):\n    return a + b\n"
HALF = "def add(a, b):\n    return abs(a + b) if a < b else 0\n"  # the third raises, the last is right


def score(texts: list[str], prompt: str = "", tests: Any = TESTS, **args: Any) -> Scores:
    reward = build_reward(RewardSettings(use="python_tests", args=args))
    return reward.score([Completion(prompt, text, fields={"tests": tests}) for text in texts])


def test_the_share_of_tests_or_all_of_them() -> None:
    wrong = "def add(a, b): return 7"
    assert score([RIGHT, HALF, wrong]).total.tolist() == [1.0, 0.75, 0.0]
    assert score([RIGHT, HALF, wrong], all=True).total.tolist() == [1.0, 0.0, 0.0]
    assert score([RIGHT, HALF], tests="\n".join(TESTS)).total.tolist() == [1.0, 0.0]
    check = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    assert score([RIGHT, wrong], tests=[check + "check(add)"]).total.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nand\n```\ny\n```", "x = 1\n"),
        ("```\nx = 1\n\n", "x = 1\n\n"),
        ("  ```py\n  x\n  ```", "  x\n"),
        ("use ```x``` here", "use ```x``` here"),
        ("x = 1", "x = 1"),
        ("```python\n```\n", ""),
    ],
)
def test_the_code_of_a_response(text: str, code: str) -> None:
    assert code_in(text) == code


def test_blocks_and_prompts() -> None:
    chatty = f"Sure!\n```python\n{RIGHT}```\nIt adds."
    assert score([chatty, RIGHT]).total.tolist() == [1.0, 1.0]
    chatty_alone = score([chatty, RIGHT], fenced=False)
    assert chatty_alone.total.tolist() == [0.0, 1.0]
    assert chatty_alone.components["error"] == [1.0, 0.0]
    head, body = RIGHT.split("\n", 1)
    assert score([body], prompt=head + "\n", with_prompt=True).total.tolist() == [1.0]
    assert score([body], prompt=head + "\n").total.tolist() == [0.0]


def test_failures_have_their_score_and_are_counted_by_kind() -> None:
    texts = [RIGHT, "while True: pass", "1 / 0", "x = bytes(1 << 40)", "import os\nos.abort()", HALF]
    scores = score(texts, failure=-0.5, seconds=3.0)
    assert scores.total.tolist() == [1.0, -0.5, -0.5, -0.5, -0.5, 0.75]
    assert scores.failed == 0
    assert set(scores.components) == {"passed", *STATUSES} - {"ok"}
    at = {name: [i for i, v in enumerate(values) if v == 1.0] for name, values in scores.components.items()}
    assert {name: rows for name, rows in at.items() if rows and name != "passed"} == {
        "timeout": [1], "error": [2], "memory": [3], "crashed": [4],
    }  # fmt: skip


def test_a_kind_of_failure_can_be_given_a_weight_of_its_own() -> None:
    config = RewardSettings(use="python_tests", weights={"error": -2.0})
    made = build_reward(config).score([Completion("", t, fields={"tests": TESTS}) for t in ("1 / 0", RIGHT)])
    assert made.total.tolist() == [-2.0, 1.0]
    terms = {
        "tests": RewardTerm(use="python_tests", weight=3.0),
        "size": RewardTerm(use="length", args={"target": 1}),
    }
    sums = build_reward(RewardSettings(terms=terms)).score(
        [Completion("", t, fields={"tests": TESTS}) for t in ("1 / 0", RIGHT)]
    )
    assert sums.total.tolist() == [0.0, 3.0]
    assert sums.components["tests.error"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], 'field "tests" holds no text with a test'),
        (" ", 'field "tests" holds no text with a test'),
        (["x", 3], 'field "tests" holds no text with a test'),
        (["assert f()", "assert ("], r'field "tests": test 1 is not Python: .*never closed'),
    ],
)
def test_records_with_unusable_tests_are_named(tests: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score([RIGHT], tests=tests)
    reward = build_reward(RewardSettings(use="python_tests", on_error="score", error_score=-3.0))
    good, bad = Completion("", RIGHT, fields={"tests": TESTS}), Completion("", RIGHT, fields={"tests": tests})
    mixed = reward.score([bad, good, Completion("", RIGHT)])
    assert mixed.total.tolist() == [-3.0, 1.0, -3.0]
    assert mixed.failed == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"seconds": 0}, "reward.args.seconds = 0: must be more than 0"),
        ({"memory_mb": 10}, "reward.args.memory_mb = 10: must be at least 64"),
        ({"workers": -1}, "reward.args.workers = -1: must be at least 0"),
        ({"failure": float("inf")}, "reward.args.failure = inf: must be a finite number"),
        ({"second": 1}, "reward.args.second: python_tests has no such argument"),
        ({"all": 1}, "reward.args.all = 1: python_tests needs bool here"),
    ],
)
def test_impossible_arguments_are_refused(args: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_reward(RewardSettings(use="python_tests", args=args))
