"""Rules about the policy: its KL to the reference, and its entropy.

Each looks at the newest steps and returns a Finding or None; above it is what it needs to judge. docs/doctor.md has
the table of all rules.
"""

from __future__ import annotations

from statistics import median

from proxlm.doctor.facts import RESPONSES_UNKNOWN, Facts
from proxlm.doctor.finding import Finding, found, now
from proxlm.doctor.rule import rule
from proxlm.doctor.window import (
    Rows,
    at_least,
    first,
    first_middle,
    has_learnt,
    newest,
    newest_middle,
    number,
    span,
)
from proxlm.runlog import metric_names as names
from proxlm.runlog.text import number as shown

# KL to the reference. At 1 nat per token the policy finds its own tokens e times likelier than the reference does.
# This project's healthy runs end at 0.2 (stories) to 0.6 (demo). Gao et al. 2022 ("Scaling laws for reward model
# overoptimization"): as the KL grows, a learnt reward is over-optimised and the true one falls again.
KL_PER_TOKEN = 1.0
KL_PER_TOKEN_SERIOUS = 2.0
# The adaptive controller moves β by at most 20% per kl_horizon responses (Ziegler et al. 2019) and overshoots by
# itself; three times the target is beyond that.
KL_OVER_TARGET = 3.0
# A penalty below this share of the spread of rewards is too small to speak of.
KL_COST_SHARE = 0.2

# Entropy per token. Cui et al. 2025 ("The entropy mechanism of reinforcement learning for reasoning language
# models"): once entropy is used up, the reward stops growing. exp(0.3) = 1.35 and exp(0.05) = 1.05 tokens to choose
# from.
ENTROPY_SHARE = 0.2
ENTROPY_LOW = 0.3
ENTROPY_GONE = 0.05


def _taught(facts: Facts) -> str:
    return (
        "the policy goes from the reference to its teacher (model.teacher)" if facts.leaves_reference else ""
    )


@rule(3, (names.KL_PER_TOKEN, names.KL), unsuited=_taught)
def kl_blow_up(rows: Rows, facts: Facts) -> Finding | None:
    """The policy is so far from the reference that its texts get worse or the penalty outweighs the reward.

    Not where it is to go from there to a teacher.
    """
    if facts.leaves_reference:
        return None
    per_token, kl = newest_middle(rows, names.KL_PER_TOKEN, 3), newest_middle(rows, names.KL, 3)
    seen, serious = "", False
    advice = [
        f"raise ppo.kl_coef{now(facts.kl_coef)}",
        "lower ppo.kl_horizon, so that β moves faster" if facts.adaptive else "ppo.kl_controller = adaptive",
        "lower optim.policy.lr or ppo.epochs",
    ]
    if per_token is not None and per_token > KL_PER_TOKEN:
        serious = per_token > KL_PER_TOKEN_SERIOUS
        whole = f" ({shown(kl)} per response)" if kl is not None else ""
        seen = f"the KL to the reference is {shown(per_token)} nats per token{whole} in {span(rows, 3)}"
    elif (costs := _kl_costs(rows, facts)) is not None:
        seen, serious = costs, True
        advice = [*advice[::-1], "look at the critic and the reward: the policy drifts without learning"]
    elif _over_target(rows, facts) and kl is not None:
        seen = (
            f"the KL is {shown(kl)} nats per response in {span(rows, 3)}, {shown(kl / facts.kl_target)} times"
            f" ppo.kl_target = {facts.kl_target:g}: the adaptive controller does not keep up"
        )
    return found(rows, "kl_blow_up", seen, *advice, serious=serious) if seen else None


def _over_target(rows: Rows, facts: Facts) -> bool:
    """Whether the adaptive controller is left far behind."""
    kl = newest_middle(rows, names.KL, 3)
    if kl is None or not facts.adaptive or facts.kl_target <= 0 or not at_least(rows, 10):
        return False
    return kl > KL_OVER_TARGET * facts.kl_target


def _kl_costs(rows: Rows, facts: Facts) -> str | None:
    """Words, if reward − β · KL is lower than at the start by more than chance: the run lost by its own measure."""
    if not facts.penalised or not at_least(rows, 10):
        return None
    name = names.SCORE if number(rows[-1], names.SCORE) is not None else names.REWARD
    before, after = first(rows, name, 3), newest(rows, name, 5)
    coefficients, kls = newest(rows, names.KL_COEF, 5), newest(rows, names.KL, 5)
    spread = newest_middle(rows, names.REWARD_STD, 5)
    if len(before) < 3 or any(len(values) < 5 for values in (after, coefficients, kls)) or not spread:
        return None  # without a spread of rewards there is nothing to weigh the penalty against
    gain = sum(after) / 5 - sum(before) / 3
    cost = median(b * k for b, k in zip(coefficients, kls, strict=True))
    # The standard error of the gain, from the spread within a step.
    error = spread * ((1 / 5 + 1 / 3) / (facts.responses or RESPONSES_UNKNOWN)) ** 0.5
    if cost < KL_COST_SHARE * spread or cost <= gain + 3 * error:
        return None
    change = f"{shown(abs(gain))} {'above' if gain >= 0 else 'below'} its start"
    return (
        f"the KL penalty costs {shown(cost)} in {span(rows, 5)}, and the reward is {change}: by reward − β · KL the"
        " policy was better before it learnt"
    )


@rule(8, names.ENTROPY)
def entropy_collapse(rows: Rows, facts: Facts) -> Finding | None:
    """The policy is nearly deterministic: every sample is the same, and nothing new is tried."""
    start, entropy = first_middle(rows, names.ENTROPY, 3), newest_middle(rows, names.ENTROPY, 5)
    if start is None or entropy is None or not at_least(rows, 8):
        return None
    if entropy >= ENTROPY_SHARE * start or entropy >= ENTROPY_LOW or (facts.control and has_learnt(rows)):
        return None
    return found(
        rows, "entropy_collapse",
        f"entropy is {shown(entropy)} nats per token in {span(rows, 5)}, from {shown(start)} at the start",
        f"raise ppo.entropy_coef{now(facts.entropy_coef)}, for instance by 0.01",
        "raise ppo.clip_high to 0.28 (DAPO), which lets rare tokens grow",
        "raise ppo.kl_coef or lower optim.policy.lr",
        serious=entropy < ENTROPY_GONE,
    )  # fmt: skip
