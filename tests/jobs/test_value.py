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
from proxlm.jobs.value import ValueTrainer, main
from proxlm.models.actor_critic import load_actor_critic
from proxlm.models.save import save_language_model
from proxlm.report.run import load_run
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
    optimiser = OptimiserSettings(lr=3e-3)
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
    # The head began at the histogram of the first returns, and learnt from there.
    bias = saved["value_bins"].pop("bias")
    assert saved["value_bins"] == {"low": -1.5, "high": 0.5, "sigma": 0.75}
    assert len(bias) == 21
    assert max(bias) - min(bias) > 1.0
    assert AutoModelForSequenceClassification.from_pretrained(whole.model).num_labels == 21


def evaluated(config, **run):
    return replace(config, data=replace(config.data, eval_count=6), run=replace(config.run, **run))


@pytest.mark.checklist(13)
@pytest.mark.parametrize("scale", ["none", "running"])
def test_values_and_returns_of_held_out_responses_before_and_after(policy, tmp_path, scale, capsys):
    wanted = evaluated(config(policy, tmp_path / "run", steps=12, critic="separate"))
    (tmp_path / "reward.py").write_text(
        "def score(them):\n    return [len(x.prompt) / 20 for x in them]\n", "utf-8"
    )
    reward = RewardSettings(use=f"{tmp_path / 'reward.py'}:score")
    wanted = replace(wanted, shaping=replace(wanted.shaping, scale=scale), reward=reward)
    main(wanted)
    run = load_run(tmp_path / "run")
    printed = capsys.readouterr().out
    assert "evaluating the critic on 6 held-out prompts (before)" in printed
    table = printed[printed.index("metric") :].splitlines()
    assert table[0].split() == ["metric", "before", "after"]
    assert "explained_variance" in "".join(table)
    assert (run.before.model, run.after.model) == (str(policy / "policy"), str(run.model))
    before, after = run.before.means(), run.after.means()
    assert (before["value_mean"], before["explained_variance"]) == (0.0, pytest.approx(0.0))
    assert "value_slope" not in before
    assert before["reward"] == after["reward"]
    assert after["value_mean"] != 0.0
    assert run.after.prompts == 6
    rows = [evaluation.responses for evaluation in (run.before, run.after)]
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    if scale == "none":  # a response's return at its first token is its score: no KL, no discount
        assert [row["return"] for row in rows[1]] == pytest.approx(
            [row["reward"] for row in rows[1]], abs=1e-4
        )
        assert after["value_error"] < before["value_error"]
        assert before["return_mean"] == pytest.approx(before["reward"])
        # V = 0, and each response's returns are all its score.
        assert before["value_error"] == pytest.approx(
            sum(row["reward"] ** 2 for row in rows[0]) / 6, rel=1e-4
        )
    assert "explained_variance" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert verify_run(tmp_path / "run") == []
    (tmp_path / "run" / "evaluation.json").unlink()
    assert verify_run(tmp_path / "run") == [f"{tmp_path / 'run' / 'evaluation.json'}: missing"]


def evaluation_of(folder):
    return json.loads((folder / "evaluation.json").read_text("utf-8"))["models"]


def test_a_resume_evaluates_as_one_run_would_and_the_start_again_if_it_is_lost(policy, tmp_path):
    heads = ValueSettings(heads=3, combine="min", head_share=0.5)
    for critic in ("separate", "shared"):
        place = tmp_path / critic
        wanted = evaluated(config(policy, place / "whole", steps=4, critic=critic, value=heads))
        whole = ValueTrainer(config=wanted).train()
        half = evaluated(config(policy, place / "half", steps=2, critic=critic, value=heads))
        ValueTrainer(config=half).train()
        (place / "half" / "evaluation.json").unlink()
        more = replace(half, ppo=replace(half.ppo, steps=4), run=replace(half.run, resume=True))
        resumed = ValueTrainer(config=more).train()
        for one, other in zip(evaluation_of(place / "whole"), evaluation_of(place / "half"), strict=True):
            assert one["metrics"] == other["metrics"], one["name"]
        assert columns(resumed) == columns(whole)
        assert whole.before.means()["value_spread"] > 0.01
        assert json.loads((whole.model / "config.json").read_text("utf-8"))["value_heads"] == 3
        changed = (place / "half" / "evaluation.json").stat().st_mtime_ns
        assert ValueTrainer(config=more).train().after == resumed.after  # nothing is left to do
        assert (place / "half" / "evaluation.json").stat().st_mtime_ns == changed


def test_the_best_critic_is_evaluated_on_other_responses(policy, tmp_path):
    wanted = evaluated(
        config(policy, tmp_path / "run", steps=3), keep_best="value_loss", keep_best_is="lowest"
    )
    run = ValueTrainer(config=wanted).train()
    assert list(run.evaluations) == ["before", "best", "after"]
    best = run.evaluations["best"]
    assert [row["response"] for row in best.responses] != [row["response"] for row in run.after.responses]
    assert best.means()["value_mean"] != run.after.means()["value_mean"]
    assert run.chosen.step in (1, 2, 3)


def test_responses_without_a_reward_are_left_out_and_none_at_all_is_no_end(policy, tmp_path):
    def some(completions):
        return [None if "a" in c.text or "e" in c.text else float(len(c.text)) for c in completions]

    wanted = evaluated(config(policy, tmp_path / "run", steps=2))
    run = ValueTrainer(reward=some, config=replace(wanted, reward=RewardSettings())).train()
    counts = [(e.prompts, e.without_reward, len(e.responses)) for e in (run.before, run.after)]
    assert counts[0] == counts[1]
    prompts, without, kept = counts[0]
    assert (prompts, without + kept) == (6, 6)
    assert without > 0
    loop_calls = []

    def none_later(completions):
        loop_calls.append(len(completions))
        return [None if len(completions) == 6 else 1.0 for _ in completions]

    wanted = evaluated(config(policy, tmp_path / "none", steps=1))
    run = ValueTrainer(reward=none_later, config=replace(wanted, reward=RewardSettings())).train()
    assert (run.after.metrics, run.after.without_reward) == ({}, 6)


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
    short = replace(wrong, rollout=RolloutSettings(max_new_tokens=2))
    short = replace(
        short,
        data=replace(
            short.data,
            prompts=str(policy / "short.txt"),
            eval_count=10,
            eval_prompts=str(policy / "prompts.txt"),
        ),
    )
    (policy / "short.txt").write_text("a\n" * 8, "utf-8")
    PPOTrainer(config=replace(short, run=replace(short.run, folder=str(tmp_path / "ppo")))).train()
    held_out = config(policy, tmp_path / "run", critic_from=str(tmp_path / "small"))
    with pytest.raises(ConfigError, match="the critic's context of 8 tokens is too short for a prompt of"):
        ValueTrainer(config=replace(held_out, rollout=short.rollout, data=short.data)).train()
    assert not (tmp_path / "run").exists()
