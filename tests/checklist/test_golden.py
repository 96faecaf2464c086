"""Golden numbers: CleanRL, OpenAI's lm-human-preferences and TRL on the same arrays, to 1e-6.

The numbers were made by the peers' own statements (tests/golden/make_golden.py); where a peer means or does
something else, the difference is asserted too, with its numbers (docs/peers.md explains each).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from proxlm.rl.advantages import explained_variance, gae, whiten
from proxlm.rl.kl import adapt_kl_coefficient, kl_estimate
from proxlm.rl.losses import clipped_policy_loss, clipped_value_loss, token_weights
from proxlm.rl.shaping import apply_missing_eos, token_rewards

pytestmark = pytest.mark.checklist(40)

GOLDEN = Path(__file__).parents[1] / "golden"
CLEANRL, OPENAI, TRL = (
    json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("cleanrl", "lm_human_preferences", "trl")
)
EXAMPLES = {example["name"]: example for example in TRL["examples"]}


def tensors(part):
    """Lists → tensors: float64, or bool."""
    made = {name: np.array(v) for name, v in part.items() if isinstance(v, list | float)}
    return {name: torch.tensor(v if v.dtype == bool else v.astype(float)) for name, v in made.items()}


def unpack(case):
    """Settings by name, input tensors, output tensors."""
    return SimpleNamespace(**case["settings"]), tensors(case["inputs"]), tensors(case["outputs"])


def rows_of(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


def rectangle(shape):
    """Mask and offsets of rows that are all chosen tokens."""
    return torch.ones(math.prod(shape), dtype=torch.bool), torch.arange(shape[0] + 1) * shape[1]


def same(got, wanted, tolerance=1e-6):
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= tolerance


def bessel(mask):
    """From whitening by the population variance to whitening by the sample variance."""
    n = int(mask.sum())
    return math.sqrt((n - 1) / n)


def policy(new, old, advantages, mask, offsets, clip=0.2):
    """Loss of the minibatch, gradient in the log-probs [R], per-token terms."""
    new = new.flatten().clone().requires_grad_()
    terms = clipped_policy_loss(new, old.flatten(), advantages.flatten(), clip, clip)
    loss = (token_weights(mask, offsets, "token", 1).double() * terms.loss).sum()
    return loss.detach(), torch.autograd.grad(loss, new)[0], terms


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


def trl_rows(given):
    """TRL's rectangle, padding included, as rows of this library."""
    shape = given["values"].shape
    return torch.arange(shape[0] + 1) * shape[1]


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


def test_trl_statistics_average_over_padding():
    """approxkl and ratio are means over all slots, padding (log-ratio 0, ratio 1) included."""
    for case, share in zip(TRL["cases"], (27 / 42, 27 / 42, 22 / 42), strict=True):
        _, given, wanted = unpack(case)
        chosen = ~wanted["padding_mask"].flatten()
        assert float(chosen.double().mean()) == share
        terms = clipped_policy_loss(
            given["new_logprobs"].flatten(),
            given["old_logprobs"].flatten(),
            torch.zeros(len(chosen)).double(),
        )
        same(terms.approx_kl[chosen].mean() * share, wanted["approxkl"])
        same(terms.ratio[chosen].mean() * share + 1 - share, wanted["ratio_mean"])


def example(name):
    """TRL's outputs for one response, and this library's advantages for the tokens it really has."""
    given, outputs = tensors(EXAMPLES[name]["inputs"]), tensors(EXAMPLES[name]["outputs"])
    response, eos = EXAMPLES[name]["response"], EXAMPLES[name]["eos"]
    length = response.index(eos) + 1
    kl = kl_estimate(given["old_logprobs"][0, :length], given["ref_logprobs"][0, :length])
    mask, offsets = torch.ones(length, dtype=torch.bool), torch.tensor([0, length])
    rewards = token_rewards(given["scores"], kl, 0.5, mask, offsets)
    return outputs, gae(rewards, given["values"][0, :length], mask, offsets, 1.0, 0.95)[0].tolist()


def test_trl_scores_a_slot_after_eos():
    """The score is the reward of the padding after EOS; λ < 1 then mixes in a value of that state."""
    outputs, ours = example("EOS, then padding")
    assert outputs["trained"].tolist() == [[True, True, True, False, False]]
    assert outputs["value_trained"].tolist() == [[True, True, True, True, False]]
    assert outputs["rewards"][0].tolist() == pytest.approx([-0.05, -0.1, -0.15, 1, 0], abs=1e-6)
    assert outputs["advantages"][0, :4].tolist() == pytest.approx([0.120275, 0.2845, 0.51, 0.8], abs=1e-6)
    assert ours == pytest.approx([0.156375, 0.3225, 0.55], abs=1e-6)
    # The same tokens where the response is as long as the longest: no slot is left, and TRL is as here.
    outputs, ours = example("EOS is the last token")
    assert outputs["rewards"][0].tolist() == pytest.approx([-0.05, -0.1, 0.85], abs=1e-6)
    assert outputs["advantages"][0].tolist() == pytest.approx(ours, abs=1e-6)


