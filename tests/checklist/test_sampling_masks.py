"""Item 34: with top-k, top-p and min-p the policy is renormalised over the set each token was sampled from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import actors, job, parameters, run, vowels, with_ppo
from sampling_cases import ENCODER_DECODERS, own_logits, prompts, sampled
from test_ends_and_filters import kept_by_hand
from update_cases import close, made_with

from proxlm.config import RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import RequestOutput
from proxlm.errors import ModelError
from proxlm.models.forward import token_outputs
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.seeds import Stream
from proxlm.train.ppo.prepare import prepare
from proxlm.types import Rollout
from small_models import tiny_model

pytestmark = pytest.mark.checklist(34)

NUCLEUS = RolloutSettings(max_new_tokens=12, top_p=0.8)
GROUPS = {"samples_per_prompt": 3, "batch_size": 4}


def nucleus(config, **more):
    return replace(config, rollout=replace(config.rollout, **{"top_p": 0.8, **more}))


# ---- what the rollout holds


@pytest.mark.parametrize("family", ["llama", *ENCODER_DECODERS])
@pytest.mark.parametrize(
    "filters",
    [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 4, "top_p": 0.8, "temperature": 1.3}],
    ids=str,
)
def test_the_kept_sets_are_those_of_the_sampler(tokenizer, family, filters):
    model = tiny_model(tokenizer, family)
    rollout = sampled(model, count=12, **filters)
    p = torch.softmax(own_logits(model, rollout.sequences).double() / filters.get("temperature", 1.0), -1)
    assert rollout.sampling_mask is not None
    kept = ~rollout.sampling_mask.dropped()
    for row, found in zip(p.tolist(), kept, strict=True):
        wanted = kept_by_hand(
            row, filters.get("top_k", 0), filters.get("top_p", 1.0), filters.get("min_p", 0.0)
        )
        assert found.nonzero()[:, 0].tolist() == sorted(wanted)
    chosen = kept.gather(-1, rollout.sequences.response_tokens[:, None])
    assert chosen.all()
    again = sampled(model, count=12, batch_size=2, **filters)
    assert torch.equal(again.sequences.tokens, rollout.sequences.tokens)
    assert torch.equal(again.sampling_mask.data, rollout.sampling_mask.data)


def test_nothing_is_kept_where_nothing_is_dropped_or_nothing_is_trained_on(tokenizer, monkeypatch):
    def refuse(*_):
        raise AssertionError("a mask without need")

    monkeypatch.setattr(SamplingMask, "of", refuse)
    model = tiny_model(tokenizer)
    assert sampled(model).sampling_mask is None
    assert sampled(model, temperature=0.0, top_p=0.5).sampling_mask is None
    assert sampled(model, top_p=0.5, keep_sampling_mask=False).sampling_mask is None
    engine = NativeEngine(model, NUCLEUS)
    held_out = generate(engine, prompts(tokenizer), NUCLEUS, seed=0, step=0, stream=Stream.EVALUATION)
    assert held_out.sampling_mask is None


def test_selected_and_joined_rows_keep_their_sets(tokenizer):
    rollout = sampled(tiny_model(tokenizer), count=6, top_p=0.7)
    rows = torch.tensor([4, 0, 4])
    part = rollout.select(rows)
    alone = [rollout.select(row[None]) for row in rows]
    together = Rollout.join(alone)
    for found in (part, together):
        pieces = [a.sampling_mask.dropped() for a in alone]
        assert torch.equal(found.sampling_mask.dropped(), torch.cat(pieces))
    with pytest.raises(ValueError, match="1 of 2 parts have it"):
        Rollout.join([part, replace(part, sampling_mask=None)])


def test_an_engine_without_sets_is_refused(tokenizer):
    class Plain(NativeEngine):
        def step(self):
            return [RequestOutput(o.id, o.tokens, o.logprobs, o.finish) for o in super().step()]

    engine = Plain(tiny_model(tokenizer), NUCLEUS)
    with pytest.raises(ModelError, match=r"rollout\.keep_sampling_mask = false"):
        generate(engine, prompts(tokenizer), NUCLEUS, seed=0, step=0)


def test_a_rollout_of_another_vocabulary_is_refused(tokenizer):
    model = tiny_model(tokenizer)
    rollout = sampled(model)
    with pytest.raises(ValueError, match="sampling mask of 5 tokens"):
        token_outputs(model, rollout.sequences, mask=SamplingMask.whole(len(rollout.logprobs), 5))


# ---- layouts and order


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("more", [{"entropy_coef": 0.01, "kl_in": "loss", "kl_estimator": "k3"}], ids=str)
def test_a_step_does_not_depend_on_micro_batches_or_packing(tokenizer, tmp_path, critic, more):
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = nucleus(job(critic, steps=1, micro_batch_tokens=budget, packed=packed, **more))
        made = made_with(tokenizer, config, tmp_path)
        run(made)
        results.append(parameters(made))
    for other in results[1:]:
        close(other, results[0])


def test_what_is_learnt_from_does_not_depend_on_the_order_of_rows(tokenizer):
    config = nucleus(job())
    models = actors(tokenizer, config)
    rollout = sampled(models.policy, count=12, top_p=0.8)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    one = prepare(models, rollout, vowels(rollout), config).experience.select(order)
    shuffled = rollout.select(order)
    other = prepare(models, shuffled, vowels(shuffled), config).experience
    for name in ("old_logprobs", "ref_logprobs", "values", "rewards", "advantages"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-5), name
    assert torch.equal(one.sampling_mask.dropped(), other.sampling_mask.dropped())


# ---- entropy and KL: of which distribution


def test_entropy_is_of_the_renormalised_policy_and_kl_of_both_or_of_the_whole_reference(tokenizer):
    """With mask_reference: KL(π_S ‖ π_ref,S). Without: KL(π_S ‖ π_ref), which is larger by −log π_ref(S)."""
    config = nucleus(with_ppo(job("separate"), reference_decay=0.9))
    models = actors(tokenizer, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in models.reference.network.parameters():
            p.add_(0.05 * p.std() * torch.randn(p.shape, generator=generator))
    rollout = sampled(models.policy, count=12, top_p=0.8)
    kept, token = ~rollout.sampling_mask.dropped(), rollout.sequences.response_tokens[:, None]
    own, ref = (own_logits(m, rollout.sequences).double() for m in (models.policy, models.reference))
    pi = own.masked_fill(~kept, -torch.inf).log_softmax(-1)
    masked, whole = ref.masked_fill(~kept, -torch.inf).log_softmax(-1), ref.log_softmax(-1)
    entropy = -(pi.exp() * pi.masked_fill(~kept, 0.0)).sum(-1)
    for mask_reference, reference in ((True, masked), (False, whole)):
        found = prepare(models, rollout, vowels(rollout), with_ppo(config, mask_reference=mask_reference))
        assert found.metrics["entropy"] == pytest.approx(float(entropy.mean()), rel=1e-4)
        k1 = (pi - reference).gather(-1, token)[:, 0]
        assert found.metrics["kl_per_token"] == pytest.approx(float(k1.mean()), abs=1e-4)
        assert torch.allclose(
            found.experience.ref_logprobs.double(), reference.gather(-1, token)[:, 0], atol=1e-4
        )
    mass = (whole.exp() * kept).sum(-1).log()
    assert torch.allclose((masked - whole).gather(-1, token)[:, 0], -mass, atol=1e-9)
    assert float(mass.mean()) < -0.1
