"""What cannot be right between two settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxlm.config import GenerateConfig, PPOConfig, RolloutSettings
from proxlm.config.engine import EngineSettings
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


@pytest.mark.parametrize("mode", ["none", "token_truncate", "geometric_mask", "sequence"])
def test_responses_of_another_policy_need_the_correction_of_their_cause(mode):
    engine = PPOSettings(engine_correction=CorrectionSettings(mode=mode))
    stale = PPOSettings(staleness_correction=CorrectionSettings(mode=mode))
    mend = "to token_truncate for instance"
    wanted = {
        "ppo.max_staleness": f"its responses come from an older policy: set ppo.staleness_correction.mode, {mend}",
        "rollout.weights": "its responses come from a policy with rounded weights: set ppo.engine_correction.mode,"
        f" {mend}",
    }
    both = problems(
        replace(stale, max_staleness=1, engine_correction=engine.engine_correction),
        RolloutSettings(weights="int8"),
    )
    assert {key: text for key, text in both.items() if key in wanted} == (wanted if mode == "none" else {})
    # A weight for the other cause is not enough.
    assert problems(replace(engine, max_staleness=1))["ppo.max_staleness"] == wanted["ppo.max_staleness"]
    assert problems(stale, RolloutSettings(weights="int8"))["rollout.weights"] == wanted["rollout.weights"]
    assert not problems(engine).keys() & wanted.keys()


@pytest.mark.parametrize("cause", ["engine", "staleness"])
@pytest.mark.parametrize(
    ("mode", "bounds", "key", "said"),
    [
        ("token_mask", {"low": 2.0, "high": 1.0}, "low", "2 must not be more than"),
        ("token_mask", {"low": 6.0}, "low", "high = 5"),
        ("geometric_mask", {"high": 0.9}, "low", "0.95 must not be more than"),
        ("sequence_mask", {"high": -2.0}, "high", "must not be negative"),
        ("token_truncate", {"low": 0.5}, "low", 'no effect with ppo.{}_correction.mode = "token_truncate"'),
        ("sequence", {"high": 2.0}, "high", "no effect"),
        ("none", {"low": 0.1}, "low", "no effect"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(cause, mode, bounds, key, said):
    settings = CorrectionSettings(mode=mode, **bounds)
    found = problems(PPOSettings(**{f"{cause}_correction": settings}))
    assert said.format(cause) in found[f"ppo.{cause}_correction.{key}"]


@pytest.mark.parametrize(
    ("mode", "bounds"),
    [("token_truncate", (0.0, 2.0)), ("token_mask", (0.5, 5.0)), ("geometric_mask", (0.95, 1.05))],
)
def test_open_bounds_are_the_modes_own(mode, bounds):
    assert CorrectionSettings(mode=mode).bounds == bounds
    assert CorrectionSettings(mode=mode, high=7.0).bounds == (bounds[0], 7.0)
    found = problems(PPOSettings(engine_correction=CorrectionSettings(mode=mode, high=7.0)))
    assert not [key for key in found if "correction" in key]


@pytest.mark.parametrize("key", ["9" * 5000, f"1, {'9' * 5000}", "9" * 19])
def test_ids_with_more_digits_than_python_reads_are_refused(key):
    found = GenerateConfig(rollout=RolloutSettings(logit_bias={key: 1.0})).problems()
    assert "no token has an id of so many digits" in dict(found)["rollout.logit_bias"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (["http://a:1,http://b:1"], 'several are ["http://one:8000", "http://two:8000"]'),
        (["http://a:1 http://b:1"], "is one address"),
        (["a:8000"], "must begin with http:// or https://"),
        (["http://a:1", "https://b:1"], ""),
    ],
)
def test_each_server_has_an_address_of_its_own(url, said):
    engine = EngineSettings(use="vllm", url=url)
    found = dict(replace(PPOConfig(), engine=engine).problems()).get("engine.url", "")
    assert said in found
    assert bool(found) == bool(said)
