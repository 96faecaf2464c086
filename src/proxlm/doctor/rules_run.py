"""Rules about the critic, the ends of responses, and the engine that samples.

Each looks at the newest steps and returns a Finding or None; above it is what it needs to judge. docs/doctor.md has
the table of all rules.
"""

from __future__ import annotations

import math
from statistics import fmean

from proxlm.doctor.facts import RESPONSES_UNKNOWN, Facts
from proxlm.doctor.finding import Finding, found
from proxlm.doctor.rule import rule
from proxlm.doctor.rules_reward import is_flat
from proxlm.doctor.window import (
    Row,
    Rows,
    at_least,
    first,
    first_middle,
    learning,
    middle,
    newest,
    newest_middle,
    newest_of_all,
    number,
    span,
)
from proxlm.runlog import metric_names as names
from proxlm.runlog.text import number as shown

# Below 0 a critic is worse than one number for all tokens, by definition. A critic near 0, as in the first steps of
# the stories recipe, wanders between −0.1 and 0.1.
CRITIC_WORSE = -0.3
CRITIC_SERIOUS = -1.0
# CartPole, solved: returns of 3.2 (scaled), values off by 0.02 to 0.1.
VALUES_NEAR = 0.1

# Of responses that ended by themselves.
NEVER_ENDS = 0.005
ENDED_AT_START = 0.05
# So many ends must be missing, by the share at the start, that it cannot be chance (e⁻⁸).
ENDINGS_EXPECTED = 8.0
# The EOS token alone, or one token and EOS.
ENDS_AT_ONCE = 2.0
ENDS_SHARE = 0.95

# The largest difference of a token's log-prob between engine and trainer, in nats, over a step. 0.18 is the width of
# the clip, log 1.2. float32: 2e-5 in the stories recipe. bfloat16: 0.05 to 0.25 there and in the demo, and more for
# more layers and longer responses.
GAP = {"float32": (1e-3, 0.1), "bfloat16": (1.0, 3.0)}
GAP_UNKNOWN = (1.0, 3.0)
# Top-k, top-p and min-p differ from the whole distribution by the log of the mass they keep, by the user's wish.
GAP_FILTERED = (0.5, math.inf)


def _short_answers(facts: Facts) -> str:
    limit = facts.max_new_tokens
    return f"rollout.max_new_tokens = {limit} leaves no room to end late" if 0 < limit <= 4 else ""


def _corrected(facts: Facts) -> str:
    if facts.rounded:
        return "the gap of rounded weights (rollout.weights) is corrected (ppo.engine_correction.mode)"
    both = facts.filtered and facts.corrected
    return "the gap of filtered sampling is corrected (ppo.engine_correction.mode)" if both else ""


@rule(20, names.EXPLAINED_VARIANCE)
def critic_worse_than_mean(rows: Rows, facts: Facts) -> Finding | None:
    """The critic's values are further from the returns than one number would be."""
    # A critic begins at V = 0 and needs some steps; and returns that do not vary cannot be explained.
    if not at_least(rows, 20) or is_flat(rows, 10):
        return None
    explained = middle([r for row in rows[-10:] if learning(row) and (r := _r_squared(row)) is not None], 6)
    if explained is None or explained > CRITIC_WORSE or (facts.control and _values_are_near(rows)):
        return None
    value, target = newest_middle(rows, names.VALUE_MEAN, 10), newest_middle(rows, names.RETURN_MEAN, 10)
    known = value is not None and target is not None
    means = f" (mean value {shown(value or 0.0)}, mean return {shown(target or 0.0)})" if known else ""
    return found(
        rows, "critic_worse_than_mean",
        f"the critic's mean squared error is {shown(1 - explained)} times the returns' variance in"
        f" {span(rows, 10)}{means}, so that one number for all tokens would do better",
        "raise optim.critic.lr, or lower it where value_loss jumps up and down",
        "ppo.critic_warmup = 10, steps in which only the critic learns",
        "model.critic = separate, if it is shared; raise ppo.value_coef if it stays shared",
        serious=explained < CRITIC_SERIOUS,
    )  # fmt: skip


def _r_squared(row: Row) -> float | None:
    """1 − mean (return − value)² / Var(return): explained variance with the critic's constant error counted.

    Explained variance alone is blind to a critic that is off by the same amount everywhere. Where returns are
    advantages + values, which they are unless the critic has a λ of its own, the error's size is in the row.
    """
    explained, spread, bias = (
        number(row, name) for name in (names.EXPLAINED_VARIANCE, names.ADVANTAGE_STD, names.ADVANTAGE_MEAN)
    )
    target, value = number(row, names.RETURN_MEAN), number(row, names.VALUE_MEAN)
    if explained is None or not spread or bias is None or target is None or value is None:
        return explained
    if abs(target - value - bias) > 0.01 * (spread + abs(bias)):
        return explained
    return 1.0 - (1.0 - explained) * (1.0 + (bias / spread) ** 2)


