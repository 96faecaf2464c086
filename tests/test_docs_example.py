"""docs/examples/my_algorithm.py by hand and in a run; every fragment of settings in docs/algorithms.md is valid."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer

from proxlm.config import algorithms, load_config
from proxlm.rl import estimators, policy_losses
from proxlm.rl.estimators import AdvantageInputs
from proxlm.rl.policy_losses import LossInputs

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLE = DOCS / "examples" / "my_algorithm.py"
PAGE = (DOCS / "algorithms.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The page's fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def mine() -> Any:
    spec = importlib.util.spec_from_file_location("my_algorithm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_positive_rloo_by_hand(mine):
    """One prompt, three responses of rewards 1, 0 and 2: others' means 1, 1.5 and 0.5, so A = 0, −1.5 → 0, 1.5."""
    inputs = AdvantageInputs(
        rewards=torch.tensor([0.25, 0.75, 0.0, 2.0, 0.0]),
        values=torch.zeros(5),
        action_mask=torch.tensor([True, True, True, True, False]),
        offsets=torch.tensor([0, 2, 3, 5]),
        groups=torch.tensor([0, 0, 0]),
    )
    advantages, returns = mine.positive_rloo(inputs)
    assert advantages.tolist() == [0.0, 0.0, 0.0, 1.5, 0.0]
    assert returns.tolist() == [1.0, 1.0, 0.0, 2.0, 0.0]


def test_soft_clip_by_hand(mine):
    """ε = 0.2 above and 0.4 below; tanh 1 = 0.761594, sech² 1 = 0.419974; the gradient in log π is ρ times."""
    ratio = torch.tensor([1.0, 1.2, 1.2, 0.6, 0.6], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    advantages = torch.tensor([2.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    loss = mine.soft_clip(
        LossInputs(
            logprobs=logprobs,
            old_logprobs=torch.zeros(5, dtype=torch.float64),
            advantages=advantages,
            action_mask=torch.ones(5, dtype=torch.bool),
            response_offsets=torch.tensor([0, 5]),
            clip_low=0.4,
            clip_high=0.2,
        )
    )
    # Toward: −(1 + 0.2 tanh 1) and 1 − 0.4 tanh 1. Back: ∓ρ, as PPO.
    assert loss.tolist() == pytest.approx([-2.0, -1.152319, 1.2, 0.695362, -0.6], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([-2.0, -0.503969, 1.2, 0.251985, -0.6], abs=1e-6)


def test_soft_clip_needs_bounds(mine):
    nothing = torch.zeros(0)
    with pytest.raises(ValueError, match="above 0"):
        mine.soft_clip(LossInputs(nothing, nothing, nothing, nothing.bool(), torch.tensor([0]), clip_low=0.0))


def test_both_in_a_run_named_by_path(tokenizer, tmp_path):
    config = job(
        steps=2,
        batch_size=6,
        samples_per_prompt=2,
        advantage=f"{EXAMPLE}:positive_rloo",
        loss=f"{EXAMPLE}:soft_clip",
        whiten_advantages="never",
    )
    made, log = trainer(tokenizer, config, tmp_path), SilentLog()
    before = parameters(made)
    made.train(log)
    assert [row["step"] for row in log.rows] == [1, 2]
    # A pair has one winner at most, so the mean is above 0: the losers were cut, not whitened back.
    assert all(row["advantage_mean"] > 0 for row in log.rows)
    assert all(row["first_minibatch/ratio_error"] == 0.0 for row in log.rows)
    moved = [name for name, p in parameters(made).items() if not torch.equal(p, before[name])]
    assert any(not name.startswith("critic.") for name in moved)


def test_both_in_a_run_by_the_names_that_the_page_gives_them(mine, tokenizer, tmp_path, monkeypatch):
    (entries,) = [block for block in blocks("python") if block.startswith("ADVANTAGES[")]
    table = {**vars(algorithms), "ADVANTAGES": {}, "LOSSES": {}}
    exec(entries, table)
    for name, entry in table["ADVANTAGES"].items():
        monkeypatch.setitem(algorithms.ADVANTAGES, name, entry)
        monkeypatch.setattr(estimators, "positive_rloo", mine.positive_rloo, raising=False)
    for name, entry in table["LOSSES"].items():
        monkeypatch.setitem(algorithms.LOSSES, name, entry)
        monkeypatch.setattr(policy_losses, "soft_clip", mine.soft_clip, raising=False)
    (advantage,), (loss,) = table["ADVANTAGES"], table["LOSSES"]
    config = job(steps=1, batch_size=6, samples_per_prompt=2, advantage=advantage, loss=loss)
    made, log = trainer(tokenizer, config, tmp_path), SilentLog()
    assert made.models.value_head is None
    made.train(log)
    assert log.rows[0]["first_minibatch/ratio_error"] == 0.0


def test_the_page_shows_the_example_as_it_is():
    source = EXAMPLE.read_text(encoding="utf-8")
    shown = [block for block in blocks("python") if block.startswith("def ")]
    assert len(shown) == 2
    assert all(block in source for block in shown)


@pytest.mark.parametrize("number", range(len(blocks("toml"))))
def test_settings_on_the_page_are_valid(number, tmp_path, monkeypatch):
    """As a file, beside a policy and prompts; load_config refuses unknown names and bad combinations."""
    monkeypatch.chdir(DOCS.parent)
    file = tmp_path / "settings.toml"
    file.write_text(blocks("toml")[number], encoding="utf-8")
    load_config("ppo", file, {"model.policy": "tiny", "data.prompts": "prompts.txt"})


def test_there_are_settings_on_the_page():
    assert len(blocks("toml")) >= 10
