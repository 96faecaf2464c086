"""The stability kit on a real small model: warm-up, moving reference, ptx, filtering, scaling, KL in the loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, trainer, vowels
from transformers import AutoModelForSequenceClassification

from proxlm.config import OptimisersConfig, PtxConfig, RewardConfig, RewardTerm, RolloutConfig, ShapingConfig
from proxlm.errors import ConfigError, ModelError
from proxlm.models.actor_critic import critic_from_reward_model
from proxlm.rewards import build_reward
from proxlm.rl.moments import Moments
from proxlm.rollout.native import generate
from proxlm.train.ptx import PtxText
from proxlm.train.schedules import temperature_at
from proxlm.types import Completion, Scores


def steps(made, count):
    log = SilentLog()
    return [made.step(log) for _ in range(count)]


@pytest.mark.checklist(12)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_only_the_critic_moves_during_warm_up(tokenizer, critic):
    made = trainer(tokenizer, job(critic, steps=7, lr=3e-3, critic_warmup=6), None)
    start = parameters(made)
    rows = steps(made, 6)
    warm = parameters(made)
    for name in start:
        if name.startswith("critic."):
            moved = not torch.equal(start[name], warm[name])
            assert moved or "trunk" in name
        else:
            assert torch.equal(start[name], warm[name])
    assert any(not torch.equal(start[n], warm[n]) for n in start if n.startswith("critic.trunk")) is (
        critic == "separate"
    )
    assert [r["warmup"] for r in rows] == [1.0] * 6
    assert all("policy_loss" not in r and "lr/policy" not in r for r in rows)
    (after,) = steps(made, 1)
    assert after["warmup"] == 0.0
    assert any(
        not torch.equal(warm[n], p) for n, p in parameters(made).items() if not n.startswith("critic.")
    )


@pytest.mark.checklist(12)
def test_warm_up_teaches_the_critic(tokenizer):
    def early(rollout):
        """A reward that the prompt decides: all of it can be predicted."""
        return Scores(torch.tensor([float(len(p.text) > 8) for p in rollout.prompts]))

    made = trainer(
        tokenizer,
        job("separate", lr=3e-3, steps=30, critic_warmup=30, clip_value=0.0, batch_size=24),
        None,
        reward=early,
    )
    rows = steps(made, 30)
    assert rows[-1]["explained_variance"] > 0.5 > rows[0]["explained_variance"] + 0.4


@pytest.mark.checklist(28)
def test_the_reference_moves_by_its_decay(tokenizer):
    made = trainer(tokenizer, job(steps=2, reference_decay=0.75), None)
    frozen = {n: p.clone() for n, p in made.models.reference.network.named_parameters()}
    steps(made, 1)
    policy = dict(made.models.policy.network.named_parameters())
    for name, p in made.models.reference.network.named_parameters():
        assert torch.allclose(p, 0.75 * frozen[name] + 0.25 * policy[name].detach(), atol=1e-6)
    still = trainer(tokenizer, job(steps=2), None)
    before = {n: p.clone() for n, p in still.models.reference.network.named_parameters()}
    steps(still, 2)
    assert all(torch.equal(before[n], p) for n, p in still.models.reference.network.named_parameters())


@pytest.mark.checklist(28)
def test_the_ptx_gradient_is_the_language_models(tokenizer):
    model = actors(tokenizer, job()).policy
    blocks = torch.randint(5, 300, (6, 16), generator=torch.Generator().manual_seed(0))
    text = PtxText(blocks, PtxConfig(coef=0.3, batch_tokens=6 * 16), 40, seed=0)
    loss = text.backward(model)
    got = {n: p.grad.clone() for n, p in model.network.named_parameters()}
    model.network.zero_grad()
    own = model.network(input_ids=blocks, labels=blocks).loss
    own.backward()
    assert loss == pytest.approx(float(own.detach()), rel=1e-5)
    for name, p in model.network.named_parameters():
        assert torch.allclose(got[name], 0.3 * p.grad, atol=1e-5), name


@pytest.mark.checklist(28)
def test_ptx_keeps_the_text_likely(tokenizer):
    def final(coefficient):
        model_config = job(steps=8, lr=3e-3)
        blocks = torch.arange(32).repeat(4, 1) + 40
        ptx = PtxText(blocks, PtxConfig(coef=coefficient, batch_tokens=128), 1000, seed=0)
        made = trainer(tokenizer, model_config, None, ptx=ptx if coefficient else None)
        steps(made, 8)
        assert made.state.ptx_batches == (8 * 6 if coefficient else 0)
        with torch.no_grad():
            return float(made.models.policy.network(input_ids=blocks, labels=blocks).loss)

    assert final(1.0) < final(0.0) - 1.0


def test_prompts_whose_responses_agree_are_left_out_and_others_drawn(tokenizer, tmp_path):
    def reward(rollout):
        """Only even prompts have rewards that vary."""
        plain = vowels(rollout).total + torch.arange(len(rollout)) * 1e-3
        return Scores(torch.where(torch.tensor([p.id % 2 == 0 for p in rollout.prompts]), plain, 1.0))

    config = job(steps=2, samples_per_prompt=2, batch_size=4, filter_groups=True, filter_rounds=5)
    made = trainer(tokenizer, config, tmp_path, reward=reward)
    seen = []
    made.reward = lambda rollout: seen.append(len(rollout)) or reward(rollout)
    (row,) = steps(made, 1)
    assert row["filter/kept_prompts"] == 4
    assert made.state.draws == len(seen) == row["filter/draws"] > 1
    made.reward = lambda rollout: Scores(torch.ones(len(rollout)))
    (row,) = steps(made, 1)
    assert (row["filter/kept_prompts"], row["filter/draws"]) == (0, 5)


@pytest.mark.checklist(25)
def test_kl_in_the_loss_holds_the_policy_back(tokenizer):
    def kl(coefficient):
        config = job(steps=10, lr=3e-3, kl_in="loss", kl_estimator="k2", kl_coef=coefficient)
        made = trainer(tokenizer, config, None)
        rows = steps(made, 10)
        assert rows[0]["kl_loss"] >= 0
        return rows[-1]["kl"]

    assert kl(2.0) < 0.5 * kl(0.0)


@pytest.mark.checklist(27)
def test_scores_are_scaled_by_the_references(tokenizer):
    shaping = ShapingConfig(scale="reference", reference_samples=48)
    made = trainer(tokenizer, job(shaping=shaping, batch_size=24), None)
    first, second = steps(made, 2)
    assert made.state.moments.n == 48
    assert first["scale/std"] == second["scale/std"] > 0
    assert first["score"] == pytest.approx(
        (first["reward"] - first["scale/mean"]) / first["scale/std"], abs=1e-5
    )


@pytest.mark.checklist(28)
def test_running_moments_take_in_every_step(tokenizer):
    made = trainer(tokenizer, job(shaping=ShapingConfig(scale="running", clip=1.0)), None)
    assert made.state.moments == Moments()
    rows = steps(made, 3)
    assert made.state.moments.n == 36
    assert made.state.moments.mean == pytest.approx(sum(r["reward"] for r in rows) / 3, abs=1e-6)
    assert all(abs(r["score"]) <= 1 for r in rows)


@pytest.mark.checklist(33)
def test_the_temperature_moves_and_the_ratio_stays_1(tokenizer):
    config = job(steps=3)
    config = replace(config, rollout=RolloutConfig(max_new_tokens=12, temperature=1.5, final_temperature=0.5))
    rows = steps(trainer(tokenizer, config, None), 3)
    assert [r["temperature"] for r in rows] == [1.5, 1.0, 0.5]
    for row in rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["rollout_gap"] < 1e-4
    assert temperature_at(RolloutConfig(temperature=0.8), 3, 9) == 0.8


@pytest.mark.checklist(20)
def test_another_samplers_log_probs_are_corrected(tokenizer):
    """With top-k the stored log-probs are the filtered ones: w = π_old / π_rollout < 1."""
    config = job(steps=1)
    correction = replace(config.ppo.correction, mode="truncate")
    config = replace(
        config,
        rollout=RolloutConfig(max_new_tokens=12, top_k=5),
        ppo=replace(config.ppo, correction=correction),
    )
    (row,) = steps(trainer(tokenizer, config, None), 1)
    assert 0.0 < row["correction_mean"] < 0.99
    (plain,) = steps(trainer(tokenizer, job(steps=1), None), 1)
    assert plain["correction_mean"] == 1.0


@pytest.mark.checklist(11)
def test_the_critic_starts_as_a_reward_model(tokenizer, tmp_path):
    models = actors(tokenizer, job("separate"))
    config = models.policy.network.config
    torch.manual_seed(5)
    from transformers import LlamaForSequenceClassification

    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    made = critic_from_reward_model(models, str(tmp_path / "rm"))
    prompts = trainer(tokenizer, job(), None).prompts.batch(0)
    rollout = generate(models.policy, prompts, job().rollout, seed=0, step=0)
    rm = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    with torch.no_grad():
        values = made.value_of(made.critic_states(rollout.sequences)[1])
        for b in range(len(rollout)):
            row = rollout.sequences.select(torch.tensor([b])).tokens
            score = rm.score(rm.model(row[None]).last_hidden_state)[0, -1, 0]
            assert float(values[b]) == pytest.approx(float(score), abs=1e-5)
    assert not torch.allclose(values, torch.zeros(len(rollout)))
    with pytest.raises(ModelError, match="critic_from"):
        critic_from_reward_model(models, str(tmp_path / "nothing"))


@pytest.mark.checklist(30)
def test_potentials_are_hints_and_no_reward(tokenizer, tmp_path):
    file = tmp_path / "hints.py"
    file.write_text(
        "def per_token(cs): return [[float(i) for i in range(len(c.tokens))] for c in cs]\n"
        "def whole(cs): return [1.0 for c in cs]\n"
    )

    def scored(function):
        terms = {
            "real": RewardTerm(use=f"{file}:whole"),
            "hint": RewardTerm(use=f"{file}:{function}", potential=True, weight=2.0),
        }
        return build_reward(RewardConfig(terms=terms)).score([Completion("p", "t", (1, 2, 3))])

    found = scored("per_token")
    assert found.total.tolist() == [1.0]
    assert found.per_token is None
    assert found.potentials.tolist() == [0, 2, 4]
    with pytest.raises(ConfigError, match=r"hint\.potential"):
        scored("whole")


@pytest.mark.checklist(9)
def test_whitened_rewards_keep_their_mean(tokenizer):
    shaping = ShapingConfig(whiten_rewards=True)
    plain, whitened = (
        trainer(tokenizer, job(shaping=s, lam=1.0, whiten_advantages="never", batch_size=24), None)
        for s in (ShapingConfig(), shaping)
    )
    (a,), (b,) = steps(plain, 1), steps(whitened, 1)
    assert b["reward"] == a["reward"]
    # At the start V = 0 and λ = γ = 1: returns are sums of what is left, so their mean tells the rewards' scale.
    assert b["advantage_std"] != pytest.approx(a["advantage_std"], rel=0.1)


@pytest.mark.checklist(35)
def test_dropout_is_off_in_rollout_and_update(tokenizer):
    """GPT-2's configuration asks for dropout of 0.1: two passes agree, and the first ratio is exactly 1."""
    made = trainer(tokenizer, job(steps=1), None, family="gpt2")
    assert made.models.policy.network.config.resid_pdrop > 0
    (row,) = steps(made, 1)
    assert row["first_minibatch/ratio_error"] == 0.0
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        one, two = (made.models.policy.network(tokens).logits for _ in range(2))
    assert torch.equal(one, two)
    assert not any(m.training for m in made.models.policy.network.modules())


@pytest.mark.checklist(36)
def test_defaults_of_the_optimisers(tokenizer):
    optim = OptimisersConfig()
    assert (optim.policy.lr, optim.critic.lr) == (3e-6, 1e-5)
    assert all((o.eps, o.max_grad_norm) == (1e-5, 1.0) for o in (optim.policy, optim.critic))
    made = trainer(tokenizer, replace(job("separate"), optim=optim), None)
    for optimiser, lr in ((made.optimisers.policy, 3e-6), (made.optimisers.critic, 1e-5)):
        assert {(g["eps"], g["lr"]) for g in optimiser.adamw.param_groups} == {(1e-5, lr)}
