"""The rules and the doctor on hand-made rows: thresholds from both sides, few rows, missing and odd numbers."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rows import FACTS, healthy, run_of

import proxlm.doctor
from proxlm.config import ControlConfig, DataSettings, PPOConfig, ShapingSettings
from proxlm.config.tree import is_section, kinds
from proxlm.doctor import RULES, Doctor, Facts, cannot_judge, diagnose, facts_of

UNLIMITED = 10**6


def rules_of(rows, facts=FACTS):
    return [f.rule for f in diagnose(rows, facts)]


def test_hand_made_healthy_run():
    assert rules_of(run_of(120)) == []
    assert rules_of(run_of(120), Facts()) == []


# The rule that must speak, what is changed in every row, and the step at which it speaks.
ILL = [
    ("kl_blow_up", {"kl_per_token": 1.1, "kl": 20.0}, 3),
    ("learning_rate_too_large", {"approx_kl": 0.2}, 3),
    ("learning_rate_too_large", {"ratio_mean": 50.0}, 3),
    ("learning_rate_too_large", {"ratio_max": 5000.0}, 3),
    (
        "learning_rate_too_small",
        {"approx_kl": 1e-9, "kl": 1e-4, "kl_per_token": 1e-5, "clip_fraction": 0.0},
        10,
    ),
    ("clip_never", {"approx_kl": 1e-5, "clip_fraction": 0.0}, 10),
    ("clip_often", {"clip_fraction": 0.35}, 5),
    ("reward_without_variance", {"reward": 1.2, "score": 1.2, "reward_std": 1.2e-7, "kl": 0.0}, 5),
    ("critic_worse_than_mean", {"explained_variance": -0.8}, 20),
    ("eos_never", {"ended_share": 0.0, "eos_share": 0.0}, 5),
    ("eos_at_once", {"response_length": 1.3, "ended_share": 1.0}, 5),
    ("rollout_gap", {"rollout_gap": 0.01}, 3),
    ("weights_drop_tokens", {"engine_weight/dropped_share": 0.31}, 5),
    ("weights_drop_tokens", {"staleness_weight/dropped_share": 0.9}, 5),
    ("gradients_not_finite", {"grad_norm/policy_not_finite": 1.0, "grad_norm/policy": None}, 1),
    ("reward_failed", {"reward_failed": 1.0}, 1),
]


@pytest.mark.parametrize(("rule", "changes", "first"), ILL)
def test_a_number_that_is_wrong_from_the_start(rule, changes, first):
    rows = run_of(40, **changes)
    assert rules_of(rows[: first - 1]) == []  # not too early
    found = diagnose(rows, FACTS)
    assert [f.rule for f in found] == [rule]
    assert (found[0].step, found[0].last) == (first, 40)
    one_bad_step = [*run_of(30), healthy(31, **changes), *(healthy(step) for step in range(32, 60))]
    if rule not in ("gradients_not_finite", "reward_failed"):  # these count, all others are medians
        assert rules_of(one_bad_step) == []


# The rule that must speak, and what is changed from step 31 on.
SLIDES = [
    ("entropy_collapse", {"entropy": 0.1}),
    ("length_hacking", {"response_length": 33.0, "reward_length_correlation": 0.8}),
    ("length_hacking", {"response_length": 9.0, "reward_length_correlation": -0.8}),
    ("repetition", {"repetition": 0.4}),
    ("reward_falls", {"reward": 0.05, "score": 0.05, "kl": 0.0}),
    ("learning_rate_too_large", {"grad_norm/policy": 40.0}),
    ("eos_never", {"ended_share": 0.0}),
    ("eos_at_once", {"response_length": 2.0, "ended_share": 1.0}),
]


@pytest.mark.parametrize(("rule", "changes"), SLIDES)
def test_a_number_that_goes_wrong_later(rule, changes):
    rows = [*run_of(30), *(healthy(step, **changes) for step in range(31, 61))]
    found = diagnose(rows, FACTS)
    assert [f.rule for f in found] == [rule]
    assert 31 < found[0].step <= 45
    assert rules_of([*rows[:30], *(healthy(step) for step in range(31, 61))]) == []


@pytest.mark.parametrize(
    ("rule", "facts", "changes"),
    [
        ("eos_never", replace(FACTS, may_not_end=True), {"ended_share": 0.0}),
        ("eos_at_once", replace(FACTS, max_new_tokens=2), {"response_length": 1.3, "ended_share": 1.0}),
        ("rollout_gap", replace(FACTS, precision="bfloat16"), {"rollout_gap": 0.3}),
        ("rollout_gap", replace(FACTS, rounded=True, corrected=True), {"rollout_gap": 0.2}),
        ("rollout_gap", replace(FACTS, filtered=True, corrected=True), {"rollout_gap": 2.0}),
        ("clip_often", replace(FACTS, loss="gspo"), {"clip_fraction": 0.6}),
        ("kl_blow_up", replace(FACTS, leaves_reference=True), {"kl_per_token": 3.0}),
        ("clip_never", replace(FACTS, loss="trpo"), {"clip_fraction": 0.0, "approx_kl": 1e-5}),
        ("clip_never", replace(FACTS, updates=1), {"clip_fraction": 0.0, "approx_kl": 0.0}),
        (
            "learning_rate_too_small",
            replace(FACTS, lr=1e-2),
            {"clip_fraction": 0.0, "approx_kl": 0.0, "kl": 0.0},
        ),
    ],
)
def test_settings_that_make_a_number_right(rule, facts, changes):
    rows = run_of(40, **changes)
    assert rule in rules_of(rows)
    assert rule not in rules_of(rows, facts)


def test_the_adaptive_controller_left_behind():
    rows = run_of(30, kl=19.0, kl_coef=1e-4)
    assert rules_of(rows) == []
    found = diagnose(rows, replace(FACTS, adaptive=True, kl_target=6.0))
    assert [f.rule for f in found] == ["kl_blow_up"]
    assert "3.17 times ppo.kl_target = 6" in found[0].seen


def test_a_reward_given_back_by_the_adaptive_controller_is_no_fall():
    """β brings the KL from 12 back to its target of 6, and the reward falls with it."""
    start = [*run_of(10), *(healthy(step, kl=12.0, reward=0.9) for step in range(11, 31))]
    rows = [*start, *(healthy(step, kl=6.0, reward=0.5) for step in range(31, 61))]
    adaptive = replace(FACTS, adaptive=True, kl_target=6.0)
    assert "reward_falls" in rules_of(rows)
    assert "reward_falls" not in rules_of(rows, adaptive)
    assert "reward_falls" in rules_of(rows, replace(adaptive, kl_target=13.0))


def test_a_penalty_that_eats_the_reward():
    rows = run_of(30, kl=12.0)  # 0.6, for a reward that rises by 0.12
    found = diagnose(rows, FACTS)
    assert [(f.rule, f.severity, f.step) for f in found] == [("kl_blow_up", "serious", 10)]
    assert "reward − β · KL" in found[0].seen
    assert rules_of(rows, replace(FACTS, penalised=False)) == []
    assert rules_of([row | {"score": 0.2 * row["step"]} for row in rows]) == []


def test_a_penalty_beside_a_reward_that_never_varies_is_not_weighed():
    """The reward's own finding says what is wrong; a penalty of 6.5e-5 says nothing."""
    rows = run_of(30, reward=1.0, score=1.0, reward_std=0.0, kl=1.3e-3, kl_coef=0.05)
    assert rules_of(rows) != []
    assert "kl_blow_up" not in rules_of(rows)


