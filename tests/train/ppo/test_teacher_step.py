"""PPO steps with a teacher: what its log-probs are and what the update makes of them, in every way a step can run."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, prepared_by, run, trainer, with_ppo

from proxlm.config import EnvironmentSettings, LoraSettings
from proxlm.config.ppo import CorrectionSettings
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.resolve import with_environment
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.forward import token_outputs
from proxlm.models.frozen import freeze, frozen_blocks
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.train.ppo.collect import no_reward
from proxlm.types import Prompt, Rollout, Scores, Sequences
from small_models import tiny_model

pytestmark = pytest.mark.checklist(46)

ALONE = {"advantage": "reinforce", "kl_coef": 0.0}
TOGETHER = {"samples_per_prompt": 3, "batch_size": 4}


def teacher_of(tokenizer, family="llama", seed=9):
    model = tiny_model(tokenizer, family, seed=seed)
    model.network.requires_grad_(False)
    return model


def taught(tokenizer, folder, config, family="llama", teacher="llama", **more):
    """A run whose policy has a teacher."""
    made = trainer(tokenizer, config, folder, family=family, **more)
    made.models.teacher = teacher_of(tokenizer, teacher)
    return made


class Counts:
    """Three turns, each answered with the same words."""

    def reset(self, task):
        return "tell me"

    def step(self, reply):
        return " and then?", 0.0, False


def recorded(made):
    """The experiences of the run's steps, in a list that fills."""
    found = []
    inner = made.collector.take

    def take(*given):
        taken = inner(*given)
        found.append(taken[0])
        return taken

    made.collector.take = take
    return found


# ---- the gradient of a step, on models


def every_response(prompt, kept):
    """All 9 responses of two tokens, each from the three tokens of `kept`, with the sets that they are from."""
    texts = list(itertools.product(kept, repeat=2))
    tokens = 2 * len(texts)
    return Rollout(
        prompts=[Prompt(i, prompt, "") for i in range(len(texts))],
        sequences=Sequences.from_lists([list(prompt)] * len(texts), [list(text) for text in texts]),
        action_mask=torch.ones(tokens, dtype=torch.bool),
        logprobs=torch.zeros(tokens),
        finish=["length"] * len(texts),
        texts=[""] * len(texts),
        policy_versions=torch.zeros(tokens, dtype=torch.int64),
        sampling_mask=SamplingMask.of(
            torch.zeros(tokens, 320, dtype=torch.bool).index_fill(1, torch.tensor(kept), True)
        ),
    )


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("families", [("llama", "gpt2"), ("gpt2", "llama"), ("t5", "t5")])
def test_the_expected_gradient_of_a_step_is_that_of_the_kl_to_the_teacher(tokenizer, families, lam):
    """The advantages are those of `prepare`; the gradient wanted is that of the KL over all responses."""
    config = job(batch_size=9, minibatches=1, teacher_coef=0.7, teacher_lam=lam, **ALONE)
    made = taught(tokenizer, None, config, *families)
    rollout = every_response((5, 6, 7), [20, 100, 300])
    found = prepared_by(made, rollout, no_reward(rollout)).experience

    def chosen(model):
        return token_outputs(model, rollout.sequences, mask=rollout.sampling_mask).logprobs.view(9, 2)

    own, others = chosen(made.models.policy), chosen(made.models.teacher)
    whole = own.sum(1).exp()
    assert float(whole.detach().sum()) == pytest.approx(1.0, abs=1e-5)
    if lam == 1.0:
        kl = (whole * (own - others).sum(1)).sum()
    else:  # in each state; the second ones are met as often as the first token that leads there
        first, second = own[::3, 0].exp(), own[:, 1].exp().view(3, 3)
        kl = (first * (own - others)[::3, 0]).sum()
        kl = kl + (first.detach()[:, None] * second * (own - others)[:, 1].view(3, 3)).sum()
    learning = [p for _, p in made.models.policy_parameters()]
    wanted = torch.autograd.grad(-0.7 * kl, learning, retain_graph=True)
    surrogate = (whole.detach()[:, None] * found.advantages.view(9, 2) * own).sum()
    got = torch.autograd.grad(surrogate, learning)
    largest = max(float(g.abs().max()) for g in wanted)
    assert largest > 1e-2
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * largest)


