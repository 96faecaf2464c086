"""Item 40: where TRL 1.12.0 goes wrong, with numbers."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import TRL, policy, same, tensors, trl_rows, unpack

from proxlm.rl.advantages import gae
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import clipped_policy_loss, token_weights
from proxlm.rl.shaping import token_rewards

pytestmark = pytest.mark.checklist(40)

EXAMPLES = {example["name"]: example for example in TRL["examples"]}


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
    """PPOLoop itself: num_mini_batches changes no step, the dataset's last batch does; no norm is clipped."""
    for run in TRL["runs"]:
        updates, passes = run["updates"], run["num_ppo_epochs"]
        last_batches = updates // (run["dataset_rows"] // 8)
        per_pass = (updates - last_batches) + last_batches * run["gradient_accumulation_steps"]
        assert run["optimiser_steps"] == passes * per_pass
        assert run["largest_norm"] > 5 * run["max_grad_norm"]
        assert run["logged_ratio"] == pytest.approx(1 / run["num_mini_batches"], abs=1e-3)
    assert [run["optimiser_steps"] for run in TRL["runs"]] == [2, 8, 20] * 3
