"""Section 1, items 1–11, on whole runs: settings, whitening over ranks, how the critic starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from critic_cases import CRITICS, experience_of, future
from helpers import actors, job, parameters, run, trainer, vowels
from transformers import LlamaConfig, LlamaForSequenceClassification

from proxlm.config import PPOSettings, ShapingSettings
from proxlm.errors import ModelError
from proxlm.models.actor_critic import ValueHead, critic_from
from proxlm.rl.advantages import gae, whiten
from proxlm.rl.ragged import segment_sum
from proxlm.types import Sequences
from small_models import WORDS


@pytest.mark.checklist(1)
@pytest.mark.checklist(10)
def test_the_defaults_of_the_settings():
    ppo = PPOSettings()
    assert (ppo.gamma, ppo.lam, ppo.critic_lam, ppo.lam_length, ppo.gae_steps) == (
        1.0,
        0.95,
        -1.0,
        0.0,
        "token",
    )
    assert (ppo.truncation, ppo.clip_value, ppo.value_coef, ppo.critic_warmup) == ("terminal", 0.2, 0.1, 0)
    assert ShapingSettings().whiten_rewards is False


@pytest.mark.checklist(1)
@pytest.mark.checklist(2)
def test_an_experience_has_gae_of_its_rewards_and_values_and_returns_before_whitening(tokenizer):
    raw, _, offsets = experience_of(tokenizer, job(whiten_advantages="never"))
    white, metrics, _ = experience_of(tokenizer, job(whiten_advantages="always"))
    wanted = gae(raw.rewards, raw.values, raw.action_mask, offsets, 1.0, 0.95)
    assert torch.equal(raw.advantages, wanted[0])
    assert torch.equal(raw.returns, wanted[1])
    assert torch.equal(white.returns, raw.returns)
    assert torch.allclose(white.advantages, whiten(raw.advantages, raw.action_mask))
    assert metrics["advantage_std"] == pytest.approx(float(raw.advantages.std(correction=0)))


@pytest.mark.checklist(5)
def test_the_critics_own_lambda_reaches_the_returns(tokenizer):
    plain, _, offsets = experience_of(tokenizer, job())
    split, _, _ = experience_of(tokenizer, job(critic_lam=1.0))
    same, _, _ = experience_of(tokenizer, job(critic_lam=0.95))
    assert torch.equal(split.advantages, plain.advantages)
    assert torch.allclose(split.returns, future(plain.rewards, offsets), atol=1e-5)
    assert not torch.allclose(plain.returns, split.returns, atol=1e-3)
    assert torch.equal(same.returns, plain.returns)


@pytest.mark.checklist(6)
def test_lambda_by_length_reaches_the_advantages(tokenizer):
    """α = 0.05 and at most 12 tokens: λ = 0 everywhere. α = 0.5: a λ for each row."""
    settings = {"whiten_advantages": "never"}
    short, _, _ = experience_of(tokenizer, job(lam_length=0.05, **settings))
    zero, _, offsets = experience_of(tokenizer, job(lam=0.0, **settings))
    assert torch.equal(short.advantages, zero.advantages)
    rows, _, _ = experience_of(tokenizer, job(lam_length=0.5, **settings))
    lam = (1 - 2 / (offsets[1:] - offsets[:-1]).float()).clamp(min=0)
    wanted = gae(zero.rewards, zero.values, zero.action_mask, offsets, 1.0, lam)[0]
    assert torch.allclose(rows.advantages, wanted, atol=1e-6)
    assert lam.unique().numel() > 1


@pytest.mark.checklist(7)
def test_a_response_of_one_turn_is_a_bandit(tokenizer):
    found, _, offsets = experience_of(tokenizer, job(gae_steps="turn", whiten_advantages="never"))
    per_row = segment_sum(found.rewards, offsets) - found.values[offsets[:-1]]
    wanted = torch.repeat_interleave(per_row, offsets[1:] - offsets[:-1])
    assert torch.allclose(found.advantages, wanted, atol=1e-5)


VALUES, MASK = torch.arange(11.0).square() - 20, torch.arange(11) % 4 != 2


PARTS = (slice(0, 7), slice(7, 11))


def summed_over_ranks(total):
    total = total.clone()
    dist.all_reduce(total)
    return total


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    values, mask = VALUES[PARTS[rank]], MASK[PARTS[rank]]
    found = [whiten(values, mask, shift, reduce=summed_over_ranks) for shift in (True, False)]
    nothing = torch.zeros_like(mask) if rank else mask  # one rank may have no chosen token
    found.append(whiten(values, nothing, reduce=summed_over_ranks))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.checklist(8)
@pytest.mark.checklist(9)
def test_two_processes_whiten_as_one(tmp_path):
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    together = [torch.cat(both) for both in zip(*ranks, strict=True)]
    assert torch.allclose(together[0], whiten(VALUES, MASK), atol=1e-6)
    assert torch.allclose(together[1], whiten(VALUES, MASK, shift_mean=False), atol=1e-5)
    assert torch.allclose(together[2], whiten(VALUES, MASK & (torch.arange(11) < 7)), atol=1e-6)


@pytest.mark.checklist(9)
def test_reward_whitening_of_a_step_keeps_the_mean(tokenizer):
    plain, _, _ = experience_of(tokenizer, job())
    white, _, _ = experience_of(tokenizer, job(shaping=ShapingSettings(whiten_rewards=True)))
    assert float(white.rewards.mean()) == pytest.approx(float(plain.rewards.mean()), abs=1e-5)
    assert float(white.rewards.var(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert float(plain.rewards.var(correction=0)) < 0.5


@pytest.mark.checklist(11)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_zero_head_values_everything_at_0(tokenizer, critic):
    experience, metrics, _ = experience_of(tokenizer, job(critic), head=False)
    assert not experience.values.any()
    assert metrics["value_mean"] == 0.0
    assert metrics["explained_variance"] == 0.0
    head = ValueHead(8)
    assert not head(torch.randn(5, 3, 8)).any()
    assert head(torch.randn(5, 3, 8).bfloat16()).dtype == torch.float32
    head.linear.bias.data.fill_(2.0)
    assert head(torch.zeros(4, 8)).tolist() == [2.0] * 4


def reward_model(models, folder, **more):
    """A random Llama with a score head, of the policy's size unless told otherwise."""
    sizes = {
        k: v for k, v in models.policy.network.config.to_dict().items() if k not in ("architectures", "dtype")
    }
    torch.manual_seed(7)
    network = LlamaForSequenceClassification(LlamaConfig(**sizes | {"num_labels": 1} | more)).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.checklist(11)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_critic_from_a_reward_model_gives_its_scores(tokenizer, tmp_path, critic):
    models = actors(tokenizer, job(critic))
    network = reward_model(models, tmp_path)
    made = critic_from(models, str(tmp_path))
    assert not made.shared
    assert made.policy is models.policy
    prompts = [tokenizer(text).input_ids for text in WORDS[:4]]
    responses = [[5, 9, 7], [11], [6, 8], [10, 5, 6, 7]]
    sequences = Sequences.from_lists(prompts, responses)
    with torch.no_grad():
        before, after = (made.value_of(states) for states in made.critic_states(sequences))

        def score(text):
            return float(network(torch.tensor([text])).logits)

        wanted = [score(p + r) for p, r in zip(prompts, responses, strict=True)]
        partial = [score(p + r[:t]) for p, r in zip(prompts, responses, strict=True) for t in range(len(r))]
    assert after.tolist() == pytest.approx(wanted, abs=1e-5)
    assert before.tolist() == pytest.approx(partial, abs=1e-5)
    assert torch.equal(before, made.values(sequences))
    assert max(wanted) - min(wanted) > 1e-3


@pytest.mark.checklist(11)
def test_a_run_with_a_critic_from_a_reward_model_starts_at_its_values_and_learns_them(tokenizer, tmp_path):
    made = trainer(tokenizer, job("separate", steps=2), tmp_path)
    reward_model(made.models, tmp_path / "rm")
    models = critic_from(made.models, str(tmp_path / "rm"))
    made = type(made)(made.config, models, made.prompts, vowels, tmp_path)
    before = parameters(made)
    rows = run(made)
    assert rows[0]["value_mean"] != 0.0
    after = parameters(made)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("critic.trunk") for name in moved)
    assert any(name.startswith("critic.head") for name in moved)


@pytest.mark.checklist(11)
@pytest.mark.parametrize(
    ("unlike", "wrong"),
    [({"num_labels": 2}, "needs 1 output, .* it has 2 outputs"), ({"vocab_size": 300}, "embedding 300")],
    ids=str,
)
def test_a_reward_model_that_does_not_fit_is_refused(tokenizer, tmp_path, unlike, wrong):
    models = actors(tokenizer, job("separate"))
    reward_model(models, tmp_path, **unlike)
    with pytest.raises(ModelError, match=wrong):
        critic_from(models, str(tmp_path))
