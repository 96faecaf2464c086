"""What cannot be right between two settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxlm.config import PPOConfig, RolloutSettings
from proxlm.config.ppo import CorrectionSettings, PPOSettings
from proxlm.rl.kl import adapt_kl_coefficient


def problems(ppo=PPOSettings(), rollout=RolloutSettings()):  # noqa: B008
    return dict(replace(PPOConfig(), ppo=ppo, rollout=rollout).problems())


@pytest.mark.parametrize(("horizon", "refused"), [(2.4, True), (2.3, True), (2.41, False)])
def test_the_horizon_is_refused_where_the_controller_would_refuse_it(horizon, refused):
    """6 prompts of 2 responses each: β · (1 ± 0.2 · 12 / horizon)."""
    ppo = PPOSettings(batch_size=6, samples_per_prompt=2, kl_controller="adaptive", kl_horizon=horizon)
    found = problems(replace(ppo, minibatches=1))
    if refused:
        assert found["ppo.kl_horizon"].startswith("must be more than 0.2 · 12 responses of a step")
        with pytest.raises(ValueError, match=r"horizon must be more than 0\.2 · 12 responses"):
            adapt_kl_coefficient(0.1, 0.0, 1.0, 12, horizon)
    else:
        assert "ppo.kl_horizon" not in found
        assert adapt_kl_coefficient(0.1, 0.0, 1.0, 12, horizon) > 0.0


@pytest.mark.parametrize("mode", ["none", "truncate", "mask", "full"])
def test_responses_of_another_policy_need_a_correction(mode):
    corrected = PPOSettings(correction=CorrectionSettings(mode=mode))
    found = {
        **problems(replace(corrected, prefetch=True)),
        **problems(corrected, RolloutSettings(weights="int8")),
    }
    mend = "set ppo.correction.mode to truncate, mask or full"
    wanted = {
        "ppo.prefetch": f"its responses come from an older policy: {mend}",
        "rollout.weights": f"its responses come from a policy with rounded weights: {mend}",
    }
    assert {key: text for key, text in found.items() if key in wanted} == (wanted if mode == "none" else {})
    assert not problems(corrected).keys() & wanted.keys()