def test_steps_of_the_critic_alone_say_nothing_of_the_policy():
    still = {"warmup": 1.0, "approx_kl": 0.0, "kl": 0.0, "clip_fraction": 0.0, "explained_variance": -3.0}
    rows = [*run_of(30, **still), *(healthy(step) for step in range(31, 80))]
    assert rules_of(rows) == []
    # Failing rewards, skipped gradients and the engine are looked at in these steps too.
    assert rules_of(run_of(5, **still, rollout_gap=0.5)) == ["rollout_gap"]
    assert rules_of(run_of(5, **still, reward_failed=9.0)) == ["reward_failed"]


def test_an_algorithm_without_critic():
    gone = ("value_mean", "value_loss", "explained_variance", "grad_norm/critic", "lr/critic")
    rows = [{k: v for k, v in row.items() if not k.startswith(gone)} for row in run_of(60)]
    assert rules_of(rows) == []
    assert rules_of([row | {"approx_kl": 0.9} for row in rows]) == ["learning_rate_too_large"]


def test_a_critic_with_targets_of_its_own_is_judged_by_explained_variance():
    """Where return − value is not the advantage, the advantage's spread is not the critic's error."""
    assert rules_of(run_of(30, return_mean=5.0)) == []
    assert rules_of(run_of(30, return_mean=5.0, value_mean=4.0, advantage_mean=1.0)) == [
        "critic_worse_than_mean"
    ]


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, "many", True, [1.0]])
def test_numbers_that_are_none_are_passed_over(odd):
    names = [name for name in healthy(1) if name != "step"]
    assert rules_of([dict.fromkeys(names, odd) | {"step": step} for step in range(1, 40)]) == []
    assert rules_of([{"step": step} for step in range(1, 40)]) == []
    assert rules_of([{} for _ in range(40)]) == []
    assert rules_of([]) == []


