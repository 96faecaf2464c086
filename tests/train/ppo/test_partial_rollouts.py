"""Partial rollouts: each segment by newer weights, the same whatever the timing, exact after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentLog, job, parameters, run, trainer, vowels
from safetensors.torch import load_file

from proxlm.checkpoint import checkpoints, load_checkpoint
from proxlm.config import EnvironmentSettings, PPOConfig
from proxlm.config.no_effect import without_effect
from proxlm.config.ppo import CorrectionSettings
from proxlm.engine.native import NativeEngine
from proxlm.engine.segments import PartialResponse, PartialRollout, write_segments
from proxlm.errors import ConfigError, RewardError, RunError
from proxlm.models.forward import token_outputs
from proxlm.train.ppo import loop as ppo
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Rollout
from small_models import tiny_model

TIMED = ("time", "tokens_per_second", "memory_gb")
TRUNCATE = CorrectionSettings(mode="token_truncate")
LENGTH = 12  # of a response, at most: helpers.job


def partial_job(critic: str = "shared", k: int = 3, whole: bool = False, **more: Any) -> PPOConfig:
    more = {"steps": 6, "lr": 3e-3, "staleness_correction": TRUNCATE} | more
    return job(critic, max_staleness=k, partial_rollouts=not whole, **more)


def saving(config: PPOConfig) -> PPOConfig:
    return replace(config, run=replace(config.run, save_every=1, keep=99))


def numbers(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows without what a clock or a memory gauge says."""
    return [{name: v for name, v in row.items() if not name.startswith(TIMED)} for row in rows]


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def wanted_versions(step: int, k: int, lengths: list[int]) -> list[int]:
    """By the rule: the segment of a position, and the version of the segment."""
    ends = [LENGTH * (i + 1) // k for i in range(k)]
    of_position = [max(0, step - k + sum(end <= at for end in ends)) for at in range(LENGTH)]
    return [version for length in lengths for version in of_position[:length]]


def kept_rollouts(made: PPOLoop) -> list[Rollout]:
    """Those that the run's steps will learn from."""
    rollouts: list[Rollout] = []
    reward = made.reward
    made.reward = lambda rollout: (rollouts.append(rollout), reward(rollout))[1]
    return rollouts


def policy_of(tokenizer: Any, weights: dict[str, torch.Tensor]) -> Any:
    found = tiny_model(tokenizer)
    with torch.no_grad():
        for name, p in found.network.named_parameters():
            p.copy_(weights[f"policy.{name}"])
    return found


@pytest.mark.checklist(21)
@pytest.mark.parametrize("k", [2, 3, 5])
def test_each_segment_is_sampled_by_its_version(tokenizer, tmp_path, k):
    config = saving(partial_job(k=k, steps=7))
    made = trainer(tokenizer, config, tmp_path)
    rollouts = kept_rollouts(made)
    start = {
        f"policy.{name}": p.detach().clone() for name, p in made.models.policy.network.named_parameters()
    }
    rows = run(made)
    versions = [start, *(load_checkpoint(folder)[0] for folder in checkpoints(tmp_path))]
    policies = [policy_of(tokenizer, weights) for weights in versions]
    for step, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        lengths = rollout.sequences.response_lengths.tolist()
        found = rollout.policy_versions
        assert found.tolist() == wanted_versions(step, k, lengths)
        # The log-prob of each token is that of its version, by a pass of its own.
        again = torch.stack([token_outputs(p, rollout.sequences, 1.0).logprobs for p in policies[: step + 1]])
        of_version = again.gather(0, found[None])[0]
        assert torch.allclose(of_version, rollout.logprobs, atol=1e-5)
        if step:
            assert not torch.allclose(again[-1], rollout.logprobs, atol=1e-2)  # the versions differ
        # The histogram counts the tokens by their age.
        ages = torch.bincount(step - found, minlength=k + 1) / len(found)
        assert [row[f"staleness/share_{age}"] for age in range(k + 1)] == pytest.approx(ages.tolist())
        assert row["staleness"] == pytest.approx(float((step - found).double().mean()))
    # The last ones have tokens of all ages from 1 to k, about equally many of each.
    assert all(0.5 / k < rows[-1][f"staleness/share_{age}"] < 2 / k for age in range(1, k + 1))
    assert rows[-1]["staleness/share_0"] == 0
    # The same tokens as those of a rollout written alone, from one version's weights after another.
    step = 6
    stream = list(made.prompts.batch(step))
    alone = PartialRollout(stream, config.rollout, step, [PartialResponse()] * len(stream))
    for i in range(k):
        engine = NativeEngine(policies[step - k + i], config.rollout)
        limit = LENGTH * (i + 1) // k
        (alone,) = write_segments(engine, [alone], [limit], config.run.seed, lambda done, of: None)
    other = alone.whole(engine)
    assert other.sequences.tokens.equal(rollouts[step].sequences.tokens)
    assert other.texts == rollouts[step].texts
    assert other.finish == rollouts[step].finish


@pytest.mark.parametrize("k", [0, 1])
def test_nothing_changes_where_there_is_one_segment(tokenizer, tmp_path, k):
    results = []
    for whole in (True, False):
        made = trainer(tokenizer, saving(partial_job(k=k, whole=whole, steps=3)), tmp_path / str(whole))
        rows = run(made)
        saved = load_file(checkpoints(tmp_path / str(whole))[-1] / "state.safetensors")
        results.append((numbers(rows), parameters(made), saved))
    assert results[0][0] == results[1][0]
    assert alike(results[0][1], results[1][1])
    assert alike(results[0][2], results[1][2])


def in_order(made: PPOLoop, monkeypatch: pytest.MonkeyPatch, rollouts_first: bool) -> None:
    """Each update waits for the rollouts made beside it, or these for the update."""
    learn = ppo.update

    def update(*given: Any) -> Any:
        if rollouts_first:
            made.collector.wait()
        return learn(*given)

    monkeypatch.setattr(ppo, "update", update)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "adapters": {"lora": 4, "critic": "adapter"},
    "both weights, and sets": {"engine_correction": TRUNCATE, "top_p": 0.8},
    "groups": {"samples_per_prompt": 3, "batch_size": 4, "advantage": "grpo"},
    "temperature": {"final_temperature": 0.5, "stop": ["an"]},
}


