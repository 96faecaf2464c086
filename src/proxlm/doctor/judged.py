"""Which rules can judge a run, and why the others cannot: their metrics, the steps they need, the settings.

A rule that returns None says "nothing wrong" and "I cannot know" alike; this tells them apart. The tests compare it
with what the rules do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxlm.doctor.doctor import RULES
from proxlm.doctor.facts import Facts
from proxlm.doctor.rules_held_out import EVALUATIONS, GREEDY, SAMPLED
from proxlm.doctor.window import Rows, evaluations, learning, number
from proxlm.runlog import metric_names as names
from proxlm.runlog.metric_names import Metric


@dataclass(frozen=True)
class _Needs:
    """What a rule needs to judge.

    steps: in which the policy learns, or with `any_steps` steps of any kind; metrics: of each group at least one;
    evaluations: how many of held-out prompts during the run; unsuited: why settings leave nothing to judge, or "".
    """

    steps: int
    metrics: tuple[tuple[Metric, ...], ...]
    any_steps: bool = False
    evaluations: int = 0
    unsuited: Callable[[Facts], str] = lambda _: ""


def _not_clipped(facts: Facts) -> str:
    return f"ppo.loss = {facts.loss} does not clip as ppo does" if facts.loss not in ("", "ppo") else ""


def _never_clipped(facts: Facts) -> str:
    one = "one optimiser step for each rollout, whose ratio is always 1" if facts.updates == 1 else ""
    return _not_clipped(facts) or one


def _moving_reference(facts: Facts) -> str:
    both = facts.updates == 1 and facts.reference_moves
    return "one optimiser step for each rollout, and a reference that moves" if both else ""


def _taught(facts: Facts) -> str:
    return (
        "the policy goes from the reference to its teacher (model.teacher)" if facts.leaves_reference else ""
    )


def _short_answers(facts: Facts) -> str:
    limit = facts.max_new_tokens
    return f"rollout.max_new_tokens = {limit} leaves no room to end late" if 0 < limit <= 4 else ""


def _corrected(facts: Facts) -> str:
    both = facts.filtered and facts.corrected
    return "the gap of filtered sampling is corrected (ppo.engine_correction.mode)" if both else ""


_POLICY_NORM = names.GRAD_NORM_MODEL("policy")
_NOT_FINITE = tuple(names.GRAD_NORM_MODEL_NOT_FINITE(who) for who in ("policy", "critic"))
_NEEDS = {
    "gradients_not_finite": _Needs(1, (_NOT_FINITE,), any_steps=True),
    "reward_failed": _Needs(1, ((names.REWARD_FAILED,),), any_steps=True),
    "rollout_gap": _Needs(
        3, ((names.ROLLOUT_GAP, names.FIRST_RATIO_ERROR),), any_steps=True, unsuited=_corrected
    ),
    "weights_drop_tokens": _Needs(5, (tuple(map(names.WEIGHT_DROPPED, names.CAUSES)),)),
    "filters_drop_much": _Needs(5, ((names.DROPPED_MASS,),)),
    "learning_rate_too_large": _Needs(
        3, ((names.APPROX_KL, names.RATIO_MEAN, names.RATIO_MAX, _POLICY_NORM),)
    ),
    "learning_rate_too_small": _Needs(10, ((names.APPROX_KL,), (names.KL,)), unsuited=_moving_reference),
    "clip_often": _Needs(5, ((names.CLIP_FRACTION,),), unsuited=_not_clipped),
    "clip_never": _Needs(10, ((names.CLIP_FRACTION,), (names.APPROX_KL,)), unsuited=_never_clipped),
    "reward_without_variance": _Needs(5, ((names.REWARD,), (names.REWARD_STD,))),
    "kl_blow_up": _Needs(3, ((names.KL_PER_TOKEN, names.KL),), unsuited=_taught),
    "entropy_collapse": _Needs(8, ((names.ENTROPY,),)),
    "critic_worse_than_mean": _Needs(20, ((names.EXPLAINED_VARIANCE,),)),
    "reward_falls": _Needs(20, ((names.REWARD,),)),
    "held_out_falls": _Needs(2, ((names.REWARD,), (names.REWARD_STD,), (SAMPLED,)), evaluations=EVALUATIONS),
    "greedy_unchanged": _Needs(2, ((names.REWARD_STD,), (SAMPLED,), (GREEDY,)), evaluations=EVALUATIONS),
    "length_hacking": _Needs(8, ((names.REWARD_LENGTH_CORRELATION,), (names.RESPONSE_LENGTH,))),
    "repetition": _Needs(8, ((names.REPETITION,),)),
    "eos_never": _Needs(5, ((names.ENDED_SHARE,),)),
    "eos_at_once": _Needs(5, ((names.RESPONSE_LENGTH,), (names.ENDED_SHARE,)), unsuited=_short_answers),
}


def cannot_judge(rows: Rows, facts: Facts) -> dict[str, str]:
    """The rules that could not judge a run, each with the reason.

    Args:
        rows: The run's metric rows.
        facts: Its settings.

    Returns:
        Reason by rule, in the order of the rules; empty where all could.
    """
    learnt = sum(map(learning, rows))
    # Responses of an older policy differ as much as the policy has learnt since: no gap can be seen in them.
    own = [row for row in rows if not number(row, names.STALENESS)]
    found = {}
    for rule in RULES:
        looked = own if rule == "rollout_gap" else rows
        if reason := _reason(_NEEDS[rule], looked, learnt, facts):
            found[rule] = reason
    return found


def _reason(needs: _Needs, rows: Rows, learnt: int, facts: Facts) -> str:
    if unsuited := needs.unsuited(facts):
        return unsuited
    steps = len(rows) if needs.any_steps else learnt
    if steps < needs.steps:
        kind = "" if needs.any_steps else " in which the policy learns"
        return f"needs {needs.steps} steps{kind}, there {'is' if steps == 1 else 'are'} {steps}"
    if lacking := next((_missing(group) for group in needs.metrics if not _known(rows, group)), ""):
        return lacking
    evaluated = len(evaluations(rows))
    if evaluated < needs.evaluations:
        return f"needs {needs.evaluations} evaluations (evaluation.every), there are {evaluated}"
    return ""


def _known(rows: Rows, group: Sequence[Metric]) -> bool:
    return any(number(row, name) is not None for row in rows for name in group)


def _missing(group: Sequence[Metric]) -> str:
    return f"no number of {' or '.join(group)}"
