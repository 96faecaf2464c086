"""Item 34: over the set that each token was sampled from, the ratio and the expected gradient are exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import job, parameters, prepared_by, run, trainer, with_experience
from sampling_cases import own_logits, sampled

from proxlm.config import RolloutSettings
from proxlm.config.ppo import CorrectionSettings
from proxlm.engine.sampling import filter_logits
from proxlm.models.forward import token_outputs
from proxlm.rl.policy_losses import LossInputs, ppo_loss
from proxlm.rl.sampling_mask import SamplingMask, mask_logits
from proxlm.train.ppo.update import update
from proxlm.types import Rollout, Scores, Sequences
from small_models import tiny_model

pytestmark = pytest.mark.checklist(34)

NUCLEUS = RolloutSettings(max_new_tokens=12, top_p=0.8)
GROUPS = {"samples_per_prompt": 3, "batch_size": 4}


def nucleus(config, **more):
    return replace(config, rollout=replace(config.rollout, **{"top_p": 0.8, **more}))


# ---- the ratio


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"critic": "separate"},
        {"advantage": "grpo", "kl_in": "loss", "kl_estimator": "k3", "entropy_coef": 0.01, **GROUPS},
        {"advantage": "rloo", **GROUPS},
        {"loss": "gspo"},
        {"loss": "cispo"},
        {"loss": "dppo"},
        {"loss": "trpo"},
        {"packed": True, "critic": "separate"},
        {"family": "t5"},
        {"family": "bart"},
        {"family": "lstm"},
        {"family": "gpt2"},
        {"lora": 4},
        {"max_staleness": 1, "staleness_correction": CorrectionSettings(mode="sequence")},
    ],
    ids=str,
)
def test_the_first_ratio_is_1_and_the_engine_agrees(tokenizer, tmp_path, more):
    named = dict(more)
    lora, family = named.pop("lora", 0), named.pop("family", "llama")
    config = nucleus(job(steps=2, **named))
    made = trainer(tokenizer, config, tmp_path, lora=lora, family=family)
    before = parameters(made)
    rows = run(made)
    for row in rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["rollout_gap"] < 1e-4 or row["staleness"] > 0
        assert 1 <= row["kept_tokens"] < len(tokenizer)
        assert all(math.isfinite(value) for name, value in row.items() if "explained" not in name)
    assert rows[0]["kl"] == 0.0  # the reference is the policy, renormalised over the same sets
    assert any(not torch.equal(before[n], p) for n, p in parameters(made).items())


def test_without_the_mask_the_same_run_starts_from_another_policy(tokenizer, tmp_path):
    rows = run(trainer(tokenizer, nucleus(job(steps=1), keep_sampling_mask=False), tmp_path))
    assert rows[0]["rollout_gap"] > 0.1
    assert "kept_tokens" not in rows[0]


def test_log_probs_of_the_rollout_can_be_the_old_ones(tokenizer, tmp_path):
    rows = run(trainer(tokenizer, nucleus(job(steps=2, old_logprobs="rollout")), tmp_path))
    assert all(row["first_minibatch/ratio_error"] < 1e-4 for row in rows)


def test_the_mean_weight_is_1_at_top_p_08(tokenizer):
    """E[π_new,S / π_S] = Σ_S π_new,S = 1 for any new policy; over the whole vocabulary it is the kept mass."""
    model, other = tiny_model(tokenizer), tiny_model(tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.network.parameters():
            p.add_(0.2 * p.std() * torch.randn(p.shape, generator=generator))
    rollout = sampled(model, count=66, max_new_tokens=16, top_p=0.8)
    kept, whole = (
        torch.exp(
            token_outputs(other, rollout.sequences, mask=mask).logprobs.detach() - rollout.logprobs
        ).double()
        for mask in (rollout.sampling_mask, None)
    )

    def interval(weights):
        error = float(weights.std()) / len(weights) ** 0.5
        return float(weights.mean()) - 3 * error, float(weights.mean()) + 3 * error

    assert float((kept - 1).abs().mean()) > 0.05  # the policies do differ
    low, high = interval(kept)
    assert low < 1 < high
    assert high - low < 0.1
    assert interval(whole)[1] < 0.95


# ---- the gradient, enumerated

V, T, K = 5, 2, 3
TRAJECTORIES = torch.tensor(list(itertools.product(range(V), repeat=T)))
STATES = torch.stack([torch.zeros(len(TRAJECTORIES), dtype=torch.int64), 1 + TRAJECTORIES[:, 0]], -1)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truncated(logits):
    """log π_S of each token of each trajectory under top-k, [25, 2]: the sampler's own filter."""
    return filter_logits(logits, K, 1.0, 0.0).log_softmax(-1)[STATES, TRAJECTORIES]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_the_expected_gradient_is_that_of_the_truncated_policy_enumerated(seed, moved):
    """At ρ = 1, of the truncated policy's own J; later, of the new policy over the sets of the old one.

    Without the mask, the same estimator has another gradient.
    """
    old, scores = normal(seed, 1 + V, V), normal(seed + 100, len(TRAJECTORIES))
    new = (old + moved * normal(seed + 200, 1 + V, V)).requires_grad_()
    behaviour = truncated(old)
    chance = behaviour.sum(-1).exp()
    assert float(chance.sum()) == pytest.approx(1.0)
    mask = SamplingMask.of(filter_logits(old, K, 1.0, 0.0) > -torch.inf)
    sampled_ones = chance > 0

    def gradient(sets):
        logprobs = mask_logits(new, sets).log_softmax(-1)[STATES, TRAJECTORIES][sampled_ones]
        weights = (logprobs.detach() - behaviour[sampled_ones]).sum(-1).exp()  # of whole trajectories
        flat = logprobs.flatten()
        terms = ppo_loss(
            LossInputs(
                logprobs=flat,
                old_logprobs=flat.detach(),
                advantages=scores[sampled_ones].repeat_interleave(T),
                action_mask=torch.ones(len(flat), dtype=torch.bool),
            )
        )
        per_token = (chance[sampled_ones] * weights).repeat_interleave(T)
        return torch.autograd.grad(-(per_token * terms.loss).sum(), new)[0]

    renormalised = mask_logits(new, mask).log_softmax(-1)[STATES, TRAJECTORIES].sum(-1).exp()
    exact = torch.autograd.grad((renormalised * scores).sum(), new)[0]
    assert torch.allclose(gradient(mask), exact, rtol=0, atol=1e-12)
    assert float((gradient(None) - exact).abs().max()) > 0.05
    if not moved:  # the sets are those of the new policy, too, and do not change with it in a neighbourhood
        own = torch.autograd.grad((truncated(new).sum(-1).exp() * scores).sum(), new)[0]
        assert torch.allclose(gradient(mask), own, rtol=0, atol=1e-12)