def case_of(name: str, **more: Any) -> tuple[PPOConfig, dict[str, Any]]:
    """A job, and what its trainer is given."""
    case = CASES[name] | more
    given = {"lora": case.pop("lora")} if "lora" in case else {}
    sampled = {key: case.pop(key) for key in ("top_p", "final_temperature", "stop") if key in case}
    config = partial_job(**case)
    return replace(config, rollout=replace(config.rollout, **sampled)), given


@pytest.mark.checklist(38)
@pytest.mark.parametrize("name", list(CASES))
def test_timing_changes_nothing_and_a_resume_from_each_checkpoint_is_exact(
    tokenizer, tmp_path, monkeypatch, name
):
    config, given = case_of(name)
    config = saving(config)
    whole = trainer(tokenizer, config, tmp_path / "whole", **given)
    rows = numbers(run(whole))
    other = trainer(tokenizer, config, tmp_path / "other", **given)
    with monkeypatch.context() as patch:
        in_order(other, patch, rollouts_first=True)
        assert numbers(run(other)) == rows
    for step, (one, two) in enumerate(
        zip(checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "other"), strict=True), 1
    ):
        saved = load_file(one / "state.safetensors")
        assert alike(saved, load_file(two / "state.safetensors"))
        copies = {n.split(".")[1] for n in saved if n.startswith("extra.version-")}
        assert copies == {f"version-{step - 1}"}  # one, whatever k is
        begun = {n.split(".")[1] for n in saved if n.startswith("extra.partial-")}
        assert begun == ({f"partial-{step}", f"partial-{step + 1}"} if step > 1 else set())
    for step in (1, 2, 4):
        for folder in checkpoints(tmp_path / "other")[step:]:
            folder.rename(folder.with_name(f"not-{step}-{folder.name}"))
        again = trainer(tokenizer, config, tmp_path / "other", **given)
        again.resume()
        assert again.state.step == step
        assert numbers(run(again)) == rows[step:]
        assert alike(parameters(again), parameters(whole))


