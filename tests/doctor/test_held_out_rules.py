"""Rules over the evaluations during a run: bounds from both sides, few evaluations, what is missing."""

from __future__ import annotations

import pytest
from rows import FACTS, healthy

from proxlm.doctor import cannot_judge, diagnose

PAIRS = ["evaluation/reward", "evaluation/greedy/reward"]


def evaluated(sampled, greedy, every=5, **changes):
    """A row for each step, with evaluations every `every` steps."""
    rows = []
    for step in range(1, every * len(sampled) + 1):
        row = healthy(step, **changes)
        for name, values in zip(PAIRS, (sampled, greedy), strict=True):
            row[name] = values[step // every - 1] if step % every == 0 else None
        rows.append(row)
    return rows


def found(rows):
    return {f.rule: f for f in diagnose(rows, FACTS)}


@pytest.mark.parametrize(
    ("sampled", "greedy", "speaks"),
    [
        ([0.1, 0.1, 0.2, 0.3], [0.4, 0.4, 0.4, 0.4], True),  # rises by 0.15, a third of 0.35 is 0.117
        ([0.1, 0.1, 0.2, 0.2], [0.4, 0.4, 0.4, 0.4], False),  # by 0.1
        ([0.1, 0.1, 0.2, 0.3], [0.4, 0.4, 0.4, 0.47], True),  # the greedy one by 0.035, a quarter is 0.0375
        ([0.1, 0.1, 0.2, 0.3], [0.4, 0.4, 0.4, 0.48], False),
        ([0.1, 0.1, 0.2, 0.3], [0.4, 0.4, 0.3, 0.2], True),
        ([0.1, 0.1, 0.3], [0.4, 0.4, 0.4], False),  # too few
        ([0.3, 0.3, 0.3, 0.3], [0.4, 0.4, 0.4, 0.4], False),
    ],
)
def test_sampling_that_only_becomes_sharper(sampled, greedy, speaks):
    findings = found(evaluated(sampled, greedy))
    assert set(findings) == ({"greedy_unchanged"} if speaks else set())
    if speaks:
        one = findings["greedy_unchanged"]
        assert (one.severity, one.step) == ("warning", 20)
        assert "from 0.100 to 0.250" in one.seen
        assert "likeliest answer hardly better" in one.seen


@pytest.mark.parametrize(
    ("sampled", "severity"),
    [
        ([0.2, 0.6, 0.6, 0.5, 0.4], "warning"),  # 0.6 → 0.45
        ([0.2, 0.6, 0.6, 0.5, 0.5], None),  # 0.6 → 0.5: less than 0.117
        ([0.2, 0.6, 0.6, 0.3, 0.1], "serious"),  # by 0.4, more than 0.35
        ([0.4, 0.6, 0.4, 0.45, 0.5], None),  # one good evaluation is not two
        ([0.2, 0.5, 0.6, 0.7, 0.8], None),
    ],
)
def test_a_held_out_reward_that_falls(sampled, severity):
    # The greedy reward rises with the training one, so that the other rule is silent.
    findings = found(evaluated(sampled, [0.1, 0.2, 0.4, 0.6, 0.8]))
    assert {rule: f.severity for rule, f in findings.items()} == (
        {"held_out_falls": severity} if severity else {}
    )
    if severity:
        assert "fell from 0.600 at step 15" in findings["held_out_falls"].seen


@pytest.mark.parametrize(
    ("dropped", "severity"),
    [(0.19, None), (0.21, "warning"), (0.49, "warning"), (0.51, "serious"), (None, None)],
)
def test_filters_that_leave_out_much(dropped, severity):
    rows = [healthy(step, dropped_mass=dropped) for step in range(1, 6)]
    findings = found(rows)
    assert {rule: f.severity for rule, f in findings.items()} == (
        {"filters_drop_much": severity} if severity else {}
    )
    if dropped == 0.21:  # 0.79 ** 10
        assert "leave out 21% of a token's probability in steps 1–5" in findings["filters_drop_much"].seen
        assert "with probability 0.095" in findings["filters_drop_much"].seen
    assert ("filters_drop_much" in cannot_judge(rows, FACTS)) == (dropped is None)
    assert found(rows[:4]) == {}  # a median of five


def test_where_the_training_reward_falls_too_it_is_another_fault():
    rows = evaluated([0.2, 0.6, 0.6, 0.3, 0.1], [0.1, 0.2, 0.4, 0.6, 0.8])
    rows = [row | {"reward": 0.5 - 0.01 * row["step"], "score": 0.3} for row in rows]
    assert "held_out_falls" not in found(rows)


def test_without_evaluations_the_rules_cannot_judge():
    rules = ("greedy_unchanged", "held_out_falls")
    few = cannot_judge(evaluated([0.1] * 3, [0.2] * 3), FACTS)
    assert [few[rule] for rule in rules] == ["needs 4 evaluations (evaluation.every), there are 3"] * 2
    assert not set(rules) & set(cannot_judge(evaluated([0.1] * 4, [0.2] * 4), FACTS))
    none = cannot_judge([healthy(s, **dict.fromkeys(PAIRS)) for s in range(1, 41)], FACTS)
    assert [none[rule] for rule in rules] == ["no number of evaluation/reward"] * 2
    sampled_alone = [row | {"evaluation/greedy/reward": None} for row in evaluated([0.1] * 5, [0.2] * 5)]
    assert cannot_judge(sampled_alone, FACTS) == {"greedy_unchanged": "no number of evaluation/greedy/reward"}
    assert found(sampled_alone) == {}
