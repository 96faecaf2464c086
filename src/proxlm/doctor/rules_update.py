"""Rules about the size of the updates: learning rate, clipping, gradients that are not finite.

Each looks at the newest steps and returns a Finding or None; above it is what it needs to judge. docs/doctor.md has
the table of all rules.
"""

from __future__ import annotations

from proxlm.doctor.facts import Facts
from proxlm.doctor.finding import Finding, found, now
from proxlm.doctor.rule import rule
from proxlm.doctor.window import (
    Rows,
    at_least,
    first_middle,
    middle,
    newest,
    newest_middle,
    newest_of_all,
    number,
    span,
)
from proxlm.runlog import metric_names as names
from proxlm.runlog.metric import Metric
from proxlm.runlog.text import number as shown

# approx_kl = mean (log ratio)² / 2 between the policy that sampled and the one that learns. Stopping rules in
# common use stand at 0.01 to 0.03 (Spinning Up: 1.5 · 0.01); the demo's and the stories' first steps, at the highest
# learning rate, at 0.04 to 0.06.
APPROX_KL_HIGH = 0.1
APPROX_KL_SERIOUS = 0.5
# The ratio's mean is near 1 while the policy is near the one that sampled; at this bound TRL's PPOLoop gave up
# the batch (ratio_threshold).
RATIO_MEAN_HIGH = 10.0
# Single rare tokens reach ratios of 30 in healthy runs.
RATIO_MAX_HIGH = 1000.0
# Gradient norms vary by a factor of two or three in healthy runs.
GRADIENT_GROWTH = 20.0
# A hundred times below the stopping rules above.
APPROX_KL_LOW = 1e-4
# Ratios that differ from 1 by about 0.001; and a KL per response that no step's sample can tell from 0.
APPROX_KL_NOTHING = 1e-6
KL_NOTHING = 0.01
# With one optimiser step per rollout approx_kl is 0 by construction; only the KL tells, and after more steps.
KL_NOTHING_ONE_UPDATE = 1e-3

# A third and a half of the tokens without a gradient; this project's healthy runs show up to 0.1, and 0.2 for
# a step or two at the start.
CLIP_HIGH = 0.3
CLIP_SERIOUS = 0.5


_NOT_FINITE = tuple(names.GRAD_NORM_MODEL_NOT_FINITE(who) for who in ("policy", "critic"))


def _not_clipped(facts: Facts) -> str:
    return f"ppo.loss = {facts.loss} does not clip as ppo does" if facts.loss not in ("", "ppo") else ""


def _never_clipped(facts: Facts) -> str:
    one = "one optimiser step for each rollout, whose ratio is always 1" if facts.updates == 1 else ""
    return _not_clipped(facts) or one


def _moving_reference(facts: Facts) -> str:
    both = facts.updates == 1 and facts.reference_moves
    return "one optimiser step for each rollout, and a reference that moves" if both else ""


@rule(3, (names.APPROX_KL, names.RATIO_MEAN, names.RATIO_MAX, names.GRAD_NORM_MODEL("policy")))
def learning_rate_too_large(rows: Rows, facts: Facts) -> Finding | None:
    """Single updates carry the policy far from the one that sampled, or gradients explode."""
    approx_kl, ratio = newest_middle(rows, names.APPROX_KL, 3), newest_middle(rows, names.RATIO_MEAN, 3)
    largest, growth = newest_middle(rows, names.RATIO_MAX, 3), _gradient_growth(rows)
    signs, serious = [], False
    if approx_kl is not None and approx_kl > APPROX_KL_HIGH:
        signs.append(f"approx KL of an update is {shown(approx_kl)} (usual: below 0.03)")
        serious = approx_kl > APPROX_KL_SERIOUS
    if ratio is not None and ratio > RATIO_MEAN_HIGH:
        signs.append(f"the mean probability ratio is {shown(ratio)} (usual: near 1)")
        serious = True
    if largest is not None and largest > RATIO_MAX_HIGH:
        signs.append(f"the largest probability ratio is {shown(largest)}")
    if growth is not None and growth > GRADIENT_GROWTH:
        signs.append(f"the policy's gradient norm is {shown(growth)} times that of the first steps")
    if not signs:
        return None
    return found(
        rows, "learning_rate_too_large",
        f"{', '.join(signs)} in {span(rows, 3)}",
        f"lower optim.policy.lr{now(facts.lr)}, three to ten times",
        "ppo.target_kl = 0.03, which ends a step's passes early",
        "lower ppo.epochs, or give optim.policy.warmup some steps",
        serious=serious,
    )  # fmt: skip


def _gradient_growth(rows: Rows) -> float | None:
    """The newest gradient norms over those of the first 10 steps; None before step 15."""
    start, norm = (
        first_middle(rows, names.GRAD_NORM_MODEL("policy"), 10),
        newest_middle(rows, names.GRAD_NORM_MODEL("policy"), 3),
    )
    if start is None or norm is None or start <= 0 or not at_least(rows, 15):
        return None
    return norm / start


