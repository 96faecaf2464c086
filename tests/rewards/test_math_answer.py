"""The reward math_answer: the package's judgement, and what it does with answers that the package cannot judge."""

import sys
import threading
from typing import Any

import pytest
from reward_helpers import refused

from proxlm.config.schema import RewardSettings
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import build_reward
from proxlm.rewards.answer_rewards import math_answer
from proxlm.types import Completion

pytest.importorskip("math_verify")

RIGHT = [
    ("1/2", "the answer is 0.5"),
    (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}"),
    ("1 1/2", "It is 1.5."),
    ("1.5", r"\boxed{1 1/2}"),
    ("-1 1/2", r"so $-\frac{3}{2}$"),
    ("20%", r"\boxed{20\%}"),
    ("20%", "0.2"),
    ("1,234.5", "1234.5"),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    ("[1,2)", r"$[1,2)$"),
    (r"(-\infty, 3]", r"\boxed{(-\infty,3]}"),
    (r"\sqrt{8}", r"$2\sqrt{2}$"),
    ("x^2+2x+1", "$(x+1)^2$"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"$\begin{pmatrix}1&2\end{pmatrix}$"),
    ("5 + 3 = 8\n#### 8", "so 8"),
    (r"Adding gives \boxed{8}.", "so 8"),
    (8, "so 8"),
    (1e-07, "0.0000001"),
]
WRONG = [
    ("1/2", "the answer is 0.4"),
    ("1 1/2", "It is 1."),
    ("1.5", r"\boxed{-1 1/2}"),
    ("[1,2)", "$[1,2]$"),
    (r"\{1,2\}", r"\boxed{\{1,3\}}"),
    ("72", r"\boxed{72} and \boxed{73}"),
    ("72", "71 or 72 or 73"),
    ("72", ""),
    ("72", "no idea"),
]


def scores(pairs: list[tuple[Any, str]], **arguments: Any) -> Any:
    return math_answer(**arguments)([Completion("", text, fields={"answer": right}) for right, text in pairs])


def test_answers_are_compared_as_mathematics() -> None:
    assert scores(RIGHT) == [1.0] * len(RIGHT)
    assert scores(WRONG) == [0.0] * len(WRONG)


def test_boxed_counts_the_last_box_alone() -> None:
    pairs = [(72, "72"), (72, r"\boxed{71} \boxed{72}"), (72, r"\boxed{72} \boxed{71}"), (72, r"\boxed{72"),
             ("1/2", r"\boxed{\frac{1}{2}} {"), ("1 1/2", r"\boxed{1 1/2}")]  # fmt: skip
    assert scores(pairs, boxed=True) == [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{" + "{" * 10**5 + "1" + "}" * 10**5 + "}",
        r"\boxed{" + "9" * 10**6 + "}",
        r"\boxed{\binom{10^{9}}{5\cdot10^{8}}}",
    ],
    ids=["tower", "nested", "digits", "binomial"],
)
def test_an_answer_that_hangs_fails_its_row_alone(text: str) -> None:
    found = scores([(7, "so 7"), (7, text), (7, "so 7"), (7, "so 8")], seconds=1.0)
    assert [found[0], *found[2:]] == [1, 1, 0]
    assert isinstance(found[1], RewardError)
    assert str(found[1]) == "math-verify took longer than 1 s; its process was ended"


def test_what_is_no_mathematics_ends_soon_and_is_wrong() -> None:
    """Long and deep, within the limit."""
    texts = ["$" * 10**5, "(" * 10**5 + "1" + ")" * 10**5, "\\" * 1000, "\x00\ud800 \u202e", "１" * 1000]
    assert scores([(7, text) for text in texts], seconds=30.0) == [0] * len(texts)


def test_a_field_that_cannot_be_compared_is_an_error() -> None:
    expected = {
        "…": "field \"answer\" holds nothing that math-verify reads: '…'",
        "": "field \"answer\" holds nothing that math-verify reads: ''",
        float("nan"): "field \"answer\" holds nothing that math-verify reads: ''",
        True: 'field "answer" holds a bool, not a text or a number',
    }
    found = scores([(right, "1") for right in expected])
    assert [str(one) for one in found] == list(expected.values())
    (missing,) = math_answer(field="solution")([Completion("", "1", fields={"answer": 1})])
    assert 'no field "solution"' in str(missing)


def test_in_threads_and_in_an_isolated_reward() -> None:
    completions = [Completion("", text, fields={"answer": "1/2"}) for text in ("0.5", "0.4")]
    reward = build_reward(RewardSettings(use="math_answer", isolate=True))
    assert reward.score(completions).total.tolist() == [1, 0]
    found: list[Any] = []
    score = math_answer()
    threads = [threading.Thread(target=lambda: found.append(score(completions))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 0.0]] * 4


def test_wrong_arguments_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(ConfigError, RewardSettings(use="math_answer", args={"seconds": 0.0}))
    assert message == "reward.args.seconds = 0: must be more than 0, and at most 3600"
    monkeypatch.setitem(sys.modules, "math_verify", None)
    message = refused(ConfigError, RewardSettings(use="math_answer"))
    assert message == 'reward "math_answer" needs math-verify: pip install "proxlm[math]"'
