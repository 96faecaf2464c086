"""benchmarks/reward_models.py and reward_ensembles.py: what their tables are worked out from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from proxlm.data.preferences import Comparison
from proxlm.types import Completion

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def compared(prompt: str, chosen: str, rejected: str) -> Comparison:
    return Comparison(Completion(prompt, chosen), Completion(prompt, rejected))


def test_every_comparison_is_held_out_once_and_prompts_stay_together(tmp_path: Path) -> None:
    from reward_models import PARTS, parts_of

    every = [compared(f"prompt {i // 2}", f"a{i}", f"b{i}") for i in range(60)]
    parts = parts_of(every, tmp_path)
    assert len(parts) == PARTS
    assert sorted(i for part in parts for i in part.held_out) == list(range(60))
    for part in parts:
        assert sorted(part.held_out + part.others) == list(range(60))
        assert {i ^ 1 for i in part.held_out} == set(part.held_out)  # the other one of its prompt
        lines = (part.folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["chosen"] for line in lines] == [f"a{i}" for i in part.held_out]


def test_length_learns_its_direction_from_the_other_parts(tmp_path: Path) -> None:
    from reward_models import Part, by_length, right

    shorter = [compared(f"p{i}", "x" * (1 + i % 3), "x" * 5) for i in range(8)]
    parts = [Part([0, 1, 2, 3], [4, 5, 6, 7], tmp_path), Part([4, 5, 6, 7], [0, 1, 2, 3], tmp_path)]
    assert right(by_length(shorter, parts)) == [1.0] * 8
    # The held-out part itself has no say: its own comparisons are all the other way round.
    mixed = [compared(f"p{i}", "x" * 7, "x" * 5) for i in range(4)] + shorter[4:]
    assert right(by_length(mixed, parts)) == [0.0] * 8


def test_judges_are_added_whatever_their_scale() -> None:
    from reward_models import right, together

    first, second = [1.0, -1.0, 3.0], [-0.2, 0.6, 0.1]
    added = together(first, second)
    assert together([100 * x for x in first], second) == pytest.approx(added)
    assert added[0] == pytest.approx(1 / math.sqrt(11 / 3) - 0.2 / math.sqrt(0.41 / 3))
    assert right([0.0, 2.0, -1e-9]) == [0.5, 1.0, 0.0]


def test_a_difference_of_accuracies_is_paired() -> None:
    """Judges that are right on the same comparisons but one differ by exactly that one."""
    from reward_models import less

    other = [1.0] * 50 + [-1.0] * 50
    better = [1.0] * 51 + [-1.0] * 49
    found = less([better], other)
    assert found.mean == pytest.approx(0.01)
    # A share of one in 100 has a standard error of 0.01; two independent accuracies would differ by ± 0.07.
    assert found.high - found.mean == pytest.approx(1.984 * 0.01, rel=1e-3)
    assert less([better, other], other).mean == pytest.approx(0.005)
    same = less([other], other)
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)


def test_gold_is_read_where_a_run_first_reaches_a_kl() -> None:
    from reward_ensembles import at_kl, comparable

    kl, gold = [0.0, 4.0, 3.0, 8.0], [0.0, 1.0, 5.0, 2.0]
    points = [{"kl": k, "gold": g} for k, g in zip(kl, gold, strict=True)]
    assert at_kl(points, "gold", 2.0) == pytest.approx(0.5)
    # Reached at the second evaluation; the third has come back from it.
    assert at_kl(points, "gold", 4.0) == pytest.approx(5.0)
    assert at_kl(points, "gold", 6.0) == pytest.approx(5.0 + (2.0 - 5.0) / 2)
    assert at_kl(points, "gold", 99.0) == 2.0
    assert comparable([points, points[:2]]) == [2.5]


def test_the_table_compares_each_arm_with_the_one_model() -> None:
    from reward_ensembles import ARMS, differences, picture, table

    def run(end: float) -> list[dict[str, float]]:
        return [
            {"step": 0.0, "kl": 0.0, "gold": 0.2, "proxy": 0.0},
            {"step": 9.0, "kl": 10.0, "gold": end, "proxy": 3.0},
        ]

    seeds = {
        str(s): {"runs": {arm: run(0.4 + 0.1 * i + 0.01 * i * s) for i, arm in enumerate(ARMS)}}
        for s in range(3)
    }
    found = differences(seeds, "gold", 10.0)
    assert list(found) == list(ARMS)[1:]
    one = found["ensemble, mean"]
    assert one.mean == pytest.approx(0.11)
    assert one.high - one.mean == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    text = table(seeds)
    assert "| ensemble, mean, less one model | +0.03 ± 0.01 |" in text
    assert "| one model | 0.25, 0.25, 0.25 |" in text
    assert picture(seeds).count("<polyline") == 2 * len(ARMS)
