import asyncio
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import RESPONSES, THREE, score

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.rewards import build_reward
from proxlm.types import Completion, Prompt, Rollout, Scores, Sequences


def rollout() -> Rollout:
    sequences = Sequences.from_lists([[1], [1, 2], [3]], [list(t) for t in RESPONSES.values()])
    return Rollout(
        prompts=[Prompt(i, (1,), "p") for i in range(3)],
        sequences=sequences,
        action_mask=torch.ones(6, dtype=torch.bool),
        logprobs=torch.zeros(6),
        finish=["eos", "eos", "length"],
        texts=list(RESPONSES),
        policy_versions=torch.zeros(6, dtype=torch.int64),
    )


def test_one_function_gives_the_total() -> None:
    scores = score([1, 0.5, -2])
    assert scores.total.dtype == torch.float32
    assert scores.total.tolist() == [1, 0.5, -2]
    assert scores.per_token is None
    assert scores.components == {}
    assert scores.failed == 0


def test_a_rollout_is_scored_by_its_completions() -> None:
    def token_ids(completions: list[Completion]) -> list[list[float]]:
        assert [c.finish for c in completions] == ["eos", "eos", "length"]
        return [[float(t) for t in c.tokens] for c in completions]

    scores = build_reward(RewardSettings(), token_ids)(rollout())
    assert scores.per_token is not None
    assert scores.per_token.dtype == torch.float32
    assert scores.per_token.tolist() == rollout().sequences.response_tokens.tolist()
    assert scores.total.tolist() == [0, 0, 0]


def test_components_are_weighted_and_shown_unweighted() -> None:
    scores = score(
        {"good": [1, 2, 3], "bad": [1, 0, 1], "same": [1, 1, 1]}, weights={"good": 0.5, "bad": -2.0}
    )
    assert scores.total.tolist() == [0.5 - 2 + 1, 1 + 1, 1.5 - 2 + 1]
    assert scores.components == {"good": [1, 2, 3], "bad": [1, 0, 1], "same": [1, 1, 1]}


def test_components_per_token_and_per_response_together() -> None:
    steps = [[1, 2], [3], [0, 0, 4]]
    scores = score({"steps": steps, "end": [1, 1, 2]}, weights={"steps": 0.5})
    assert scores.per_token is not None
    assert scores.per_token.tolist() == [0.5, 1, 1.5, 0, 0, 2]
    assert scores.total.tolist() == [1, 1, 2]
    assert scores.components == {"steps": [3, 3, 4], "end": [1, 1, 2]}


def test_terms_are_a_weighted_sum_under_their_names(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "def both(cs): return {'x': [1.0] * len(cs), 'y': [[2.0] * len(c.tokens) for c in cs]}\n"
        "async def later(cs, by): return [by * len(c.text.split()) for c in cs]\n"
    )
    terms = {
        "words": RewardTerm(use=f"{file}:later", weight=0.5, args={"by": 2}),
        "brevity": RewardTerm(use="length", weight=-1.0, args={"target": 2}),
        "mixed": RewardTerm(use=f"{file}:both", weight=3.0),
    }
    scores = build_reward(RewardSettings(terms=terms))(rollout())
    assert scores.components == {
        "words": [4, 2, 6],
        "brevity": [1, 0.5, 0.5],
        "mixed.x": [1, 1, 1],
        "mixed.y": [4, 2, 6],
    }
    assert scores.total.tolist() == [0.5 * 4 - 1 + 3, 0.5 * 2 - 0.5 + 3, 0.5 * 6 - 0.5 + 3]
    assert scores.per_token is not None
    assert scores.per_token.tolist() == [6] * 6


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=3, max_size=3),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_the_total_is_linear_in_the_weights(rows: list[tuple[float, float]], u: float, v: float) -> None:
    parts = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    total = score(parts, weights={"a": u, "b": v}).total
    assert total.tolist() == pytest.approx([u * a + v * b for a, b in rows], rel=1e-5, abs=1e-5)


def test_a_reward_works_where_a_loop_already_runs() -> None:
    async def slowly(completions: list[Completion]) -> list[float]:
        await asyncio.sleep(0)
        return [2.0] * len(completions)

    async def main() -> Scores:
        return build_reward(RewardSettings(), slowly).score(THREE)

    assert asyncio.run(main()).total.tolist() == [2, 2, 2]


def test_a_function_cannot_reorder_the_batch() -> None:
    def shuffle(completions: list[Completion]) -> list[float]:
        completions.reverse()
        return [0.0] * len(completions)

    given = list(THREE)
    build_reward(RewardSettings(), shuffle).score(given)
    assert given == THREE


def test_an_empty_batch_has_no_scores() -> None:
    scores = build_reward(RewardSettings(use="sentiment")).score([])
    assert scores.total.shape == (0,)
    assert scores.failed == 0
