"""Rules about the evaluations of a run, and about tokens that weights or filters leave out.

Each looks at the newest evaluations or steps and returns a Finding or None. docs/doctor.md has the table of all
rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from proxlm.doctor.facts import Facts
from proxlm.doctor.finding import Finding, found
from proxlm.doctor.rule import rule
from proxlm.doctor.rules_reward import is_flat
from proxlm.doctor.window import (
    Rows,
    Table,
    ends_of,
    evaluations,
    first_middle,
    newest_middle,
    number,
    span,
    step_of,
)
from proxlm.runlog import metric_names as names
from proxlm.runlog.metric import Metric
from proxlm.runlog.text import number as shown

SAMPLED = names.EVALUATION(names.REWARD)
GREEDY = names.EVALUATION(names.GREEDY(names.REWARD))

# Two evaluations at the start are compared with the two newest: one alone is as noisy as its prompts are few.
EVALUATIONS = 4
# How many evaluations back the best one is looked for.
LOOK_BACK = 10
# A change of the mean, in standard deviations of a response's reward, that is worth a word: the mean of 64 responses
# has a standard error of an eighth of it.
CHANGE_SHARE = 1 / 3
# How much of the sampled reward's gain the greedy one must have. Where learning moves what is likeliest, it has all.
GREEDY_SHARE = 0.25

# What a mask leaves out was generated for nothing; it is meant for outliers, some percent of the tokens.
DROPPED = 0.3
DROPPED_SERIOUS = 0.7
# What filters leave out of a token's probability. By definition top_p = 0.9 leaves out at most 0.1, and 0.8 at most
# 0.2. At 0.5 every second token that the policy means to say is one that it is not let say.
DROPPED_MASS = 0.2
DROPPED_MASS_SERIOUS = 0.5


@rule(2, names.REWARD_STD, SAMPLED, GREEDY, evaluations=EVALUATIONS, or_ends=True)
def greedy_unchanged(rows: Rows, _facts: Facts) -> Finding | None:
    """Sampled answers have become better and the likeliest ones have not: the run has only sharpened sampling."""
    ends = ends_of(rows)
    sampled, greedy = (
        _newest_change(rows, x) if ends is None else _change(ends, x) for x in (SAMPLED, GREEDY)
    )
    if sampled is None or greedy is None or not sampled.beyond_chance:
        return None
    if greedy.rise > GREEDY_SHARE * sampled.rise:
        return None
    return found(
        rows, "greedy_unchanged",
        f"sharpened only: the held-out reward of sampled answers rose from {shown(sampled.before)} to"
        f" {shown(sampled.after)}, that of greedy ones went from {shown(greedy.before)} to {shown(greedy.after)}:"
        " sampling became sharper, the likeliest answer hardly better",
        "if greedy answers earn the highest reward there is, the run is done",
        "raise rollout.temperature or ppo.samples_per_prompt: better answers than the likeliest must be sampled",
        "ppo.positive_coef = 0.1 raises those that were right; more steps, or a higher optim.policy.lr",
    )  # fmt: skip


@rule(2, names.REWARD, names.REWARD_STD, SAMPLED, evaluations=EVALUATIONS)
def held_out_falls(rows: Rows, _facts: Facts) -> Finding | None:
    """The reward of the training prompts has risen on, and that of the held-out ones has fallen."""
    evaluated, spread = evaluations(rows), _spread(rows)
    evaluated = [row for row in evaluated[-LOOK_BACK:] if number(row, names.REWARD) is not None]
    if len(evaluated) < EVALUATIONS or not spread:
        return None
    best, end = max((_mean(pair, SAMPLED), i + 2) for i, pair in enumerate(pairwise(evaluated)))
    after, when = _mean(evaluated[-2:], SAMPLED), step_of(evaluated[end - 1 : end])
    trained, now = (_mean(part, names.REWARD) for part in (evaluated[end - 2 : end], evaluated[-2:]))
    if now < trained or best - after < CHANGE_SHARE * spread:
        return None
    return found(
        rows, "held_out_falls",
        f"the held-out reward fell from {shown(best)} at step {when} to {shown(after)}, while that of the"
        f" training prompts went from {shown(trained)} to {shown(now)}",
        "more training prompts, or fewer ppo.steps",
        "the policy of the best evaluation is in best/ (run.keep_best)",
        "raise ppo.kl_coef",
        serious=best - after >= spread,
    )  # fmt: skip


@rule(5, tuple(map(names.WEIGHT_DROPPED, names.CAUSES)))
def weights_drop_tokens(rows: Rows, _facts: Facts) -> Finding | None:
    """A mask over importance weights leaves out much of what was generated."""
    shares = {
        cause: share
        for cause in names.CAUSES
        if (share := newest_middle(rows, names.WEIGHT_DROPPED(cause), 5)) is not None
    }
    if not shares:
        return None
    cause = max(shares, key=lambda name: shares[name])
    if shares[cause] <= DROPPED:
        return None
    first = {
        "engine": "make the engine's numbers the trainer's: rollout.weights, model.precision",
        "staleness": "lower optim.policy.lr or ppo.epochs: the policies are then nearer to each other",
    }
    return found(
        rows, "weights_drop_tokens",
        f"{shares[cause]:.0%} of the tokens have the weight 0 by ppo.{cause}_correction in {span(rows, 5)}",
        first[cause],
        f"ppo.{cause}_correction.mode = token_truncate, or wider low and high",
        serious=shares[cause] > DROPPED_SERIOUS,
    )  # fmt: skip


@rule(5, names.DROPPED_MASS)
def filters_drop_much(rows: Rows, _facts: Facts) -> Finding | None:
    """Much of what the policy would say is never sampled, so never tried and never learnt from."""
    dropped = newest_middle(rows, names.DROPPED_MASS, 5)
    if dropped is None or dropped <= DROPPED_MASS:
        return None
    ten = max(0.0, 1 - dropped) ** 10
    return found(
        rows, "filters_drop_much",
        f"top_k, top_p and min_p leave out {dropped:.0%} of a token's probability in {span(rows, 5)}: without them"
        f" ten tokens in a row would be such as are sampled here with probability {shown(ten)}",
        "wider filters: a higher rollout.top_p or rollout.top_k (0: all), a lower rollout.min_p",
        "a lower rollout.temperature, which takes probability from the tail instead of cutting it off",
        "use the model with the same filters: what they leave out has not been learnt",
        serious=dropped > DROPPED_MASS_SERIOUS,
    )  # fmt: skip


@dataclass(frozen=True)
class _Change:
    """Of a metric of held-out prompts; beyond_chance: it rose by more than the evaluations' errors explain."""

    before: float
    after: float
    beyond_chance: bool

    @property
    def rise(self) -> float:
        return self.after - self.before


def _newest_change(rows: Rows, name: Metric) -> _Change | None:
    """From the first two evaluations during the run to the newest two."""
    evaluated, spread = evaluations(rows), _spread(rows)
    parts = evaluated[:2], evaluated[-2:]
    if len(evaluated) < EVALUATIONS or not spread:
        return None
    if any(number(row, name) is None for part in parts for row in part):
        return None
    before, after = (_mean(part, name) for part in parts)
    return _Change(before, after, after - before >= CHANGE_SHARE * spread)


def _change(ends: tuple[Table, Table], name: Metric) -> _Change | None:
    """From the evaluation before the run to that after it, whose intervals say what is chance."""
    if not all(name in table for table in ends):
        return None
    (before, *first), (after, *last) = (table[name] for table in ends)
    error = math.hypot(*((high - low) / 2 for low, high in (first, last)))
    return _Change(before, after, after - before > error)


def _spread(rows: Rows) -> float:
    """The standard deviation of a response's reward at the start; 0 where it is not known, or rewards do not vary."""
    return 0.0 if is_flat(rows, 5) else first_middle(rows, names.REWARD_STD, 3) or 0.0


def _mean(rows: Rows, name: Metric) -> float:
    return fmean(value for row in rows if (value := number(row, name)) is not None)