VALUE = st.none() | st.floats() | st.integers(-UNLIMITED, UNLIMITED) | st.booleans() | st.text(max_size=2)


@given(st.lists(st.dictionaries(st.sampled_from([*healthy(1), "warmup"]), VALUE), max_size=45))
@hypothesis_settings(max_examples=60, deadline=None)
def test_no_row_breaks_a_rule(rows):
    for finding in diagnose(rows, FACTS):
        assert "\n" not in finding.line()


# --- the memory of what has been said ---


def ill_between(begin, end, count, **changes):
    return [healthy(step, **(changes if begin <= step <= end else {})) for step in range(1, count + 1)]


def said(rows):
    doctor = Doctor(FACTS)
    return [(found.last, found.rule, found.severity) for row in rows for found in doctor.see(row)]


@pytest.mark.parametrize(("rule", "changes", "first"), ILL)
def test_a_rule_can_judge_from_the_step_at_which_it_speaks(rule, changes, first):
    assert rule not in cannot_judge(run_of(first, **changes), FACTS)
    if first > 1:
        reason = cannot_judge(run_of(first - 1, **changes), FACTS)[rule]
        assert reason.startswith(f"needs {first} steps")
        assert reason.endswith(f" {first - 1}")


@pytest.mark.parametrize(("rule", "changes", "first"), ILL)
def test_a_rule_without_its_metrics_cannot_judge_and_does_not_speak(rule, changes, first):
    rows = run_of(40, **changes)
    for name in set(rows[0]) - {"step", "time"}:
        without = [{key: value for key, value in row.items() if key != name} for row in rows]
        if rule in cannot_judge(without, FACTS):
            assert rule not in rules_of(without), name
            assert name in cannot_judge(without, FACTS)[rule]
    bare = [{"step": row["step"], "time": row["time"]} for row in rows]
    assert list(cannot_judge(bare, FACTS)) == list(RULES)


def test_which_rules_can_judge():
    assert cannot_judge(run_of(40), FACTS) == {}
    assert set(cannot_judge(run_of(40), replace(FACTS, loss="trpo"))) == {"clip_often", "clip_never"}
    assert set(cannot_judge(run_of(40), replace(FACTS, updates=1))) == {"clip_never"}
    assert set(cannot_judge(run_of(40), replace(FACTS, max_new_tokens=3))) == {"eos_at_once"}
    assert set(cannot_judge(run_of(40), replace(FACTS, leaves_reference=True))) == {"kl_blow_up"}
    assert set(cannot_judge(run_of(40, staleness=1.0), FACTS)) == {"rollout_gap"}
    warming = [row | {"warmup": 1.0} for row in run_of(30)]
    assert set(RULES) - set(cannot_judge(warming, FACTS)) == {
        "gradients_not_finite", "reward_failed", "rollout_gap"
    }  # fmt: skip
    no_critic = [{**row, "explained_variance": None} for row in run_of(40)]
    assert cannot_judge(no_critic, FACTS) == {"critic_worse_than_mean": "no number of explained_variance"}


def test_said_once_while_it_lasts():
    assert said(ill_between(21, 60, 60, clip_fraction=0.4)) == [(23, "clip_often", "warning")]


