"""What a step says of itself, where there is nothing to say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, trainer

from proxlm.config import RolloutSettings
from proxlm.train.ppo.metrics import correlation


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