def test_advantages_by_hand_beside_rewards_and_the_reference(tokenizer):
    """reinforce, γ = 1, no whitening: what is earned from here on, less β times the KL of this token alone."""
    config = job(batch_size=9, kl_coef=0.5, teacher_coef=0.3, advantage="reinforce", micro_batch_tokens=30)
    made = taught(tokenizer, None, config, teacher="gpt2")
    with torch.no_grad():  # the reference is no longer the policy
        for p in made.models.policy.network.parameters():
            p.add_(0.02)
    rollout = every_response((5, 6, 7), [20, 100, 300])
    scores = Scores(torch.arange(9.0))
    found = prepared_by(made, rollout, scores, kl_coef=0.5).experience
    of_reference = (found.old_logprobs - found.ref_logprobs).view(9, 2)
    of_teacher = (found.old_logprobs - found.teacher_logprobs).view(9, 2)
    assert float(of_reference.abs().min()) > 0.0 < float(of_teacher.abs().min())
    rest = torch.arange(9.0)[:, None] - 0.5 * of_reference.flip(1).cumsum(1).flip(1)
    assert torch.allclose(found.advantages.view(9, 2), rest - 0.3 * of_teacher, atol=1e-5)
    # The critic's targets, where there is one, are of rewards alone.
    assert torch.allclose(found.returns.view(9, 2), rest, atol=1e-5)


# ---- every way that a step can run


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"teacher": "gpt2"},
        {"family": "qwen3", "teacher": "lstm"},
        {"family": "lstm"},
        {"family": "t5", "teacher": "bart"},
        {"family": "gpt2", "packed": True},
        {"lora": 4},
        {"top_p": 0.8},
        {"top_p": 0.8, "mask_reference": False, "teacher": "gpt2"},
        {"temperature": 0.7},
        {"old_logprobs": "rollout"},
        {"max_staleness": 1, "staleness_correction": CorrectionSettings(mode="token_truncate")},
        {"critic": "separate", "advantage": "gae", "kl_coef": 0.1, "kl_in": "advantage"},
        {"advantage": "grpo", "kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3", **TOGETHER},
        {"advantage": "rloo", "loss": "gspo", **TOGETHER},
        {"loss": "trpo"},
        {"loss": "clip_cov"},
    ],
    ids=str,
)
def test_the_teacher_s_log_probs_are_its_own_and_it_stays_as_it_is(tokenizer, tmp_path, more):
    named = ALONE | dict(more)
    of_run = {name: named.pop(name) for name in ("family", "teacher", "lora") if name in named}
    of_rollout = {name: named.pop(name) for name in ("top_p", "temperature") if name in named}
    config = job(steps=2, **named)
    config = replace(config, rollout=replace(config.rollout, **of_rollout))
    reward = {} if named["advantage"] in ("gae", "grpo", "rloo") else {"reward": no_reward}
    made = taught(tokenizer, tmp_path, config, **of_run, **reward)
    teacher = made.models.teacher
    before, rollouts = {n: p.clone() for n, p in teacher.network.named_parameters()}, recorded(made)
    rows = run(made)
    assert all(torch.equal(p, before[n]) for n, p in teacher.network.named_parameters())
    for row, rollout in zip(rows, rollouts, strict=True):
        assert row["first_minibatch/ratio_error"] == 0.0 or named.get("old_logprobs") == "rollout"
        assert row["grad_norm/policy"] > 0.0
        assert ("reward" in row) == ("reward" not in reward)
        mask = rollout.sampling_mask if config.ppo.mask_reference else None
        others = token_outputs(teacher, rollout.sequences, config.rollout.temperature, mask=mask).logprobs
        if row["staleness"] == 0:  # what was sampled is what is learnt from, up to rounding
            kl = (rollout.logprobs - others).sum() / len(rollout)
            assert row["teacher/kl"] == pytest.approx(float(kl), abs=2e-3)
            assert row["teacher/kl_per_token"] == pytest.approx(
                float((rollout.logprobs - others).mean()), abs=1e-3
            )
        assert row["teacher/kl"] != 0.0


def test_a_policy_that_is_its_own_teacher_has_no_kl_and_does_not_move(tokenizer, tmp_path):
    made = trainer(tokenizer, job(steps=1, **ALONE), tmp_path, reward=no_reward)
    made.models.teacher = replace(made.models.reference)
    before = parameters(made)
    (row,) = run(made)
    assert row["teacher/kl"] == row["teacher/kl_per_token"] == row["score"] == 0.0
    assert row["advantage_std"] == 0.0
    for name, p in parameters(made).items():
        assert torch.equal(p, before[name]), name