def test_trl_trains_no_eos_where_eos_is_pad():
    """EOS has no KL and no loss, and the reward model is read at the token before it."""
    outputs, ours = example("EOS is PAD")
    assert outputs["trained"].tolist() == [[True, True, False, False, False]]
    assert outputs["rewards"][0].tolist() == pytest.approx([-0.05, -0.1, 1, 0, 0], abs=1e-6)
    assert outputs["advantages"][0, :3].tolist() == pytest.approx([0.29175, 0.465, 0.7], abs=1e-6)
    assert ours == pytest.approx([0.156375, 0.3225, 0.55], abs=1e-6)
    assert outputs["scored_at"].tolist() == [1]
    assert EXAMPLES["EOS, then padding"]["outputs"]["scored_at"] == [2]
    for case, trained in zip(TRL["cases"], (5, 5, 0), strict=True):
        _, _, wanted = unpack(case)
        eos = case["settings"]["eos"]
        ends = [(row, tokens.index(eos)) for row, tokens in enumerate(case["responses"]) if eos in tokens]
        assert len(ends) == 5
        assert sum(not bool(wanted["padding_mask"][end]) for end in ends) == trained
        if trained == 0:
            assert [float(wanted["pg_gradient"][end]) for end in ends] == [0.0] * 5
    # Its fifth response is EOS alone: no token counts, and by itself its loss is 0 / 0.
    nan = [case["outputs"]["micro_batches"]["fifth_alone_is_nan"] for case in TRL["cases"]]
    assert nan == [False, False, True]
    none = torch.zeros(7, dtype=torch.bool)
    assert token_weights(none, torch.tensor([0, 7]), "token", 7).tolist() == [0.0] * 7


def test_trl_ends_a_response_at_a_sampled_pad():
    outputs = EXAMPLES["PAD sampled before EOS"]["outputs"]
    assert outputs["trained"] == [[True, False, False, False, False]]
    assert outputs["contain_eos_token"] == [True]  # found behind the PAD, so there is no penalty either
    assert outputs["scored_at"] == [0]


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda c: f"seed {c['seed']}")
def test_trl_gradient_depends_on_the_micro_batches(case):
    """A mean of means: a token of a short micro-batch weighs more. Here weights are those of the minibatch."""
    _, given, wanted = unpack(case)
    micro = tensors(case["outputs"]["micro_batches"])
    offsets, chosen = trl_rows(given), ~wanted["padding_mask"].flatten()
    counts = chosen.view(3, -1).sum(1)
    ratio = (int(chosen.sum()) / (3 * counts)).repeat_interleave(len(chosen) // 3)
    whole = policy(given["new_logprobs"], given["old_logprobs"], wanted["advantages"], chosen, offsets)[1]
    same(whole * ratio, micro["pg_gradient"].flatten())
    gap = float(abs(micro["pg_losses"].mean() - wanted["pg_loss"]))
    assert gap == pytest.approx({30: 0.171696, 31: 0.335335, 32: 0.895412}[case["seed"]], abs=1e-6)


def test_trl_log_ratio_is_not_bounded():
    extreme = TRL["extreme"]
    new = torch.full((2,), extreme["log_ratio"], dtype=torch.float64, requires_grad=True)
    terms = clipped_policy_loss(new, torch.zeros(2).double(), torch.tensor([-1.0, 1.0]).double())
    terms.loss.mean().backward()
    assert extreme["pg_loss"] == pytest.approx((math.exp(25) - 1.2) / 2)
    assert extreme["pg_gradient"] == [[pytest.approx(math.exp(25) / 2), 0.0]]
    assert float(terms.loss.detach().mean()) == pytest.approx((math.exp(20) - 1.2) / 2)
    assert new.grad is not None
    assert new.grad.tolist() == [0.0, 0.0]


def test_trl_steps_do_not_follow_the_minibatches():
    """PPOTrainer itself: num_mini_batches changes no step, the dataset's last batch does; no norm is clipped."""
    for run in TRL["runs"]:
        updates, passes = run["updates"], run["num_ppo_epochs"]
        last_batches = updates // (run["dataset_rows"] // 8)
        per_pass = (updates - last_batches) + last_batches * run["gradient_accumulation_steps"]
        assert run["optimiser_steps"] == passes * per_pass
        assert run["largest_norm"] > 5 * run["max_grad_norm"]
        assert run["logged_ratio"] == pytest.approx(1 / run["num_mini_batches"], abs=1e-3)
    assert [run["optimiser_steps"] for run in TRL["runs"]] == [2, 8, 20] * 3
