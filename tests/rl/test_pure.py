"""Every function of rl/ is pure: it runs without gradients, changes none of its inputs, and writes no gradient."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import proxlm.rl
from proxlm.rl.distillation import SoftTargets
from proxlm.rl.estimators import AdvantageInputs
from proxlm.rl.policy_losses import LossInputs
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.rl.value_histogram import ValueBins

MODULES = sorted(
    path.stem for path in Path(proxlm.rl.__file__).parent.glob("*.py") if path.stem != "__init__"
)
OFFSETS = torch.tensor([0, 3, 5, 6])
MASK = torch.tensor([True, False, True, True, True, True])
ROWS = torch.tensor([2, 0])
ENDED = torch.tensor([True, False, True])
MATRIX = torch.tensor([[2.0, 0.5], [0.5, 1.0]])


def flat(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (6,)), generator=torch.Generator().manual_seed(seed))


def product(v: Tensor) -> Tensor:
    return MATRIX @ v


def measure(step: Tensor) -> tuple[float, float]:
    return float(step.sum().abs()), float(0.5 * step.dot(MATRIX @ step))


def head(hidden: Tensor) -> Tensor:
    return hidden @ torch.ones(4, 7)


ESTIMATE = AdvantageInputs(
    rewards=flat(0),
    values=flat(1),
    action_mask=MASK,
    offsets=torch.tensor([0, 2, 4, 5, 6]),
    groups=torch.tensor([0, 0, 1, 1]),
    bootstrap=flat(2, 4),
)
LOSS = LossInputs(flat(3), flat(4), flat(5), MASK, OFFSETS, covariant=flat(6) > 0)
TEACHER, STUDENT = flat(7, 6, 4).log_softmax(-1), flat(8, 6, 4).log_softmax(-1)
STATISTICS = RunningStatistics(3.0, 0.5, 2.0)
BINS = ValueBins(-1.0, 1.0, 5)
GAE = (flat(0), flat(1), MASK, OFFSETS, 0.9, 0.8, flat(2, 3))

# module.function → example arguments.


def next_of_two(prefixes: Tensor) -> Tensor:
    return torch.full((len(prefixes), 2), 0.5).log()


def last_tokens(responses: Tensor) -> Tensor:
    return responses[:, -1].float()


EXAMPLES: dict[str, tuple[Any, ...]] = {
    "advantages.one_rank": (torch.tensor(3.0),),
    "advantages.gae": GAE,
    "advantages.temporal_differences": (flat(0), flat(1), MASK, OFFSETS, 0.9, flat(2, 3)),
    "advantages.discounted_sums": (flat(0), torch.tensor([0, 0, 0, 1, 1, 2]), flat(1).abs()),
    "advantages.turn_starts": (MASK, OFFSETS),
    "advantages.turn_gae": GAE,
    "advantages.kl_advantages": (flat(0), 0.1, MASK, OFFSETS, 0.9, 0.8),
    "advantages.length_adaptive_lambda": (torch.tensor([3, 2, 0]), 0.5),
    "advantages.whiten": (flat(0), MASK),
    "advantages.explained_variance": (flat(0), flat(1), MASK),
    "advantages.float32_rounding": (flat(0), flat(1), MASK),
    "advantages.explained_variance_by_position": (flat(0), flat(1), MASK, OFFSETS),
    "distillation.forward_kl": (TEACHER, STUDENT),
    "distillation.reverse_kl": (TEACHER, STUDENT),
    "distillation.jensen_shannon": (TEACHER, STUDENT, 0.3),
    "distillation.top_and_rest": (STUDENT, torch.tensor([[0, 2]] * 6)),
    "distillation.divergence": (TEACHER, STUDENT, "jsd"),
    "distillation.soft_targets": (STUDENT, 2.0, 2),
    "distillation.distillation_loss": (SoftTargets(TEACHER), STUDENT, torch.arange(6) % 4),
    "calibration.calibration": (flat(0), flat(1), MASK),
    "calibration.mean_by_position": (flat(0), MASK, OFFSETS),
    "corrections.split_log_weights": (flat(0), flat(1), flat(2), ~MASK),
    "corrections.importance_weights": (flat(0), MASK, OFFSETS, "sequence_truncate", 0.0, 2.0),
    "corrections.effective_share": (flat(0).exp(),),
    "covariance.token_covariance": (flat(0), flat(1), MASK),
    "covariance.clip_cov_tokens": (flat(0), flat(1), MASK, 0.5, -1.0, 1.0),
    "covariance.kl_cov_tokens": (flat(0), flat(1), MASK, 0.5),
    "estimators.gae_advantages": (ESTIMATE,),
    "estimators.vtrace_advantages": (ESTIMATE,),
    "estimators.retrace_advantages": (ESTIMATE,),
    "estimators.reinforce_advantages": (ESTIMATE,),
    "estimators.rloo_advantages": (ESTIMATE,),
    "estimators.grpo_advantages": (ESTIMATE,),
    "estimators.group_numbers": (torch.tensor([7, 3, 7]),),
    "estimators.varied_groups": (flat(0, 4), torch.tensor([0, 0, 1, 1])),
    "exact.exact_credit": (next_of_two, last_tokens, 2, 2),
    "exact.credit_quality": (flat(0), flat(1), MASK),
    "kl.kl_estimate": (flat(0), flat(1), "k3"),
    "kl.adapt_kl_coefficient": (0.1, 5.0, 6.0, 4, 100.0),
    "logprobs.predicting_states": (torch.tensor([1, 2, 4]),),
    "logprobs.logprobs_and_entropy": (flat(0, 6, 7), torch.arange(6), 0.7),
    "logprobs.spans": (6, 4),
    "logprobs.chunked_logprobs": (flat(0, 6, 4), head, torch.arange(6), 0.7, True, 4),
    "losses.clipped_policy_loss": (flat(0), flat(1), flat(2), 0.2, 0.2, 20.0, 3.0),
    "losses.clipped_value_loss": (flat(0), flat(1), flat(2)),
    "losses.entropy_coefficient": (0.1, 2.0, 3.0),
    "losses.token_weights": (MASK, OFFSETS, "sequence", 8),
    "off_policy.vtrace": (flat(0), flat(1), flat(3), MASK, OFFSETS, 0.9, 0.8, flat(2, 3), 1.2, 0.9, True),
    "losses.positive_responses": (flat(0, 4), torch.tensor([0, 0, 1, 1]), "best"),
    "policy_losses.log_ratio": (LOSS,),
    "policy_losses.measured": (LOSS, flat(6)),
    "policy_losses.ppo_loss": (LOSS,),
    "policy_losses.pg_loss": (LOSS,),
    "policy_losses.surrogate_loss": (LOSS,),
    "policy_losses.gspo_loss": (LOSS,),
    "policy_losses.cispo_loss": (LOSS,),
    "policy_losses.dppo_loss": (LOSS,),
    "policy_losses.clip_cov_loss": (LOSS,),
    "policy_losses.kl_cov_loss": (LOSS,),
    "preference_losses.bradley_terry_loss": (flat(0), flat(1), flat(2).abs(), 0.1),
    "preference_losses.centring_penalty": (flat(0), flat(1)),
    "preference_losses.implicit_rewards": (flat(0), flat(1), 0.1),
    "preference_losses.share_preferred": (flat(0),),
    "preference_losses.score_loss": (flat(0, 3, 2), flat(1, 3, 2), 0.5),
    "preference_losses.class_loss": (flat(0, 3, 2), torch.tensor([0.0, 1.0, 1.0])),
    "preference_losses.step_loss": (flat(0, 3, 2), flat(1, 3, 2).sigmoid()),
    "token_losses.focal_loss": (-flat(0).abs(), 2.0),
    "token_losses.smoothed_losses": (flat(0, 6, 4), head, torch.arange(6), 0.1, 4),
    "ragged.offsets_of": (torch.tensor([3, 2, 1]),),
    "ragged.row_of_element": (OFFSETS,),
    "ragged.ragged_index": (OFFSETS, ROWS),
    "ragged.part_of_row": (OFFSETS, 2),
    "ragged.segment_sum": (flat(0), OFFSETS),
    "running_statistics.with_values": (STATISTICS, flat(0)),
    "running_statistics.pooled": (3.0, flat(0), flat(1).square(), flat(2, 4, 6)),
    "running_statistics.scale_scores": (flat(0, 3), flat(1), flat(2, 3), STATISTICS, 1.0),
    "running_statistics.clip_advantages": (flat(0), 0.5),
    "sampling_mask.mask_logits": (flat(0, 6, 7), SamplingMask.of(flat(1, 6, 7) > -1, flat(1).abs())),
    "shaping.last_action_index": (MASK, OFFSETS),
    "shaping.token_rewards": (flat(0, 3), flat(1), 0.1, MASK, OFFSETS, flat(2)),
    "shaping.response_rewards": (flat(0, 3), flat(1), OFFSETS),
    "shaping.apply_missing_eos": (flat(0, 3), ENDED, "subtract", 1.0),
    "shaping.normalised_sum": (flat(0, 2, 4), flat(1, 2), torch.tensor([0, 0, 1, 1])),
    "shaping.overlong_penalty": (torch.tensor([3, 2, 1]), 3, 2, 1.0),
    "shaping.potential_rewards": (flat(0), MASK, OFFSETS, 0.9, ENDED),
    "trust_region.conjugate_gradient": (product, flat(0, 2), 5),
    "trust_region.natural_step": (flat(0, 2), product, 0.01, 5),
    "trust_region.trust_region_step": (flat(0, 2), product, measure, 0.01),
    "value_ensemble.combined_value": (flat(0, 6, 3), "lower_bound", 2.0),
    "value_ensemble.spread_of_heads": (flat(0, 6, 3),),
    "value_ensemble.differences_of_heads": (flat(0, 3, 4),),
    "value_ensemble.bootstrap_factors": (flat(0, 6, 3), 0.5),
    "value_ensemble.ensemble_loss": (flat(0, 6, 3), flat(1), flat(2, 6, 3)),
    "value_histogram.histogram_of": (flat(0), BINS),
    "value_histogram.histogram_mean": (flat(0, 6, 5), BINS),
    "value_histogram.histogram_loss": (flat(0, 6, 5), flat(1), BINS),
    "value_histogram.beyond_bins": (flat(0), BINS),
    "value_histogram.first_logits": (flat(0), BINS),
}


def public_functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"proxlm.rl.{name}")
        for function, value in inspect.getmembers(module, inspect.isfunction):
            if value.__module__ == module.__name__ and not function.startswith("_"):
                found[f"{name}.{function}"] = value
    return found


FUNCTIONS = public_functions()


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, those of its fields and items included."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)


def run(name: str, arguments: tuple[Any, ...]) -> Any:
    found = FUNCTIONS[name](*arguments)
    return list(found) if inspect.isgenerator(found) else found


def with_gradients(value: Any) -> Any:
    """The same value with leaves that ask for gradients instead of float tensors."""
    if isinstance(value, Tensor):
        return value.clone().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, LossInputs):
        return LossInputs(*(with_gradients(getattr(value, field.name)) for field in fields(value)))
    if isinstance(value, AdvantageInputs):
        return AdvantageInputs(*map(with_gradients, value))
    return value


def test_the_table_is_complete() -> None:
    assert set(EXAMPLES) == set(FUNCTIONS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_in_inference_mode_and_changes_no_input(name: str) -> None:
    arguments = EXAMPLES[name]
    before = [tensor.clone() for tensor in tensors_of(arguments)]
    with torch.inference_mode():
        run(name, arguments)
    after = list(tensors_of(arguments))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(tensor.requires_grad for tensor in after)


# What losses are made of; nothing else in rl/ is differentiated.
WITH_GRADIENT = [
    name
    for name in EXAMPLES
    if name.startswith(
        ("kl.", "logprobs.", "losses.", "policy_losses.", "value_ensemble.", "value_histogram.")
    )
]


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_it_takes_no_gradient_of_its_own(name: str) -> None:
    arguments = tuple(map(with_gradients, EXAMPLES[name]))
    before = [tensor.detach().clone() for tensor in tensors_of(arguments)]
    run(name, arguments)
    for tensor, kept in zip(tensors_of(arguments), before, strict=True):
        assert tensor.grad is None
        assert torch.equal(tensor.detach(), kept)
