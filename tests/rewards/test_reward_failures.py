import asyncio
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytest
from reward_helpers import THREE, reward_of, score

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import Reward, build_reward
from proxlm.types import Completion


def failure(reward: Reward) -> str:
    with pytest.raises(RewardError) as raised:
        reward.score(THREE)
    message = str(raised.value)
    assert "\n" not in message
    advice = '; fix it, or set reward.on_error = "score" to go on with reward.error_score'
    assert message.endswith(advice)
    return message.removesuffix(advice)


TITLE = "reward reward_of.<locals>.stated "


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1, math.nan, 2], "returned nan for completion 1"),
        ([1, math.inf, math.nan], "returned inf for completion 1 (and 1 more)"),
        ([1, 2], "returned 2 scores for 3 completions"),
        ("123", "returned a str ('123') instead of a list with a number per completion"),
        ({"a": [1, 2, "x"]}, "returned a str ('x') in component 'a' for completion 2"),
        ([[1, 1], [1, 1], [1, 1, 1]], "returned 2 token rewards instead of 1 for completion 1"),
        ([1, RewardError("no field"), 1], "failed for completion 1: no field"),
    ],
)
def test_a_bad_result_stops_by_default(result: Any, message: str) -> None:
    assert failure(reward_of(result)) == TITLE + message


@pytest.mark.parametrize(
    ("result", "total", "failed"),
    [
        ([1, math.nan, 2], [1, -7, 2], 1),
        ([math.inf, "x", 2], [-7, -7, 2], 2),
        ([1, 2], [-7, -7, -7], 3),
        (None, [-7, -7, -7], 3),
        ([0, 0, 0], [0, 0, 0], 0),
    ],
)
def test_a_bad_result_gets_the_error_score_where_asked(
    result: Any, total: list[float], failed: int, caplog: pytest.LogCaptureFixture
) -> None:
    scores = score(result, on_error="score", error_score=-7.0)
    assert scores.total.tolist() == total
    assert scores.failed == failed
    assert len(caplog.records) == (1 if failed else 0)
    if failed:
        assert caplog.records[0].levelno == logging.WARNING
        assert caplog.messages[0].endswith(f"; error_score = -7 for {failed} of 3 responses")


def fail_here(completions: list[Completion]) -> list[float]:
    raise KeyError(completions[0].text)


async def fail_later(completions: list[Completion]) -> list[float]:
    await asyncio.sleep(0)
    return fail_here(completions)


@pytest.mark.parametrize("function", [fail_here, fail_later])
def test_a_function_that_raises(function: Any, caplog: pytest.LogCaptureFixture) -> None:
    line = fail_here.__code__.co_firstlineno + 1
    expected = f"reward {function.__name__} raised KeyError: 'a b' at {__file__}:{line}"
    assert failure(build_reward(RewardSettings(), function)) == expected
    scores = build_reward(RewardSettings(on_error="score", error_score=-1.5), function).score(THREE)
    assert scores.total.tolist() == [-1.5] * 3
    assert scores.failed == 3
    assert caplog.messages == [f"{expected}; error_score = -1.5 for 3 of 3 responses"]


def hang(completions: list[Completion]) -> list[float]:
    while completions:
        time.sleep(0.01)
    return []


async def hang_later(completions: list[Completion]) -> list[float]:
    await asyncio.sleep(60)
    return [0.0] * len(completions)


@pytest.mark.parametrize("function", [hang, hang_later])
def test_a_function_that_hangs(function: Any) -> None:
    message = failure(build_reward(RewardSettings(timeout=0.1), function))
    assert message == f"reward {function.__name__} took longer than 0.1 s (reward.timeout)"
    config = RewardSettings(timeout=0.1, on_error="score", error_score=-1.0)
    scores = build_reward(config, function).score(THREE)
    assert scores.total.tolist() == [-1] * 3
    assert scores.failed == 3


def test_a_term_that_fails_is_named_and_fails_the_whole_response() -> None:
    terms = {"right": RewardTerm(use="exact_match"), "size": RewardTerm(use="length", args={"target": 1})}
    completions = [Completion("", "x", (1,), fields={"answer": "x"}), Completion("", "x", (1,))]
    with pytest.raises(
        RewardError, match=r"^reward right \(exact_match\) failed for completion 1: the record has no"
    ):
        build_reward(RewardSettings(terms=terms)).score(completions)
    scores = build_reward(RewardSettings(terms=terms, on_error="score", error_score=-1.0)).score(completions)
    assert scores.total.tolist() == [2, -1]
    assert scores.components == {"right": [1, -1], "size": [1, 1]}
    assert scores.failed == 1


