"""The table at the end of a test run: item of the correctness checklist → how many tests show it → result."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

ITEMS = {
    1: "GAE",
    2: "returns before whitening",
    3: "tokens the policy did not choose",
    4: "terminal and truncated ends",
    5: "decoupled λ",
    6: "length-adaptive λ",
    7: "turn-level GAE",
    8: "whitening, over ranks",
    9: "reward whitening",
    10: "value loss: clipped, categorical",
    11: "value head: zero, or from a reward model",
    12: "critic warm-up",
    13: "explained variance, calibration",
    14: "clipped policy loss",
    15: "ratio 1 in the first minibatch",
    16: "dual clip",
    17: "log-ratio clamp",
    18: "aggregation, invariant to splits",
    19: "GSPO, CISPO, DPPO, Clip-Cov, KL-Cov",
    20: "rollout correction",
    21: "decoupled PPO for stale rollouts",
    22: "entropy bonus, positive examples, KL early stop",
    23: "baselines and the trust region",
    24: "KL in the rewards",
    25: "KL estimators, as reward and as loss",
    26: "adaptive KL",
    27: "scores scaled by the reference's",
    28: "scales, clips, EMA reference, ptx",
    29: "missing EOS, overlong responses",
    30: "sparse rewards, potentials, turns",
    31: "EOS and padding",
    32: "positions, padding, packing, batch, order",
    33: "temperature",
    34: "top-k, top-p, min-p",
    35: "dropout off",
    36: "AdamW and its defaults",
    37: "the reference stays",
    38: "resume",
    39: "enumerated decision process",
    40: "golden numbers of peers",
    41: "control: CartPole, Acrobot, Pendulum",
    42: "V-trace, Retrace",
    43: "comparisons: Bradley–Terry",
    44: "several value heads",
    45: "DPO",
    46: "on-policy distillation",
    47: "credit of tokens against the exact one",
    48: "scores: squared error, Huber",
    49: "classes: cross-entropy",
    50: "steps: binary cross-entropy",
    51: "stacking",
    52: "boosting",
    53: "distillation",
}

PROPERTY = "checklist"

_outcomes: dict[int, list[tuple[str, str]]] = defaultdict(list)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attach the item numbers to each test, so that its report carries them from an xdist worker to the terminal."""
    for item in items:
        for mark in item.iter_markers("checklist"):
            number = mark.args[0]
            if number not in ITEMS:
                raise pytest.UsageError(f"{item.nodeid}: the checklist has no item {number}")
            if (PROPERTY, number) not in item.user_properties:
                item.user_properties.append((PROPERTY, number))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for name, value in report.user_properties:
            if name == PROPERTY:
                _outcomes[int(str(value))].append((report.nodeid, report.outcome))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table; an xdist worker has no terminal, and the controller has every worker's reports."""
    if not _outcomes:
        return
    terminalreporter.section("correctness checklist")
    for number, title in ITEMS.items():
        seen = _outcomes.get(number, [])
        bad = [f"{outcome}: {name}" for name, outcome in seen if outcome != "passed"]
        files = sorted({name.split("::")[0].removeprefix("tests/") for name, _ in seen})
        result = "not run" if not seen else bad[0] if bad else "passed"
        terminalreporter.write_line(
            f"{number:2} {title:<44} {len(seen):4} tests  {result:<8} {', '.join(files)}"
        )
