"""Rules about the reward: no signal, a reward that is hacked, that falls, that fails.

Each looks at the newest steps and returns a Finding or None; above it is what it needs to judge. docs/doctor.md has
the table of all rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, pvariance

from proxlm.doctor.facts import Facts
from proxlm.doctor.finding import Finding, found, now
from proxlm.doctor.rule import rule
from proxlm.doctor.window import (
    Rows,
    at_least,
    first,
    first_middle,
    has_learnt,
    learning,
    newest,
    newest_middle,
    newest_of_all,
    number,
    span,
)
from proxlm.runlog import metric_names as names
from proxlm.runlog.text import number as shown

# Singhal et al. 2023 ("A long way to go: investigating length correlations in RLHF"): what RLHF gained in reward came
# in large part from length. A correlation of 0.5 is a quarter of the reward's variance explained by length alone.
LENGTH_CORRELATION = 0.5
LENGTH_FACTOR = 1.5
LENGTH_FACTOR_SERIOUS = 2.5

# Share of a response's token pairs that it already had. In this project's healthy runs 0.00 to 0.06; models
# that are rewarded for it reach 0.8 in the tests. The measure is that of Welleck et al. 2019 ("Neural text generation
# with unlikelihood training"), for pairs rather than 4-grams.
REPETITION = 0.3
REPETITION_GROWTH = 0.2
REPETITION_SERIOUS = 0.6

# Equal rewards differ by the rounding of float32 alone.
REWARD_EQUAL = 1e-5

# A fall must be clear of chance, and a third of the spread between responses.
FALL_ERRORS = 4.0
FALL_SHARE = 1 / 3
# How far back the best block of ten steps is looked for.
FALL_BLOCKS = 8

# Rewards that fail this often are not an accident.
FAILED_SHARE = 0.05


@rule(5, names.REWARD, names.REWARD_STD)
def reward_without_variance(rows: Rows, facts: Facts) -> Finding | None:
    """Every response gets the same reward, so no response is better than another.

    Not where a policy for control has learnt: environments have a highest return, and it is meant to be reached.
    """
    if not is_flat(rows, 5) or (facts.control and has_learnt(rows)):
        return None
    reward, start = fmean(newest(rows, names.REWARD, 5)), first_middle(rows, names.REWARD, 3)
    risen = start is not None and reward > start + REWARD_EQUAL * max(1.0, abs(start))
    reached = "if this is the highest reward, the run is done" if risen else "there is nothing to learn from"
    return found(
        rows, "reward_without_variance",
        f"every response gets the same reward, {shown(reward)}, in {span(rows, 5)}: {reached}",
        "look at samples.jsonl: does the reward see what it should?",
        "a reward with degrees, or prompts that are sometimes answered well and sometimes badly",
        "raise ppo.samples_per_prompt or rollout.temperature",
        serious=not risen,
    )  # fmt: skip


def is_flat(rows: Rows, count: int) -> bool:
    """Whether in most of the newest `count` steps all rewards were equal."""
    rewards, spreads = newest(rows, names.REWARD, count), newest(rows, names.REWARD_STD, count)
    if len(rewards) < count or len(spreads) < count:
        return False
    flat = [_equal(reward, spread) for reward, spread in zip(rewards, spreads, strict=True)]
    return sum(flat) > count / 2


def _equal(reward: float | None, spread: float | None) -> bool:
    """Whether a step's rewards differ by no more than rounding."""
    return spread is not None and spread <= REWARD_EQUAL * max(abs(reward or 0.0), REWARD_EQUAL)


@rule(8, names.REWARD_LENGTH_CORRELATION, names.RESPONSE_LENGTH)
def length_hacking(rows: Rows, _facts: Facts) -> Finding | None:
    """The reward goes with the length of a response, and responses have become much longer, or shorter."""
    # Rewards that are equal but for rounding have a correlation too, one without meaning.
    window = [
        r
        for r in rows[-20:]
        if learning(r) and not _equal(number(r, names.REWARD), number(r, names.REWARD_STD))
    ]
    known = [c for row in window if (c := number(row, names.REWARD_LENGTH_CORRELATION)) is not None]
    start, length = (
        first_middle(rows, names.RESPONSE_LENGTH, 3),
        newest_middle(rows, names.RESPONSE_LENGTH, 5),
    )
    if len(known) < 5 or start is None or length is None or min(start, length) <= 0 or not at_least(rows, 8):
        return None
    correlation, factor = median(known), length / start
    change = factor if correlation > 0 else 1 / factor
    if abs(correlation) < LENGTH_CORRELATION or change < LENGTH_FACTOR:
        return None
    longer = "longer" if correlation > 0 else "shorter"
    return found(
        rows, "length_hacking",
        f"responses grew {longer}, from {shown(start)} to {shown(length)} tokens in {span(rows, 5)}, and the reward"
        f" goes with it: its correlation with length is {correlation:+.2f}",
        f"let the reward not pay for {longer} responses, or add a term for length (reward.terms, built-in length)",
        "raise ppo.kl_coef",
        f"read samples.jsonl: a {longer} response may be what the task needs",
        serious=change >= LENGTH_FACTOR_SERIOUS,
    )  # fmt: skip


