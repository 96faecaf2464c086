"""A resume with other settings: those that change the numbers are refused, the others are taken."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from proxlm.checkpoint import check_settings, settings_of
from proxlm.config import (
    JOBS,
    ControlConfig,
    DataSettings,
    PPOConfig,
    PPOSettings,
    PretrainConfig,
    PtxSettings,
    RewardSettings,
    RewardTerm,
    SFTConfig,
)
from proxlm.config.tree import is_section, kinds
from proxlm.errors import RunError

TRAINING = {name: JOBS[name] for name in ("ppo", "pretrain", "sft", "reward", "dpo", "distill", "control")}

FIXED_OF_RUN = ("seed", "keep_best", "keep_best_is")
FREE = {
    "model.packed", "model.activation_checkpointing", "model.device", "model.trust_remote_code", "model.save_dtype",
    "rollout.batch_size", "environment.timeout", "environment.lockstep", "evaluation.every", "evaluation.greedy",
    "reward.timeout", "reward.on_error", "reward.isolate", "reward.memory_gb", "ppo.steps",
    "ppo.micro_batch_tokens", "train.steps", "train.minutes", "train.micro_batch_tokens", "train.patience",
    "environment.steps", "gif", "text.tokens", "distill.cache_gb", "teacher.key", "teacher.concurrency",
    "teacher.timeout", "teacher.retries", "teacher.max_requests", "distributed.timeout", "distributed.strategy",
    "engine.url", "engine.timeout", "engine.retries", "engine.wait", "engine.tolerance",
    "engine.checksums", "engine.folder",
    "test.files", "test.best_of", "test.baselines",
}  # fmt: skip


def leaves(kind, at=()):
    """Every setting below a section: its key and its field."""
    for field in dataclasses.fields(kind):
        of = kinds(kind)[field.name]
        if is_section(of):
            yield from leaves(of, (*at, field.name))
        else:
            yield (*at, field.name), field


def changed(saved, key):
    """A copy of saved settings in which one has another value."""
    copy = json.loads(json.dumps(saved))
    section = copy
    for name in key[:-1]:
        section = section[name]
    old = section[key[-1]]
    other = {bool: lambda: not old, int: lambda: old + 1, float: lambda: old + 0.25, str: lambda: old + "x"}
    section[key[-1]] = (
        other[type(old)]() if type(old) in other else ["x"] if isinstance(old, list) else {"x": 1}
    )
    return copy


@pytest.mark.parametrize("name", TRAINING)
def test_every_setting_is_refused_or_listed_as_free(tmp_path, name):
    job = TRAINING[name]()
    saved = settings_of(job)
    check_settings(tmp_path, saved, job)
    for key, _ in leaves(type(job)):
        dotted = ".".join(key)
        other = changed(saved, key)
        if dotted in FREE or (key[0] == "run" and key[1] not in FIXED_OF_RUN):
            check_settings(tmp_path, other, job)
        else:
            with pytest.raises(RunError) as caught:
                check_settings(tmp_path, other, job)
            assert f"made with {dotted} = " in str(caught.value), dotted


def test_the_message_has_both_values():
    job = PPOConfig(ppo=PPOSettings(kl_coef=0.1))
    with pytest.raises(RunError) as caught:
        check_settings(Path("a"), settings_of(job), PPOConfig(ppo=PPOSettings(kl_coef=0.2)))
    assert str(caught.value).startswith(
        "a: made with ppo.kl_coef = 0.1, not 0.2; resume with the same, or start"
    )


def test_a_term_of_the_reward_counts(tmp_path):
    job = PPOConfig(reward=RewardSettings(terms={"a": RewardTerm(use="length", weight=1.0)}))
    other = replace(job, reward=RewardSettings(terms={"a": RewardTerm(use="length", weight=2.0)}))
    with pytest.raises(RunError, match=r"made with reward\.terms = .*weight = 1\.0"):
        check_settings(tmp_path, settings_of(job), other)


def test_a_setting_the_older_version_lacked_was_its_default(tmp_path):
    """The default is the job's: control's optimisers are not a language model's."""
    for job in (ControlConfig(), SFTConfig(), PretrainConfig()):
        saved = settings_of(job)
        del saved["optim"]
        check_settings(tmp_path, saved, job)
    saved = settings_of(ControlConfig())
    saved["ppo"]["gone"] = 3
    with pytest.raises(RunError, match=r"made with ppo\.gone = 3, not a setting of this version"):
        check_settings(tmp_path, saved, ControlConfig())


def test_a_file_that_was_moved_is_the_same_setting(tmp_path):
    old, new = tmp_path / "old" / "p.jsonl", tmp_path / "new" / "p.jsonl"

    def job(path):
        return PPOConfig(data=DataSettings(prompts=str(path)), ptx=PtxSettings(text=[str(path)]))

    check_settings(tmp_path, settings_of(job(old)), job(new))
    with pytest.raises(RunError, match=r"made with data\.prompts = "):
        check_settings(tmp_path, settings_of(job(old)), job(new.with_name("q.jsonl")))
    old.parent.mkdir()
    old.write_text("{}\n")
    with pytest.raises(RunError, match=r"made with data\.prompts = "):  # both are there: another file
        check_settings(tmp_path, settings_of(job(old)), job(new))


def test_a_relative_path_is_the_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text("{}\n")
    saved = settings_of(PPOConfig(data=DataSettings(prompts="p.jsonl")))
    assert saved["data"]["prompts"] == str(tmp_path / "p.jsonl")
    check_settings(tmp_path, saved, PPOConfig(data=DataSettings(prompts=str(tmp_path / "p.jsonl"))))


@pytest.mark.parametrize("saved", [None, [], "x", 3])
def test_a_state_without_settings_is_refused(tmp_path, saved):
    with pytest.raises(RunError, match=r"state\.json: holds no settings"):
        check_settings(tmp_path, saved, PPOConfig())
