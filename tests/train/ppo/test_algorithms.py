"""Every algorithm on a real small model: the first ratio, learning, resuming, layouts, functions of the user's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import actors, blank_rollout, job, parameters, run, trainer
from torch.func import functional_call

from proxlm.config import CovarianceSettings, ShapingSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import ConfigError, ModelError
from proxlm.models.forward import check_packing, token_outputs
from proxlm.train.ppo.algorithms import build_algorithm
from proxlm.train.ppo.plan import plan_update
from proxlm.train.ppo.trpo import fisher_product
from small_models import tiny_model

GROUPS = {"samples_per_prompt": 3, "batch_size": 4}
ALGORITHMS = {
    "a2c": {"lam": 1.0, "loss": "pg"},
    "reinforce": {"advantage": "reinforce", "loss": "pg"},
    "reinforce++": {"advantage": "reinforce++"},
    "rloo": {"advantage": "rloo", **GROUPS},
    "grpo": {"advantage": "grpo", "kl_in": "loss", "kl_estimator": "k3", **GROUPS},
    "gspo": {"loss": "gspo", "aggregation": "sequence"},
    "cispo": {"loss": "cispo"},
    "dppo": {"loss": "dppo"},
    "clip_cov": {"loss": "clip_cov", "covariance": CovarianceSettings(share=0.1, low=0.1)},
    "kl_cov": {"loss": "kl_cov", "covariance": CovarianceSettings(share=0.1)},
    "trpo": {"loss": "trpo"},
    "turns": {"gae_steps": "turn"},
    "vtrace": {"advantage": "vtrace"},
    "retrace": {"advantage": "retrace", "critic_lam": 1.0, "gae_steps": "turn"},
    "decoupled": {"critic_lam": 1.0, "lam_length": 0.2},
}


@pytest.mark.checklist(15)
@pytest.mark.checklist(23)
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_and_begins_at_ratio_1(tokenizer, tmp_path, name, critic):
    made = trainer(tokenizer, job(critic, steps=2, **ALGORITHMS[name]), tmp_path)
    before = parameters(made)
    rows = run(made)
    after = parameters(made)
    for row in rows:
        assert row["first_minibatch/ratio_error"] == 0.0
    assert any(not torch.equal(before[n], after[n]) for n in before if not n.startswith("critic."))
    critic_free = name in ("reinforce", "reinforce++", "rloo", "grpo")
    assert ("value_loss" in rows[0]) is not critic_free
    assert bool(made.models.critic_parameters()) is not critic_free


@pytest.mark.checklist(23)
@pytest.mark.parametrize("name", ["reinforce++", "rloo", "grpo", "cispo", "dppo"])
def test_reward_rises(tokenizer, tmp_path, name):
    config = job(steps=25, lr=3e-3, kl_coef=0.01, **ALGORITHMS[name] | {"kl_in": "reward"})
    rows = run(trainer(tokenizer, config, tmp_path))
    first, last = (sum(r["reward"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.1


@pytest.mark.checklist(15)
@pytest.mark.parametrize("minibatches", [1, 3])
def test_the_trust_region_begins_at_ratio_1_whatever_the_layout(tokenizer, tmp_path, minibatches):
    """A batch large enough that another split into micro-batches would differ in its last bits."""
    config = job("separate", steps=3, loss="trpo", batch_size=32, minibatches=minibatches)
    assert [r["first_minibatch/ratio_error"] for r in run(trainer(tokenizer, config, tmp_path))] == [0.0] * 3


@pytest.mark.checklist(23)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "lstm"])
def test_fisher_product_is_that_of_the_explicit_matrix(tokenizer, family):
    """F v = Σ_t w_t J_tᵀ (diag p − p pᵀ) J_t v, with J_t v by forward differences of the logits."""
    models = actors(tokenizer, job(), family=family)
    made = trainer(tokenizer, job(), None, family=family)  # type: ignore[arg-type]
    from test_ppo import experience_of

    experience = experience_of(tokenizer, job())[3].select(torch.arange(2))
    weights = torch.rand(len(experience.action_mask), generator=torch.Generator().manual_seed(0))
    named = dict(models.policy.network.named_parameters())
    torch.manual_seed(3)
    vector = {name: torch.randn_like(p) for name, p in named.items()}
    flat = torch.cat([v.reshape(-1) for v in vector.values()])
    got = fisher_product(models.policy, [(experience, weights)], list(named.values()), flat, 1.0)

    from proxlm.models.forward import pad_right

    padded, place = pad_right(experience.sequences)
    where = place[experience.sequences.response_index - 1]

    def logits(p):
        return functional_call(models.policy.network, p, (padded,)).logits.flatten(0, 1)[where]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, tangent = torch.autograd.functional.jvp(
            lambda *p: logits(dict(zip(named, p, strict=True))), tuple(named.values()), tuple(vector.values())
        )
    p = torch.softmax(logits(named).detach(), -1)
    centred = p * (tangent - (p * tangent).sum(-1, keepdim=True))
    expected = torch.autograd.grad((weights[:, None] * centred * logits(named)).sum(), list(named.values()))
    expected = torch.cat([g.reshape(-1) for g in expected])
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    assert made is not None


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral", "lstm"])
def test_packed_sequences_have_the_numbers_of_padded_ones(tokenizer, family):
    padded = tiny_model(tokenizer, family)
    check_packing(padded)
    models = actors(tokenizer, job())
    made = trainer(tokenizer, job(), None)  # type: ignore[arg-type]
    rollout = generate(
        NativeEngine(models.policy, job().rollout), made.prompts.batch(0), job().rollout, seed=0, step=0
    )
    packed = replace(padded, packed=True)
    with torch.no_grad():
        one, other = (token_outputs(m, rollout.sequences, 0.7, entropy=True) for m in (padded, packed))
    assert torch.allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert torch.allclose(one.entropy, other.entropy, atol=1e-5)
    assert torch.allclose(one.final_states, other.final_states, atol=1e-4)


@pytest.mark.checklist(32)
def test_a_family_that_cannot_be_packed_is_refused(tokenizer):
    with pytest.raises(ModelError, match=r"model\.packed = false"):
        check_packing(tiny_model(tokenizer, "bloom"))


def test_fewer_rows_than_minibatches():
    minibatches = plan_update(blank_rollout([3, 4]), job(minibatches=3)).epoch(0)
    assert sorted(torch.cat([m.rows for m in minibatches]).tolist()) == [0, 1]
    assert len(minibatches) == 2


def test_functions_of_the_users(tokenizer, tmp_path):
    """A loss and an advantage from a file do what the built-in ones do when they say the same."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def loss(x):\n"
        "    ratio = (x.logprobs - x.old_logprobs).exp()\n"
        "    near = ratio.clamp(1 - x.clip_low, 1 + x.clip_high)\n"
        "    return torch.maximum(-ratio * x.advantages, -near * x.advantages)\n"
        "def advantage(x):\n"
        "    from proxlm.rl.estimators import gae_advantages\n"
        "    return gae_advantages(x)\n"
        "def wrong(x):\n"
        "    return x.advantages[:1]\n"
    )
    mine = job(steps=2, loss=f"{file}:loss", advantage=f"{file}:advantage")
    assert [key for key, _ in mine.problems()] == ["data.prompts"]
    one, other = trainer(tokenizer, mine, tmp_path / "a"), trainer(tokenizer, job(steps=2), tmp_path / "b")
    run(one), run(other)
    a, b = parameters(one), parameters(other)
    assert all(float((a[n] - b[n]).abs().max()) < 1e-6 for n in a)
    with pytest.raises(ConfigError, match=r"ppo\.loss: wrong must return PolicyLoss or a tensor of shape"):
        run(trainer(tokenizer, job(steps=1, loss=f"{file}:wrong"), tmp_path / "c"))
    with pytest.raises(ConfigError, match='no "los"'):
        build_algorithm(job(loss=f"{file}:los").ppo)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"advantage": "gea"}, "ppo.advantage"),
        ({"loss": "popo"}, "ppo.loss"),
        ({"advantage": "grpo"}, "ppo.samples_per_prompt"),
        ({"advantage": "reinforce", "critic_warmup": 2}, "ppo.critic_warmup"),
        ({"advantage": "reinforce", "truncation": "bootstrap"}, "ppo.truncation"),
        ({"critic_lam": -0.5}, "ppo.critic_lam"),
        ({"dual_clip": 0.5}, "ppo.dual_clip"),
        ({"kl_in": "loss"}, "ppo.kl_estimator"),
        ({"filter_groups": True}, "ppo.filter_groups"),
        ({"loss": "trpo", "entropy_coef": 0.1}, "ppo.entropy_coef"),
        ({"loss": "trpo", "target_kl": 0.1}, "ppo.target_kl"),
        ({"kl_controller": "adaptive", "kl_horizon": 1.2}, "ppo.kl_horizon"),
        ({"shaping": ShapingSettings(overlong_buffer=13)}, "shaping.overlong_buffer"),
    ],
)
def test_settings_that_cannot_be(settings, key):
    config = job(**settings)
    config = replace(config, data=replace(config.data, prompts="x"))
    assert key in [found for found, _ in config.problems()]