def test_a_finished_run_may_be_made_longer(tokenizer, tmp_path):
    whole = trainer(tokenizer, saving(partial_job(steps=5)), tmp_path / "whole")
    rows = numbers(run(whole))
    run(trainer(tokenizer, saving(partial_job(steps=3)), tmp_path / "parts"))
    longer = trainer(tokenizer, saving(partial_job(steps=5)), tmp_path / "parts")
    longer.resume()
    assert numbers(run(longer)) == rows[3:]
    assert alike(parameters(longer), parameters(whole))


@pytest.mark.parametrize("error", [RewardError("once"), torch.OutOfMemoryError("out of memory")])
def test_a_step_that_is_collected_again_has_the_same_rollout(tokenizer, tmp_path, error):
    """After a reward's error the same trainer goes on; out of memory beside an update is tried again alone."""
    calls: list[int] = []

    def reward(rollout: Rollout) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise error
        return vowels(rollout)

    made, log = trainer(tokenizer, partial_job(steps=5), tmp_path / "a", reward=reward), SilentLog()
    if isinstance(error, RewardError):
        with pytest.raises(RewardError, match="once"):
            made.train(log)  # type: ignore[arg-type]
        assert [row["step"] for row in log.rows] == [1, 2, 3]
    made.train(log)  # type: ignore[arg-type]
    assert len(calls) == 6
    whole = trainer(tokenizer, partial_job(steps=5), tmp_path / "b")
    assert numbers(log.rows) == numbers(run(whole))
    assert alike(parameters(made), parameters(whole))


@pytest.mark.checklist(20)
@pytest.mark.parametrize("weights", ["policy", "int8"])
def test_mismatch_and_staleness_are_told_apart_in_each_token(tokenizer, tmp_path, monkeypatch, weights):
    config = saving(partial_job(engine_correction=TRUNCATE))
    config = replace(config, rollout=replace(config.rollout, weights=weights, top_p=0.9))
    made = trainer(tokenizer, config, tmp_path)
    seen, plain = [], ppo.prepare

    def kept(models: Any, rollout: Rollout, *given: Any, **more: Any) -> Any:
        found = plain(models, rollout, *given, **more)
        seen.append((rollout, found.experience))
        return found

    monkeypatch.setattr(ppo, "prepare", kept)
    start = {
        f"policy.{name}": p.detach().clone() for name, p in made.models.policy.network.named_parameters()
    }
    run(made)
    versions = [start, *(load_checkpoint(folder)[0] for folder in checkpoints(tmp_path))]
    policies = [policy_of(tokenizer, found) for found in versions]
    assert seen[0][0].trainer_logprobs is None  # of the present version: the update's own passes tell
    for rollout, experience in seen[1:]:
        again = torch.stack(
            [token_outputs(p, rollout.sequences, 1.0, mask=rollout.sampling_mask).logprobs for p in policies]
        )
        by_trainer = again.gather(0, rollout.policy_versions[None])[0]
        by_trainer = by_trainer.detach()
        assert torch.allclose(by_trainer, rollout.trainer_logprobs, atol=1e-5)
        engine, stale = by_trainer - rollout.logprobs, experience.old_logprobs - by_trainer
        off = float(engine.abs().max())
        assert off > 1e-3 if weights == "int8" else off < 1e-4
        assert float(stale.abs().max()) > 0.01
        # Each is bounded by itself.
        wanted = engine.exp().clamp(max=2) * stale.exp().clamp(max=2)
        assert torch.allclose(experience.correction, wanted, rtol=1e-4)