def test_a_response_that_fails_in_two_terms_is_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("def bad(cs): return [float('nan')] * len(cs)\ndef worse(cs): raise OSError('gone')")
    terms = {name: RewardTerm(use=f"{file}:{name}") for name in ("bad", "worse")}
    scores = build_reward(RewardSettings(terms=terms, on_error="score", error_score=-1.0)).score(THREE)
    assert scores.failed == 3
    assert scores.components == {"bad": [-1, -1, -1], "worse": [-1, -1, -1]}


def test_a_failed_response_has_no_token_rewards() -> None:
    parts = {"steps": [[1, 1], [2], [1, math.nan, 1]], "end": [math.nan, 5, 5]}
    scores = score(parts, on_error="score", error_score=-1.0)
    assert scores.total.tolist() == [-1, 5, -1]
    assert scores.per_token is not None
    assert scores.per_token.tolist() == [0, 0, 2, 0, 0, 0]
    assert scores.components == {"steps": [2, 2, -1], "end": [-1, 5, 5]}
    assert scores.failed == 2


def test_a_sum_beyond_float32_is_a_failure() -> None:
    parts = {"a": [3e38, 1, 1], "b": [3e38, 1, 1]}
    assert failure(reward_of(parts)) == "reward sum is too large for float32 for completion 0"
    scores = score(parts, on_error="score", error_score=-1.0)
    assert scores.total.tolist() == [-1, 2, 2]
    assert scores.failed == 1
    scores = score([[1, 1], [1e38], [1, 1, 1]], on_error="score", error_score=-1.0)
    assert scores.failed == 0
    tokens = {"t": [[1, 1], [1e38], [1, 1, 1]]}
    scores = score(tokens, on_error="score", error_score=-1.0, weights={"t": 1e5})
    assert scores.failed == 1
    assert scores.total.tolist() == [0, -1, 0]


def test_a_weight_needs_its_component() -> None:
    for policy in ("fail", "score"):
        reward = reward_of({"style": [1, 1, 1], "size": [1, 1, 1]}, weights={"stile": 2.0}, on_error=policy)
        with pytest.raises(ConfigError) as raised:
            reward.score(THREE)
        assert str(raised.value) == (
            "reward.weights.stile: reward_of.<locals>.stated returns no such component; "
            "did you mean style? it returns style, size"
        )
    with pytest.raises(ConfigError, match="returns a plain list, not a dict of components"):
        score([1, 1, 1], weights={"style": 2.0})


def test_a_component_may_not_come_or_go() -> None:
    first, later = {"a": [1, 1, 1], "b": [1, 1, 1]}, {"a": [1, 1, 1]}
    reward = reward_of(iter([first, dict(reversed(first.items())), later]))
    assert reward.score(THREE).total.tolist() == [2, 2, 2]
    assert reward.score(THREE).total.tolist() == [2, 2, 2]
    assert (
        failure(reward)
        == TITLE + "returned the components a, but its first call returned the components a, b"
    )
    reward = reward_of(iter([first, [1, 1, 1]]), on_error="score", error_score=-1.0)
    reward.score(THREE)
    scores = reward.score(THREE)
    assert scores.total.tolist() == [-1] * 3
    assert scores.components == {"a": [-1] * 3, "b": [-1] * 3}


async def interrupted_later(completions: Any) -> list[float]:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


def interrupted(completions: Any) -> list[float]:
    raise KeyboardInterrupt("enough")


def interrupted_in_a_group(completions: Any) -> list[float]:
    raise BaseExceptionGroup("two", [ValueError("no"), KeyboardInterrupt()])


def interrupted_row(completions: Any) -> list[Any]:
    return [1.0, KeyboardInterrupt(), 2.0]


@pytest.mark.parametrize("on_error", ["fail", "score"])
@pytest.mark.parametrize(
    "function", [interrupted, interrupted_later, interrupted_in_a_group, interrupted_row]
)
def test_a_keyboard_interrupt_is_no_failed_reward(function: Any, on_error: Any) -> None:
    reward = build_reward(RewardSettings(on_error=on_error), function)
    with pytest.raises(KeyboardInterrupt):
        reward.score(THREE)


def test_sys_exit_in_a_reward_is_a_failure_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    def leaves(completions: Any) -> list[float]:
        raise SystemExit("bye")

    with pytest.raises(RewardError, match="raised SystemExit: bye at"):
        build_reward(RewardSettings(), leaves).score(THREE)
    scores = build_reward(RewardSettings(on_error="score", error_score=-2.0), leaves).score(THREE)
    assert (scores.total.tolist(), scores.failed) == ([-2.0, -2.0, -2.0], 3)