def test_the_trainers_own_gradient_is_that_of_the_truncated_policy(tokenizer, tmp_path):
    """Float32: prepare → update in micro-batches, over all responses of two tokens with top_k = 4."""
    config = nucleus(
        job(steps=1, epochs=1, minibatches=1, advantage="reinforce", kl_coef=0.0, micro_batch_tokens=40),
        top_p=1.0,
        top_k=4,
        max_new_tokens=2,
    )
    made = trainer(tokenizer, config, tmp_path)
    model, prompt = made.models.policy, made.prompts.batch(0)[0]

    def continuations(rows):
        """The kept sets after each prompt of tokens, [n, V] bool."""
        told = Sequences.from_lists(rows, [[0]] * len(rows))
        return filter_logits(own_logits(model, told), 4, 1.0, 0.0) > -torch.inf

    first = continuations([prompt.input_ids])
    starts = first[0].nonzero()[:, 0].tolist()
    second = continuations([[*prompt.input_ids, a] for a in starts])
    rows = [(a, b) for a, kept in zip(starts, second, strict=True) for b in kept.nonzero()[:, 0].tolist()]
    assert len(rows) == 16
    sets = torch.stack([kept for a, _ in rows for kept in (first[0], second[starts.index(a)])])
    mask, sequences = SamplingMask.of(sets), Sequences.from_lists([prompt.input_ids] * 16, rows)
    scores = torch.randn(16, generator=torch.Generator().manual_seed(0))
    logits = own_logits_with_gradient(model, sequences)
    logprobs = logits.masked_fill(~sets, -torch.inf).log_softmax(-1)
    logprobs = logprobs.gather(-1, sequences.response_tokens[:, None])[:, 0]
    chance = logprobs.view(16, 2).sum(-1).exp()
    assert float(chance.sum().detach()) == pytest.approx(1.0, abs=1e-5)
    wanted = torch.autograd.grad((chance * scores).sum(), list(model.network.parameters()))
    rollout = Rollout(
        prompts=[prompt] * 16,
        sequences=sequences,
        action_mask=torch.ones(32, dtype=torch.bool),
        logprobs=logprobs.detach(),
        finish=["length"] * 16,
        texts=[""] * 16,
        policy_versions=torch.zeros(32, dtype=torch.int64),
        sampling_mask=mask,
    )
    prepared = prepared_by(made, rollout, Scores(scores), kl_coef=0.0)
    got = []

    def step(*_):
        got.extend(p.grad.clone() for p in model.network.parameters())
        return 0.0, 0.0

    made.learner.optimisers.policy.step = step
    update(made.learner, with_experience(prepared, correction=chance.detach().repeat_interleave(2)))
    largest = max(float(e.abs().max()) for e in wanted)
    for g, e in zip(got, wanted, strict=True):
        assert float((-32 * g - e).abs().max()) < 2e-5 * largest


def own_logits_with_gradient(model, sequences):
    rows = []
    for b in range(len(sequences)):
        first, last = sequences.offsets[b : b + 2].tolist()
        logits = model.network(input_ids=sequences.tokens[None, first:last]).logits[0]
        rows.append(logits[int(sequences.prompt_lengths[b]) - 1 : -1])
    return torch.cat(rows)