def _values_are_near(rows: Rows) -> bool:
    """Whether values are off by less than VALUES_NEAR of the mean return: where a policy for control always gets
    about the same, there is next to no variance to explain."""
    error, target = newest_middle(rows, names.ADVANTAGE_STD, 10), newest_middle(rows, names.RETURN_MEAN, 10)
    return error is not None and target is not None and error < VALUES_NEAR * abs(target)


@rule(5, names.ENDED_SHARE)
def eos_never(rows: Rows, facts: Facts) -> Finding | None:
    """No response ends by itself: all are cut at the length limit."""
    start, shares = first(rows, names.ENDED_SHARE, 5), newest(rows, names.ENDED_SHARE, 5)
    if len(start) < 5 or len(shares) < 5 or max(shares) > NEVER_ENDS:
        return None
    before = fmean(start)
    expected = before * 5 * (facts.responses or RESPONSES_UNKNOWN)
    lost = before >= ENDED_AT_START and expected >= ENDINGS_EXPECTED
    if not lost and (before > NEVER_ENDS or facts.may_not_end):
        return None
    limit = f" of {facts.max_new_tokens} tokens" if facts.max_new_tokens else ""
    was = f"; {before:.0%} did in the first steps" if lost else " and none did before"
    return found(
        rows, "eos_never",
        f"no response ended by itself in {span(rows, 5)}{was}: all are cut at the limit{limit}",
        "shaping.missing_eos = subtract, so that not ending costs something",
        "raise rollout.max_new_tokens, if answers need more room",
        "look at the prompts (data.chat, data.chat_template) and rollout.stop: can the model know where to end?",
        serious=lost and not facts.may_not_end,
    )  # fmt: skip


@rule(5, names.RESPONSE_LENGTH, names.ENDED_SHARE, unsuited=_short_answers)
def eos_at_once(rows: Rows, facts: Facts) -> Finding | None:
    """Responses are empty, or nearly."""
    length, ended = newest_middle(rows, names.RESPONSE_LENGTH, 5), newest_middle(rows, names.ENDED_SHARE, 5)
    if length is None or ended is None or length > ENDS_AT_ONCE or ended < ENDS_SHARE:
        return None
    if 0 < facts.max_new_tokens <= 2 * ENDS_AT_ONCE:
        return None
    start = first_middle(rows, names.RESPONSE_LENGTH, 3)
    fell = start is not None and start > 2 * ENDS_AT_ONCE
    was = f", from {shown(start)} at the start" if start is not None and fell else ""
    return found(
        rows, "eos_at_once",
        f"responses end at once: {shown(length)} tokens with the EOS token in {span(rows, 5)}{was}",
        "let the reward give nothing, or less than nothing, for an empty response",
        "raise ppo.kl_coef, or lower shaping.missing_eos_penalty: ending early must not pay",
        "look at the prompts: one that ends like a finished text is answered with EOS",
        serious=fell,
    )  # fmt: skip


@rule(
    3, (names.ROLLOUT_GAP, names.FIRST_RATIO_ERROR), any_steps=True, unsuited=_corrected, own_responses=True
)
def rollout_gap(rows: Rows, facts: Facts) -> Finding | None:
    """The engine samples from another policy than the one that is trained."""
    # Responses of an older policy differ as much as the policy has learnt since.
    own = [row for row in rows[-3:] if not number(row, names.STALENESS)]
    gap = middle(newest_of_all(own, names.ROLLOUT_GAP, 3), 3)
    if gap is None:  # with ppo.old_logprobs = rollout the trainer's log-probs are first seen in the update
        gap = middle(newest_of_all(own, names.FIRST_RATIO_ERROR, 3), 3)
    low, high = GAP_FILTERED if facts.filtered else GAP.get(facts.precision, GAP_UNKNOWN)
    if gap is None or gap <= low or _corrected(facts):
        return None
    if facts.filtered:
        advice = (
            "rollout.keep_sampling_mask = true, with which the update renormalises over what the filters kept",
            "ppo.engine_correction.mode = token_truncate, which weighs tokens by the two policies' probabilities",
        )
    else:
        advice = (
            "ppo.engine_correction.mode = token_truncate, which weighs tokens by the two policies' probabilities",
            "report it: the engine handles this type of model wrongly"
            if facts.precision == "float32"
            else "model.precision = float32, to see whether rounding is the cause",
        )
    return found(
        rows, "rollout_gap",
        f"the log-probs of engine and trainer differ by up to {shown(gap)} nats in {span(rows, 3)}"
        f" (usual{' in ' + facts.precision if facts.precision else ''}: below {low:g})",
        *advice,
        serious=gap > high,
    )  # fmt: skip
