"""What is said at the door of a PPO run: that the base cannot play, as its evaluation before the run shows."""

from __future__ import annotations

from proxlm.config import PPOConfig
from proxlm.doctor.facts import facts_of
from proxlm.evaluation.results import Evaluation
from proxlm.runlog.text import number

# Fewer responses say too little.
ENOUGH = 8
# Of the responses that are empty.
MOSTLY = 0.9


def cannot_play(before: Evaluation, config: PPOConfig) -> list[str]:
    """Why PPO would find nothing to learn from the model's responses, in words; none: nothing is in its way.

    Args:
        before: The sampled responses of the model that the run begins with.
        config: The run's settings.
    """
    rows = before.responses
    if len(rows) < ENOUGH:
        return []
    found = []
    count, ended = len(rows), sum(row["finish"] != "length" for row in rows)
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    if len(rewards) >= ENOUGH and max(rewards) - min(rewards) <= 1e-5 * max(1.0, abs(rewards[0])):
        # With n of n equal, the share of others is below this with 95% confidence (Hanley and Lippman-Hand 1983).
        others = 1 - 0.05 ** (1 / len(rewards))
        same = f"{number(rewards[0])}" + ("" if ended else ", and none ended by itself")
        found.append(
            f"all {len(rewards)} responses before the run have the reward {same}: another one is"
            f" rarer than {others:.1%}, so PPO has next to nothing to learn from; let the model learn solved examples"
            " first (docs/tokens.md), or look at evaluation-before.jsonl"
        )
    elif not ended and not facts_of(config).may_not_end:
        found.append(
            f"none of {count} responses before the run ended by itself within rollout.max_new_tokens ="
            f" {config.rollout.max_new_tokens}: raise it, set rollout.stop, or let the model learn examples that end"
            " (docs/tokens.md)"
        )
    if sum(not row["response"].strip() for row in rows) >= MOSTLY * count:
        found.append(
            f"nearly all of {count} responses before the run are empty: prompts may end in white space, or as"
            " finished texts do (docs/tokens.md)"
        )
    return found