def test_said_again_only_after_a_good_while():
    flicker = [healthy(s, **({"clip_fraction": 0.4} if s % 20 < 10 else {})) for s in range(20, 120)]
    assert len(said(flicker)) == 1
    apart = [healthy(s, **({"clip_fraction": 0.4} if s % 60 < 10 else {})) for s in range(30, 180)]
    assert len(said(apart)) == 2
    assert [f.rule for f in diagnose(apart, FACTS)] == ["clip_often", "clip_often"]


def test_said_again_when_it_turns_serious_and_the_worst_is_kept():
    rows = [healthy(s, clip_fraction=0.4 if s < 20 or s > 30 else 0.6) for s in range(1, 41)]
    assert said(rows) == [(5, "clip_often", "warning"), (22, "clip_often", "serious")]
    (found,) = diagnose(rows, FACTS)
    assert (found.severity, found.step, found.last) == ("serious", 5, 40)
    assert "60% of the tokens are clipped" in found.seen


def test_findings_are_those_of_now():
    doctor = Doctor(FACTS)
    for row in ill_between(21, 40, 44, clip_fraction=0.4):
        doctor.see(row)
    assert doctor.findings() == []
    (past,) = doctor.history()
    assert (past.step, past.last) == (23, 42)


def test_a_finding_in_one_line_and_as_values():
    (found,) = diagnose(run_of(5, clip_fraction=0.4), FACTS)
    assert found.line() == (
        "doctor, step 5: warning: clip_often: 40% of the tokens are clipped in steps 1–5 (usual: up to 20%), and"
        " teach nothing. Try: lower optim.policy.lr (now 0.0003), two or three times; or lower ppo.epochs, or set"
        " ppo.target_kl = 0.03; or raise ppo.batch_size: updates are less noisy with more responses"
    )
    values = found.as_json()
    assert list(values) == ["rule", "severity", "first_step", "last_step", "seen", "try"]
    assert values["try"] == list(found.advice)


def test_a_long_run_is_read_quickly():
    """Rules look at windows: the work grows with the number of rows, not with its square."""
    doctor = Doctor(Facts())
    for row in run_of(3000):
        doctor.see(row)


# --- settings ---


def test_facts_of_a_job():
    facts = facts_of(PPOConfig())
    assert (facts.responses, facts.updates, facts.lr, facts.may_not_end) == (64, 4, 3e-6, True)
    unknown = [f.name for f in fields(facts) if getattr(facts, f.name) in ("", -1.0)]
    assert unknown == []


def test_a_run_that_pays_for_not_ending_should_end():
    assert not facts_of(PPOConfig(shaping=ShapingSettings(missing_eos="subtract"))).may_not_end
    assert not facts_of(PPOConfig(shaping=ShapingSettings(overlong_buffer=4))).may_not_end
    assert not facts_of(PPOConfig(data=DataSettings(chat=True))).may_not_end


def test_facts_of_control():
    facts = facts_of(ControlConfig())
    assert (facts.control, facts.updates, facts.lr, facts.entropy_coef) == (True, 40, 1e-3, 0.0)
    assert (facts.loss, facts.kl_coef, facts.precision) == ("", -1.0, "")


def test_the_settings_that_are_named_exist():
    def names(kind, at=""):
        for name, of in kinds(kind).items():
            yield at + name
            yield from names(of, f"{at}{name}.") if is_section(of) else ()

    known = set(names(PPOConfig))
    sections = "|".join(kinds(PPOConfig))
    folder = Path(proxlm.doctor.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("rules_*.py")]
    texts.append((folder.parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8"))
    named = {m for text in texts for m in re.findall(rf"\b((?:{sections})(?:\.[a-z_]+)+)\b(?![.(])", text)}
    assert {"ppo.kl_coef", "optim.policy.lr", "reward.on_error"} <= named
    assert named - known == {"evaluation.json", "metrics.jsonl"}  # files


def test_the_page_has_every_rule():
    page = (Path(proxlm.doctor.__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [name for name in RULES if f"`{name}`" not in page] == []


def test_the_doctor_needs_no_torch():
    code = "import proxlm.doctor, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