def test_with_a_coefficient_of_0_the_teacher_is_measured_alone(tokenizer, tmp_path):
    plain = trainer(tokenizer, job(steps=2), tmp_path / "a")
    measured = taught(tokenizer, tmp_path / "b", job(steps=2, teacher_coef=0.0))
    rows = run(plain), run(measured)
    assert all(torch.equal(p, parameters(measured)[name]) for name, p in parameters(plain).items())
    assert [set(b) - set(a) for a, b in zip(*rows, strict=True)] == [
        {"teacher/kl", "teacher/kl_per_token"}
    ] * 2


@pytest.mark.parametrize("lora", [0, 4])
def test_top_layers_learn_and_the_teacher_reads_all_of_its_own(tokenizer, tmp_path, lora):
    """What is kept of the policy's frozen blocks is not the teacher's, even where the two are alike."""
    made = trainer(tokenizer, job(steps=1, **ALONE), tmp_path, reward=no_reward)
    policy = tiny_model(tokenizer)
    if lora:
        policy = add_lora(policy, LoraSettings(rank=lora), 1)
    else:
        freeze(policy.network, 1)
    policy.frozen_blocks = frozen_blocks(policy)
    assert policy.frozen_blocks == 1
    models = make_actor_critic(policy, "none")
    made = type(made)(made.config, models, made.prompts, no_reward, tmp_path)
    made.models.teacher = teacher_of(tokenizer)
    rollouts = recorded(made)
    (row,) = run(made)
    rollout = rollouts[0]
    assert rollout.sequences.frozen_states is not None
    plain = replace(rollout.sequences, frozen_states=None)
    kl = rollout.logprobs - token_outputs(made.models.teacher, plain).logprobs
    assert row["teacher/kl_per_token"] == pytest.approx(float(kl.mean()), abs=1e-3)


def test_only_the_policy_s_own_tokens_of_a_conversation_count(tokenizer, tmp_path):
    config = job(steps=1, teacher_coef=0.4, teacher_lam=1.0, **ALONE)
    made = taught(tokenizer, tmp_path, config, reward=with_environment(None))
    made.generate = MultiTurn(
        Counts, PlainMessageTokens(tokenizer), EnvironmentSettings(use="x", max_turns=3)
    )
    rollouts = recorded(made)
    row = made.step(SilentLog())
    (rollout,) = rollouts
    mask = rollout.action_mask
    assert int((~mask).sum()) > 0
    others = token_outputs(made.models.teacher, rollout.sequences).logprobs
    kl = torch.where(mask, rollout.logprobs - others, 0.0)
    assert row["teacher/kl"] == pytest.approx(float(kl.sum()) / len(rollout), abs=1e-2)
    made = taught(tokenizer, tmp_path, config)
    found = prepared_by(made, rollout, no_reward(rollout)).experience.advantages
    assert torch.equal(found[~mask], torch.zeros(int((~mask).sum())))
    spans = zip(found.split(rollout.sequences.response_lengths.tolist()),
                kl.split(rollout.sequences.response_lengths.tolist()), strict=True)  # fmt: skip
    for advantages, own in spans:
        rest = own.flip(0).cumsum(0).flip(0)
        assert torch.allclose(advantages[own != 0], -0.4 * rest[own != 0], atol=1e-3)


def test_a_head_with_more_rows_reads_the_same_sets(tokenizer, tmp_path):
    """Rows behind the vocabulary are in no set; without sets they take their share of the whole."""
    config = job(steps=1, **ALONE)
    config = replace(config, rollout=replace(config.rollout, top_k=5))
    rows = []
    for more in (0, 7):
        made = taught(tokenizer, tmp_path, config, reward=no_reward)
        network = made.models.teacher.network
        if more:
            network.resize_token_embeddings(len(tokenizer) + more, mean_resizing=False)
        rows += run(made)
    assert rows[0]["teacher/kl"] == pytest.approx(rows[1]["teacher/kl"], abs=1e-5)
    assert rows[0]["kept_tokens"] == rows[1]["kept_tokens"] == 5.0


def test_small_passes_find_the_same(tokenizer, tmp_path):
    rows = []
    for tokens in (30, 10**6):
        config = with_ppo(job(steps=1, **ALONE), micro_batch_tokens=tokens)
        rows += run(taught(tokenizer, tmp_path, config, teacher="gpt2", reward=no_reward))
    assert rows[0]["teacher/kl"] == pytest.approx(rows[1]["teacher/kl"], abs=1e-4)


def test_actors_have_no_teacher_unless_one_is_named(tokenizer):
    assert actors(tokenizer, job()).teacher is None
