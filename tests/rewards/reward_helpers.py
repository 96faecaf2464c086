"""What several test files of the rewards need."""

import sys
from pathlib import Path
from typing import Any

import pytest

from proxlm.config.schema import RewardSettings
from proxlm.rewards import Reward, build_reward
from proxlm.types import Completion, Scores

RESPONSES = {"a b": (5, 6), "c": (7,), "d e f": (8, 9, 10)}
THREE = [Completion("p", text, tokens) for text, tokens in RESPONSES.items()]


def reward_of(result: Any, **config: Any) -> Reward:
    """A reward whose function returns `result`, or each of an iterator's items in turn."""

    def stated(completions: list[Completion]) -> Any:
        assert completions == THREE
        return next(result) if hasattr(result, "__next__") else result

    return build_reward(RewardSettings(**config), stated)


def score(result: Any, **config: Any) -> Scores:
    return reward_of(result, **config).score(THREE)


def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an empty folder the current one; what reward files add to sys.path is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(name: str, source: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return name


def totals(reward: Reward) -> list[float]:
    """What "a", "bb" and "ccc" are worth."""
    return reward.score([Completion("", text) for text in ("a", "bb", "ccc")]).total.tolist()


def refused(kind: type[Exception], config: RewardSettings, function: Any = None) -> str:
    with pytest.raises(kind) as raised:
        build_reward(config, function)
    message = str(raised.value)
    assert "\n" not in message
    return message