@rule(8, names.REPETITION)
def repetition(rows: Rows, _facts: Facts) -> Finding | None:
    """Responses repeat themselves far more than at the start."""
    start, share = first_middle(rows, names.REPETITION, 3), newest_middle(rows, names.REPETITION, 5)
    if start is None or share is None or not at_least(rows, 8):
        return None
    if share < REPETITION or share < start + REPETITION_GROWTH:
        return None
    before, after = (
        fmean(first(rows, names.REWARD, 3) or [0.0]),
        fmean(newest(rows, names.REWARD, 5) or [0.0]),
    )
    rose = after > before + (first_middle(rows, names.REWARD_STD, 3) or 0.0) / 2
    paid = f", while the reward rose from {shown(before)} to {shown(after)}" if rose else ""
    return found(
        rows, "repetition",
        f"{share:.0%} of the token pairs of a response are repeats in {span(rows, 5)}, from {start:.0%} at the"
        f" start{paid}",
        "add a term against it (reward.terms, built-in repetition)",
        "raise ppo.kl_coef",
        "raise ppo.entropy_coef or lower optim.policy.lr",
        serious=share >= REPETITION_SERIOUS,
    )  # fmt: skip


@rule(20, names.REWARD)
def reward_falls(rows: Rows, facts: Facts) -> Finding | None:
    """The reward of the newest ten steps is clearly lower than that of an earlier block, or of the first five.

    Not where an adaptive β brought the KL back from above its target: the reward it had there was never to be kept.
    """
    after = newest(rows, names.REWARD, 10)
    if len(after) < 10 or not at_least(rows, 20):
        return None
    start = first(rows, names.REWARD, 5)
    blocks = [(*_mean_and_error(start), "the first steps")] if len(start) == 5 else []
    highest_kl = facts.kl_target if facts.adaptive else float("inf")
    for back in range(1, FALL_BLOCKS + 1):
        earlier = rows[: len(rows) - 10 * back]
        block = newest(earlier, names.REWARD, 10)
        if len(block) == 10 and fmean(newest(earlier, names.KL, 10) or [0.0]) <= highest_kl:
            blocks.append((*_mean_and_error(block), span(earlier, 10)))
    if not blocks:
        return None
    (best, error_then, where), (low, error_now) = max(blocks), _mean_and_error(after)
    # A policy that has collapsed has no spread of its own, so that of the steps before counts too.
    spread = max(
        newest_middle(rows[:back], names.REWARD_STD, 10) or 0.0 for back in (len(rows), len(rows) - 10)
    )
    if best - low <= max(FALL_ERRORS * (error_then**2 + error_now**2) ** 0.5, FALL_SHARE * spread):
        return None
    bonus = [f"lower ppo.entropy_coef{now(facts.entropy_coef)}"] if facts.entropy_coef > 0 else []
    return found(
        rows, "reward_falls",
        f"the reward fell from {shown(best)} in {where} to {shown(low)} in {span(rows, 10)}",
        "lower optim.policy.lr, and look at the other findings",
        *bonus,
        "go back to a checkpoint before the fall and raise ppo.kl_coef",
        "raise ppo.batch_size: updates are less noisy with more responses",
        serious=bool(start) and low < min(start),
    )  # fmt: skip


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return fmean(values), (pvariance(values) / len(values)) ** 0.5


@rule(1, names.REWARD_FAILED, any_steps=True)
def reward_failed(rows: Rows, facts: Facts) -> Finding | None:
    """The reward raised, hung or gave no number, and error_score stood in."""
    window = rows[-5:]
    failed = newest_of_all(rows, names.REWARD_FAILED, len(window))
    total = int(sum(failed))
    if not failed or total == 0:
        return None
    scored = facts.responses * len(failed)
    share = f" of {scored}" if scored else ""
    often = total > FAILED_SHARE * scored if scored else sum(count > 0 for count in failed) >= 3
    return found(
        rows, "reward_failed",
        f"the reward failed for {total}{share} responses in {span(rows, len(window))}; reward.error_score stood in",
        "set reward.on_error = fail, which stops with the error itself",
        "raise reward.timeout, if the reward is slow",
        serious=often,
    )  # fmt: skip