@rule(10, names.APPROX_KL, names.KL, unsuited=_moving_reference)
def learning_rate_too_small(rows: Rows, facts: Facts) -> Finding | None:
    """After ten steps at full learning rate nothing has moved."""
    approx_kl, kl = middle(_at_full_rate(rows, names.APPROX_KL, facts), 6), newest_middle(rows, names.KL, 10)
    if approx_kl is None or kl is None:
        return None
    if _one_update(rows, facts):
        if facts.reference_moves or not at_least(rows, 20) or abs(kl) > KL_NOTHING_ONE_UPDATE:
            return None
    elif approx_kl > APPROX_KL_NOTHING or abs(kl) > KL_NOTHING:
        return None
    return found(
        rows, "learning_rate_too_small",
        f"the policy does not move: approx KL of an update is {shown(approx_kl)} and the KL to the reference"
        f" {shown(abs(kl))} nats per response in {span(rows, 10)}",
        f"raise optim.policy.lr{now(facts.lr)}, ten times; 3e-6 is usual for models of 0.5B parameters and more, 3e-4"
        " for those below 1M",
        "raise ppo.epochs or ppo.minibatches",
    )  # fmt: skip


@rule(10, names.CLIP_FRACTION, names.APPROX_KL, unsuited=_never_clipped)
def clip_never(rows: Rows, facts: Facts) -> Finding | None:
    """The updates are so small that the clip never acts, though the policy moves a little."""
    if facts.loss not in ("", "ppo") or _one_update(rows, facts) or learning_rate_too_small(rows, facts):
        return None
    clipped = _at_full_rate(rows, names.CLIP_FRACTION, facts)
    approx_kl = middle(_at_full_rate(rows, names.APPROX_KL, facts), 6)
    if len(clipped) < 10 or max(clipped) > 0 or approx_kl is None or approx_kl > APPROX_KL_LOW:
        return None
    return found(
        rows, "clip_never",
        f"no token was clipped in {span(rows, 10)} and approx KL of an update is {shown(approx_kl)}: the updates"
        " could be larger",
        f"raise optim.policy.lr{now(facts.lr)}, two or three times",
        "raise ppo.epochs or ppo.minibatches",
    )  # fmt: skip


@rule(5, names.CLIP_FRACTION, unsuited=_not_clipped)
def clip_often(rows: Rows, facts: Facts) -> Finding | None:
    """So many tokens are clipped that much of each step's data teaches nothing."""
    clipped = newest_middle(rows, names.CLIP_FRACTION, 5)
    if facts.loss not in ("", "ppo") or clipped is None or clipped <= CLIP_HIGH:
        return None
    return found(
        rows, "clip_often",
        f"{clipped:.0%} of the tokens are clipped in {span(rows, 5)} (usual: up to 20%), and teach nothing",
        f"lower optim.policy.lr{now(facts.lr)}, two or three times",
        "lower ppo.epochs, or set ppo.target_kl = 0.03",
        "raise ppo.batch_size: updates are less noisy with more responses",
        serious=clipped > CLIP_SERIOUS,
    )  # fmt: skip


@rule(1, _NOT_FINITE, any_steps=True)
def gradients_not_finite(rows: Rows, _facts: Facts) -> Finding | None:
    """Optimiser steps were skipped, because their gradient was infinite or not a number."""
    window = rows[-5:]
    skipped = {
        who: newest_of_all(rows, names.GRAD_NORM_MODEL_NOT_FINITE(who), len(window))
        for who in ("policy", "critic")
    }
    bad = {who: int(sum(counts)) for who, counts in skipped.items() if sum(counts) > 0}
    if not bad:
        return None
    often = max(sum(count > 0 for count in counts) for counts in skipped.values())
    counts = " and ".join(f"{count} of the {who}'s" for who, count in bad.items())
    return found(
        rows, "gradients_not_finite",
        f"{counts} optimiser steps were skipped in {span(rows, len(window))}, because the gradient was not finite",
        "look at rewards and advantages for huge or missing values (samples.jsonl)",
        f"lower {' and '.join(f'optim.{who}.lr' for who in bad)}",
        "model.precision = float32",
        serious=often >= 3,
    )  # fmt: skip


def _one_update(rows: Rows, facts: Facts) -> bool:
    """Whether each rollout is used for one optimiser step alone: the ratio is then always 1."""
    return facts.updates == 1 or number(rows[-1], names.OPTIMISER_STEPS) == 1


def _at_full_rate(rows: Rows, name: Metric, facts: Facts) -> list[float]:
    """The numbers of the newest 10 rows; empty where warm-up or decay holds the learning rate below half its peak.

    At the end of a schedule, steps are meant to be small.
    """
    rates = newest(rows, names.LR_MODEL("policy"), 10)
    peak = facts.lr if facts.lr > 0 else max(rates, default=0.0)
    return [] if any(rate < peak / 2 for rate in rates) else newest(rows, name, 10)