def test_a_checkpoint_without_the_responses_is_refused(tokenizer, tmp_path):
    made = trainer(tokenizer, partial_job(), tmp_path)
    for _ in range(3):
        made.step(SilentLog())  # type: ignore[arg-type]
    found = made.collector.tensors()
    made.close()
    wrong = {
        "all": {name: t for name, t in found.items() if not name.startswith("partial-")},
        "tokens": {name: t for name, t in found.items() if name != "partial-3.tokens"},
        "lengths": found | {"partial-4.lengths": found["partial-4.lengths"] + 1},
        "rows": found | {name: found[name][:-1] for name in ("partial-4.lengths", "partial-4.finish")},
        "another step": {name.replace("partial-3.", "partial-9."): t for name, t in found.items()},
    }
    for tensors in wrong.values():
        with pytest.raises(
            RunError, match=r"^there: does not hold the responses that later steps have begun"
        ):
            made.collector.resume(Path("there"), 3, tensors)
    made.collector.resume(Path("there"), 3, found)
    assert alike(made.collector.tensors(), found)


def test_what_was_begun_for_other_prompts_is_begun_again(tokenizer, tmp_path):
    """As after an accepted change of their file; else the tokens would stand behind prompts of others."""
    config = saving(partial_job(steps=6))
    run(trainer(tokenizer, replace(config, ppo=replace(config.ppo, steps=3)), tmp_path))
    again = trainer(tokenizer, config, tmp_path)
    again.prompts.prompts = again.prompts.prompts[::-1]
    again.resume()
    rollouts = kept_rollouts(again)
    rows = run(again)
    versions = {
        int(folder.name.split("-")[-1]): load_checkpoint(folder)[0] for folder in checkpoints(tmp_path)
    }
    policies = {step: policy_of(tokenizer, weights) for step, weights in versions.items()}
    for row, rollout in zip(rows, rollouts, strict=True):
        of_version = {
            number: token_outputs(policies[number], rollout.sequences, 1.0).logprobs
            for number in set(rollout.policy_versions.tolist())
        }
        wanted = torch.stack(
            [of_version[number][i] for i, number in enumerate(rollout.policy_versions.tolist())]
        )
        assert torch.allclose(wanted, rollout.logprobs, atol=1e-5), row["step"]


def test_what_cannot_be_combined_is_refused(tokenizer):
    def said(config: PPOConfig, named: str = "ppo.partial_rollouts") -> list[str]:
        return [message for key, message in config.problems() if key == named]

    fine = partial_job()
    assert said(fine) == []
    assert "conversations" in said(replace(fine, environment=EnvironmentSettings(use="x")))[0]
    assert "ppo.filter_groups" in said(partial_job(filter_groups=True, samples_per_prompt=2))[0]
    assert "reward.overlap" in said(replace(fine, reward=replace(fine.reward, overlap=2)))[0]
    assert "at least ppo.max_staleness = 13" in said(partial_job(k=13), "rollout.max_new_tokens")[0]
    assert said(partial_job(k=12), "rollout.max_new_tokens") == []
    without = [message for key, message in without_effect(partial_job(k=1)) if key == "ppo.partial_rollouts"]
    assert "no effect with ppo.max_staleness = 1" in without[0]
    with pytest.raises(ConfigError, match="an encoder–decoder's response cannot be continued"):
        trainer(tokenizer, fine, Path(), family="t5")


def test_it_learns(tokenizer, tmp_path):
    config = partial_job("separate", k=4, steps=25, kl_coef=0.01)
    rows = run(trainer(tokenizer, config, tmp_path))
    first, last = (sum(r["reward"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.1
