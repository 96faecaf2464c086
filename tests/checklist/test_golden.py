"""Item 40: CleanRL, OpenAI's lm-human-preferences and TRL 1.12.0 on the same arrays, to 1e-6."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import CLEANRL, OPENAI, TRL, policy, same, tensors, trl_rows, unpack

from proxlm.rl.advantages import explained_variance, gae, whiten
from proxlm.rl.kl import adapt_kl_coefficient, kl_estimate
from proxlm.rl.losses import clipped_value_loss, token_weights
from proxlm.rl.shaping import apply_missing_eos, token_rewards

pytestmark = pytest.mark.checklist(40)


def rows_of(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


def rectangle(shape):
    """Mask and offsets of rows that are all chosen tokens."""
    return torch.ones(math.prod(shape), dtype=torch.bool), torch.arange(shape[0] + 1) * shape[1]


def bessel(mask):
    """From whitening by the population variance to whitening by the sample variance."""
    n = int(mask.sum())
    return math.sqrt((n - 1) / n)


def value(new, old, returns, mask, offsets, clip=0.2):
    """Loss of the minibatch and gradient in the values [R]."""
    new = new.flatten().clone().requires_grad_()
    per_token = clipped_value_loss(new, old.flatten(), returns.flatten(), clip)
    loss = (token_weights(mask, offsets, "token", 1).double() * per_token).sum()
    return loss.detach(), torch.autograd.grad(loss, new)[0]


def every_branch(ratio, advantages, gradient, clip):
    """Both signs of the advantage beyond both bounds, and gradients that are 0 and that are not."""
    for sign in (-1, 1):
        assert bool(((advantages * sign > 0) & (ratio > 1 + clip)).any())
        assert bool(((advantages * sign > 0) & (ratio < 1 - clip)).any())
    assert 0 < int((gradient == 0).sum()) < gradient.numel()


def test_provenance_names_the_versions():
    assert CLEANRL["provenance"]["commit"] == "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"
    assert OPENAI["provenance"]["commit"] == "cbfd210bb8b08f6bc5c26878c10984b90f516c66"
    assert TRL["provenance"]["version"] == "1.12.0"


@pytest.mark.parametrize("case", CLEANRL["cases"], ids=lambda c: f"seed {c['seed']}")
def test_cleanrl_gae(case):
    """Its [steps, environments] with `dones` are rows of episodes here, the last one with a bootstrap."""
    settings, given, wanted = unpack(case)
    steps, envs = given["rewards"].shape
    lengths, bootstrap = [], []
    for env in range(envs):
        starts = sorted({0, *given["dones"][:, env].nonzero().flatten().tolist()})
        lengths += [b - a for a, b in zip(starts, [*starts[1:], steps], strict=True)]
        after = float(given["next_value"][0, env] * (1 - given["next_done"][env]))
        bootstrap += [0.0] * (len(starts) - 1) + [after]
    assert len(lengths) > envs  # some episodes end within
    got, returns = gae(
        given["rewards"].T.flatten(),
        given["values"].T.flatten(),
        torch.ones(steps * envs, dtype=torch.bool),
        rows_of(lengths),
        settings.gamma,
        settings.lam,
        torch.tensor(bootstrap, dtype=torch.float64),
    )
    same(got, wanted["advantages"].T.flatten())
    same(returns, wanted["returns"].T.flatten())
    all_of_them = torch.ones(steps * envs, dtype=torch.bool)
    explained = explained_variance(given["values"].flatten(), wanted["returns"].flatten(), all_of_them)
    assert explained == pytest.approx(float(wanted["explained_var"]), abs=1e-6)


@pytest.mark.parametrize("case", CLEANRL["cases"], ids=lambda c: f"seed {c['seed']}")
def test_cleanrl_losses_and_gradients(case):
    settings, given, wanted = unpack(case)
    mask, offsets = rectangle(given["values"].shape)
    loss, gradient, terms = policy(
        given["new_logprobs"], given["old_logprobs"], wanted["mb_advantages"], mask, offsets, settings.clip
    )
    same(loss, wanted["pg_loss"])
    same(gradient, wanted["pg_gradient"])
    every_branch(terms.ratio, wanted["mb_advantages"], gradient, settings.clip)
    loss, gradient = value(
        given["new_values"], given["values"], wanted["returns"], mask, offsets, settings.clip
    )
    same(loss, wanted["v_loss"])
    same(gradient, wanted["v_gradient"])
    assert 0 < int((gradient == 0).sum()) < len(gradient)
    k3 = kl_estimate(given["old_logprobs"], given["new_logprobs"], "k3").mean()
    same(k3, wanted["approx_kl"])


@pytest.mark.parametrize("case", CLEANRL["cases"], ids=lambda c: f"seed {c['seed']}")
def test_cleanrl_differs_in_bessel_and_in_what_it_counts_as_clipped(case):
    settings, given, wanted = unpack(case)
    raw = wanted["advantages"].flatten()
    mask, offsets = rectangle(given["values"].shape)
    if settings.norm_adv:
        same(whiten(raw, mask) * bessel(mask), wanted["mb_advantages"])
        gap = float((whiten(raw, mask) - wanted["mb_advantages"]).abs().max())
        assert gap == pytest.approx({0: 0.037062, 2: 0.033758}[case["seed"]], abs=1e-6)
    terms = policy(given["new_logprobs"], given["old_logprobs"], raw, mask, offsets, settings.clip)[2]
    # CleanRL counts every ratio outside the bounds, here only those whose gradient the clip removes.
    outside = (terms.ratio - 1).abs() > settings.clip
    assert float(outside.double().mean()) == pytest.approx(float(wanted["clipfrac"]), abs=1e-6)
    assert int(terms.clipped.sum()) < int(outside.sum())
    assert not bool((terms.clipped & ~outside).any())


@pytest.mark.parametrize("case", OPENAI["cases"], ids=lambda c: f"seed {c['seed']}")
def test_openai_rewards_and_advantages(case):
    settings, given, wanted = unpack(case)
    shape = given["values"].shape
    mask, offsets = rectangle(shape)
    kl = kl_estimate(given["old_logprobs"], given["ref_logprobs"]).flatten()
    rewards = token_rewards(given["scores"], kl, settings.kl_coef, mask, offsets)
    same(rewards, wanted["rewards"].flatten())
    if settings.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    same(rewards, wanted["rewards_used"].flatten())
    raw, returns = gae(rewards, given["values"].flatten(), mask, offsets, settings.gamma, settings.lam)
    same(returns, wanted["returns"].flatten())
    same(whiten(raw, mask), wanted["advantages"].flatten())


@pytest.mark.parametrize("case", OPENAI["cases"], ids=lambda c: f"seed {c['seed']}")
def test_openai_losses_and_gradients(case):
    _, given, wanted = unpack(case)
    mask, offsets = rectangle(given["values"].shape)
    loss, gradient, terms = policy(
        given["new_logprobs"], given["old_logprobs"], wanted["advantages"], mask, offsets
    )
    same(loss, wanted["pg_loss"])
    same(gradient, wanted["pg_gradient"].flatten())
    every_branch(terms.ratio, wanted["advantages"].flatten(), gradient, 0.2)
    assert float(terms.clipped.double().mean()) == pytest.approx(float(wanted["pg_clipfrac"]), abs=1e-6)
    same(terms.approx_kl.mean(), wanted["approxkl"])
    loss, gradient = value(given["new_values"], given["values"], wanted["returns"], mask, offsets)
    same(loss, wanted["vf_loss"])
    same(gradient, wanted["vf_gradient"].flatten())
    assert 0 < int((gradient == 0).sum()) < len(gradient)


def test_openai_whitening_and_controller():
    numbers = tensors(OPENAI["whiten"])
    x = numbers["x"].flatten()
    mask = torch.ones_like(x, dtype=torch.bool)
    same(whiten(x, mask), numbers["shifted"].flatten())
    same(whiten(x, mask, shift_mean=False), numbers["kept"].flatten())
    controller = OPENAI["kl_controller"]
    coefficient = controller["start"]
    for kl, responses, wanted in controller["path"]:
        coefficient = adapt_kl_coefficient(
            coefficient, kl, controller["target"], responses, controller["horizon"]
        )
        assert coefficient == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda c: f"seed {c['seed']}")
def test_trl_rewards_and_advantages(case):
    """With the slot after the last token declared a chosen token, as TRL treats it, all numbers agree."""
    settings, given, wanted = unpack(case)
    offsets, chosen = trl_rows(given), ~wanted["padding_mask"].flatten()
    and_one_more = ~wanted["padding_mask_p1"].flatten()
    old, ref = given["old_logprobs"].flatten(), given["ref_logprobs"].flatten()
    kl = torch.where(chosen, kl_estimate(old, ref, settings.kl_estimator), 0.0)
    same(kl, wanted["kl"].flatten())
    ended = (torch.tensor(case["responses"]) == settings.eos).any(1)
    scores = apply_missing_eos(given["scores"], ended, "subtract", settings.missing_eos_penalty or 0.0)
    same(scores, wanted["scores"])
    rewards = token_rewards(scores, kl, settings.kl_coef, and_one_more, offsets)
    if settings.whiten_rewards:
        # Bessel's correction scales the deviations and leaves the mean.
        mean = rewards[and_one_more].mean()
        kept = whiten(rewards, and_one_more, shift_mean=False)
        rewards = torch.where(and_one_more, (kept - mean) * bessel(and_one_more) + mean, 0.0)
    same(rewards, wanted["rewards"].flatten())
    values = torch.where(and_one_more, given["values"].flatten(), 0.0)
    same(values, wanted["values"].flatten())
    raw, returns = gae(rewards, values, and_one_more, offsets, settings.gamma, settings.lam)
    same(returns, wanted["returns"].flatten())
    same(whiten(raw, chosen) * bessel(chosen), wanted["advantages"].flatten())


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda c: f"seed {c['seed']}")
def test_trl_losses_and_gradients(case):
    _, given, wanted = unpack(case)
    offsets, chosen = trl_rows(given), ~wanted["padding_mask"].flatten()
    loss, gradient, terms = policy(
        given["new_logprobs"], given["old_logprobs"], wanted["advantages"], chosen, offsets
    )
    same(loss, wanted["pg_loss"])
    same(gradient, wanted["pg_gradient"].flatten())
    every_branch(terms.ratio[chosen], wanted["advantages"].flatten()[chosen], gradient[chosen], 0.2)
    clipped = terms.clipped[chosen].double().mean()
    assert float(clipped) == pytest.approx(float(wanted["pg_clipfrac"]), abs=1e-6)
    with_slot = ~wanted["padding_mask_p1"].flatten()
    loss, gradient = value(given["new_values"], wanted["values"], wanted["returns"], with_slot, offsets)
    same(loss, wanted["vf_loss"])
    same(gradient, wanted["vf_gradient"].flatten())
    assert 0 < int((gradient[with_slot] == 0).sum()) < int(with_slot.sum())


@pytest.mark.parametrize("shift", [True, False])
def test_trl_whitening_differs_by_bessel(shift):
    numbers = tensors(TRL["whiten"])
    x, mask = numbers["x"].flatten(), numbers["mask"].flatten()
    wanted = numbers["shifted" if shift else "kept"].flatten()
    offset = 0.0 if shift else float(x[mask].mean())
    got = whiten(x, mask, shift_mean=shift)
    same(((got - offset) * bessel(mask) + offset)[mask], wanted[mask])
    assert float((got - wanted)[mask].abs().max()) == pytest.approx(0.096939, abs=1e-6)
    assert not bool(got[~mask].any())
    assert bool((wanted[~mask] != 0).all())  # TRL sets these to 0 after whitening
