"""What a step says of itself, where there is nothing to say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, trainer

from proxlm.config import RolloutSettings
from proxlm.train.ppo.metrics import correlation
from proxlm.types import Scores


def test_correlation() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    assert correlation(x, y) == pytest.approx(0.5)
    assert correlation(x, -2 * x + 7) == pytest.approx(-1.0)
    assert correlation(x, torch.full((3,), 0.1)) is None


def test_responses_of_one_length_have_no_correlation_with_it(tokenizer, tmp_path) -> None:
    config = replace(job(steps=1), rollout=RolloutSettings(max_new_tokens=1))
    row = trainer(tokenizer, config, tmp_path).step(SilentLog())
    assert row["response_length"] == 1
    assert "reward_length_correlation" not in row


def test_a_quarter_that_no_response_reaches_is_not_a_metric(tokenizer, tmp_path) -> None:
    """Of one token, only the first quarter exists; a NaN would be reported as a metric that is not finite."""
    config = replace(job(critic="separate", steps=1), rollout=RolloutSettings(max_new_tokens=1))
    row = trainer(tokenizer, config, tmp_path).step(SilentLog())
    found = {name for name in row if name.startswith("explained_variance")}
    assert found == {"explained_variance", "explained_variance/quarter_1"}
    assert not [name for name, value in row.items() if value != value]


def test_a_constant_reward_leaves_no_variance_to_explain(tokenizer, tmp_path) -> None:
    config = replace(job(critic="separate", steps=1, kl_coef=0.0), rollout=RolloutSettings(max_new_tokens=3))
    constant = trainer(tokenizer, config, tmp_path, reward=lambda rollout: Scores(torch.ones(len(rollout))))
    row = constant.step(SilentLog())
    assert not [name for name, value in row.items() if value != value]
