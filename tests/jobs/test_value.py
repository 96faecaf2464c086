"""`proxlm value`: a critic of a fixed policy, and what PPO makes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from proxlm.config import (
    DataSettings,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RewardSettings,
    RolloutSettings,
    RunSettings,
    ValueConfig,
    ValueSettings,
    load_config,
    validate,
)
from proxlm.errors import ConfigError
from proxlm.jobs.doctor import examine
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.value import ValueTrainer
from proxlm.models.actor_critic import load_actor_critic
from proxlm.models.save import save_language_model
from proxlm.report.verify import verify_run
from proxlm.types import Sequences
from small_models import TEXTS, WORDS, tiny_model


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("value")
    save_language_model(tiny_model(tokenizer), folder / "policy")
    (folder / "prompts.txt").write_text("\n".join([*WORDS, *TEXTS]) + "\n", "utf-8")
    return folder


def config(policy, folder, kind=ValueConfig, steps=3, **model):
    optimiser = OptimiserSettings(lr=3e-3, final=1.0)
    return kind(
        model=ModelSettings(policy=str(policy / "policy"), device="cpu", **model),
        data=DataSettings(prompts=str(policy / "prompts.txt"), eval_count=0),
        rollout=RolloutSettings(max_new_tokens=6),
        reward=RewardSettings(use="length", args={"target": 10}),
        ppo=PPOSettings(steps=steps, batch_size=8, epochs=2),
        optim=OptimisersSettings(optimiser, optimiser),
        run=RunSettings(folder=str(folder), save_every=0),
    )


def columns(run):
    return {
        name: values
        for name, values in run.metrics.items()
        if not name.startswith(("time", "tokens_per", "memory"))
    }


@pytest.mark.checklist(11)
@pytest.mark.checklist(12)
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_saved_critic_has_the_values_of_the_one_that_learnt_and_starts_ppo(policy, tmp_path, critic):
    trainer = ValueTrainer(config=config(policy, tmp_path / "run", critic=critic))
    kept = []
    models_of = trainer._models
    trainer._models = lambda: kept.append(models_of()) or kept[0]
    run = trainer.train()
    assert (run.job, run.model) == ("value", tmp_path / "run" / "value")
    assert not (tmp_path / "run" / "policy").exists()
    assert run.metrics["warmup"] == [1.0] * 3
    assert all(name not in run.metrics for name in ("policy_loss", "grad_norm/policy"))
    assert run.metrics["kl"] == [0.0] * 3
    assert run.metrics["value_loss"][-1] < run.metrics["value_loss"][0]
    rows = Sequences.from_lists([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])
    with torch.no_grad():
        learnt = kept[0].value_of(kept[0].critic_states(rows)[1])
        network = AutoModelForSequenceClassification.from_pretrained(run.model)
        texts = [rows.tokens[a:b] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
        scores = torch.cat([network(input_ids=text[None]).logits[:, 0] for text in texts])
    assert network.num_labels == 1
    assert torch.allclose(scores, learnt, atol=1e-5)
    assert float(learnt.abs().min()) > 1e-3
    loaded = load_actor_critic(
        ModelSettings(str(policy / "policy"), device="cpu", critic_from=str(run.model))
    )
    assert torch.allclose(loaded.value_of(loaded.critic_states(rows)[1]), learnt, atol=1e-5)
    # What PPO sees first is what the pretrained critic says, and the policy is the one that it was given.
    ppo = PPOTrainer(
        config=config(policy, tmp_path / "ppo", PPOConfig, 1, critic_from=str(run.model))
    ).train()
    assert ppo.metrics["value_mean"][0] != 0.0
    assert ppo.metrics["kl"][0] == 0.0
    assert verify_run(tmp_path / "run") == []
    assert examine(tmp_path / "run").last_step == 3


def test_a_resume_continues_exactly(policy, tmp_path):
    bins = ValueSettings("categorical", -1.5, 0.5, 21)
    whole = ValueTrainer(config=config(policy, tmp_path / "whole", steps=4, value=bins)).train()
    half = config(policy, tmp_path / "half", steps=2, value=bins)
    ValueTrainer(config=half).train()
    more = replace(half, ppo=replace(half.ppo, steps=4), run=replace(half.run, resume=True))
    resumed = ValueTrainer(config=more).train()
    assert columns(resumed) == columns(whole)
    files = [(run.model / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]
    saved = json.loads((whole.model / "config.json").read_text("utf-8"))
    assert saved["value_bins"] == {"low": -1.5, "high": 0.5, "sigma": 0.75}
    assert AutoModelForSequenceClassification.from_pretrained(whole.model).num_labels == 21


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.lora.rank", 4),
        ("ppo.critic_warmup", 2),
        ("ppo.advantage", "grpo"),
        ("ptx.coef", 0.1),
        ("evaluation.every", 1),
    ],
)
def test_what_does_not_fit_is_refused(policy, tmp_path, key, value):
    needed = {"model.policy": "m", "data.prompts": "p.txt", "data.eval_count": 1, "reward.use": "length"}
    with pytest.raises(ConfigError, match=key):
        load_config("value", None, needed | {"ptx.text": ["t"], "ppo.samples_per_prompt": 2, key: value})
    assert isinstance(validate(config(policy, tmp_path)), ValueConfig)


def test_an_encoder_decoder_is_refused_by_name(tokenizer, policy, tmp_path):
    save_language_model(tiny_model(tokenizer, "t5"), tmp_path / "t5")
    wrong = config(policy, tmp_path / "run")
    wrong = replace(wrong, model=replace(wrong.model, policy=str(tmp_path / "t5")))
    with pytest.raises(ConfigError, match="an encoder–decoder's critic cannot be saved as a classifier"):
        ValueTrainer(config=wrong).train()
    assert not (tmp_path / "run").exists()


def test_a_prompt_beyond_the_critics_context_is_refused_before_the_run(tokenizer, policy, tmp_path):
    from proxlm.config import NewModelSettings
    from proxlm.models.load import build_language_model

    new = NewModelSettings(type="llama", hidden=16, layers=1, heads=2, context=8)
    save_language_model(build_language_model(new, tokenizer, ModelSettings(device="cpu")), tmp_path / "small")
    wrong = config(policy, tmp_path / "run", PPOConfig, critic_from=str(tmp_path / "small"))
    with pytest.raises(ConfigError, match="the critic's context of 8 tokens is too short for a prompt of"):
        PPOTrainer(config=wrong).train()
    assert not (tmp_path / "run").exists()
