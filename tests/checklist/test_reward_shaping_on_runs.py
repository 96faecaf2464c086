"""Section 3, items 29 and 30, on whole runs: penalties, potentials, dynamic filtering, temperature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer, vowels, with_ppo
from reward_run_cases import FILTER, Seen, only_even_prompts_vary, steps, zeros

from proxlm.config import RewardSettings, RewardTerm, RolloutSettings, ShapingSettings
from proxlm.data.prompts import PromptStream
from proxlm.errors import ConfigError
from proxlm.rewards import build_reward
from proxlm.rl.ragged import segment_sum
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.train.common.clock import Clock
from proxlm.train.common.schedules import temperature_at
from proxlm.train.ppo.collect import collect
from proxlm.train.ppo.score_shaping import shape_scores
from proxlm.types import Prompt, Rollout, Scores, Sequences


def a_rollout(lengths, finish):
    sequences = Sequences.from_lists([[1]] * len(lengths), [[7] * n for n in lengths])
    total = sum(lengths)
    prompts = [Prompt(i, (1,), "p") for i in range(len(lengths))]
    return Rollout(
        prompts, sequences, torch.ones(total).bool(), torch.zeros(total), finish, [""] * len(lengths), 0
    )


@pytest.mark.checklist(29)
def test_penalties_of_shaped_scores_by_hand():
    """Limit 12, buffer 4: lengths 8, 10, 12 lose 0, half, all of 2; the last is cut and loses 3 more."""
    rollout = a_rollout([8, 10, 12, 12], ["eos", "stop", "length", "eos"])
    scores = Scores(torch.tensor([1.0, 1.0, 1.0, 1.0]))

    def shaped(**settings):
        config = ShapingSettings(overlong_buffer=4, overlong_penalty=2.0, missing_eos_penalty=3.0, **settings)
        return shape_scores(rollout, scores, config, RunningStatistics(), 12, 1.0, bootstrap=False)

    assert shaped().total.tolist() == [1.0, 0.0, -1.0, -1.0]
    assert shaped(missing_eos="subtract").total.tolist() == [1.0, 0.0, -4.0, -1.0]
    assert shaped(missing_eos="replace").total.tolist() == [1.0, 0.0, -5.0, -1.0]
    # Penalties come after the clip, so they are felt in full.
    assert shaped(clip=0.5, missing_eos="subtract").total.tolist() == [0.5, -0.5, -4.5, -1.5]
    seen = RunningStatistics(4.0, 1.0, 16.0)  # are of no use without a scale
    cut = shape_scores(rollout, scores, ShapingSettings(clip=5.0), seen, 12, 1.0, bootstrap=False)
    assert cut.total.tolist() == [1.0] * 4
    plain = shape_scores(rollout, scores, ShapingSettings(), seen, 12, 1.0, bootstrap=False)
    assert plain.total.tolist() == [1.0] * 4
    assert plain.per_token is None


@pytest.mark.checklist(30)
def test_a_cut_response_keeps_its_last_potential_where_it_is_bootstrapped():
    rollout = a_rollout([2, 2], ["eos", "length"])
    scores = Scores(torch.zeros(2), potentials=torch.tensor([1.0, 4.0, 1.0, 4.0]))
    config = ShapingSettings()
    ended = shape_scores(rollout, scores, config, RunningStatistics(), 2, 0.5, bootstrap=False)
    assert ended.per_token.tolist() == [0.5, -1.0, 0.5, -1.0]
    goes_on = shape_scores(rollout, scores, config, RunningStatistics(), 2, 0.5, bootstrap=True)
    assert goes_on.per_token.tolist() == [0.5, -1.0, 0.5, 1.0]


@pytest.mark.checklist(29)
def test_the_overlong_penalty_reaches_a_runs_rewards(tokenizer, monkeypatch):
    shaping = ShapingSettings(overlong_buffer=12, overlong_penalty=1.2)
    made = trainer(tokenizer, job(steps=1, shaping=shaping), None)
    seen = Seen(made, monkeypatch)
    (row,) = steps(made, 1)
    experience = seen.experiences[0]
    lengths = experience.sequences.response_lengths.float()
    sums = segment_sum(experience.rewards, experience.sequences.response_offsets)
    assert torch.allclose(sums, seen.scores[0].total - 0.1 * lengths, atol=1e-5)
    assert row["reward"] == pytest.approx(float(seen.scores[0].total.mean()), abs=1e-6)
    assert row["score"] == pytest.approx(float(sums.mean()), abs=1e-5)


@pytest.mark.checklist(30)
def test_rewards_of_tokens_stand_on_their_tokens(tokenizer, monkeypatch):
    def each(rollout):
        return Scores(torch.ones(len(rollout)), per_token=torch.arange(len(rollout.logprobs)).float())

    made = trainer(tokenizer, job(steps=1), None, reward=each)
    seen = Seen(made, monkeypatch)
    steps(made, 1)
    rewards, offsets = seen.experiences[0].rewards, seen.experiences[0].sequences.response_offsets
    wanted = torch.arange(len(rewards)).float()
    wanted[offsets[1:] - 1] += 1.0
    assert torch.equal(rewards, wanted)


HINTS = """
def counted(completions):
    return [[float(len(c.tokens) - i) for i in range(len(c.tokens))] for c in completions]

def whole(completions):
    return [0.5 for _ in completions]

def one_each(completions):
    return [[1.0] * len(c.tokens) for c in completions]
"""


def reward_of(tmp_path, **terms):
    file = tmp_path / "hints.py"
    file.write_text(HINTS)
    made = {
        name: RewardTerm(use=f"{file}:{function}", potential=potential, weight=weight)
        for name, (function, potential, weight) in terms.items()
    }
    return build_reward(RewardSettings(terms=made))


@pytest.mark.checklist(30)
def test_a_potential_term_goes_into_potentials_and_not_into_the_reward(tmp_path):
    rollout = a_rollout([2, 3], ["eos", "eos"])
    found = reward_of(tmp_path, real=("whole", False, 2.0), hint=("counted", True, 3.0))(rollout)
    assert found.total.tolist() == [1.0, 1.0]
    assert found.per_token is None
    assert found.potentials.tolist() == [6.0, 3.0, 9.0, 6.0, 3.0]
    assert set(found.components) == {"real", "hint"}
    both = reward_of(
        tmp_path, real=("one_each", False, 1.0), hint=("counted", True, 1.0), more=("one_each", True, 1.0)
    )(rollout)
    assert both.per_token.tolist() == [1.0] * 5
    assert both.potentials.tolist() == [3.0, 2.0, 4.0, 3.0, 2.0]
    shaped = shape_scores(rollout, both, ShapingSettings(), RunningStatistics(), 12, 0.5, bootstrap=False)
    # F + 1: 0.5 · 3, −3 | 0.5 · 4, 0.5 · 3 − 4, −3
    assert shaped.per_token.tolist() == [2.5, -2.0, 3.0, -1.5, -2.0]


@pytest.mark.checklist(30)
def test_a_potential_that_is_one_number_for_a_response_is_refused(tmp_path):
    reward = reward_of(tmp_path, real=("whole", False, 1.0), hint=("whole", True, 1.0))
    with pytest.raises(ConfigError, match=r"reward\.terms\.hint\.potential.*a number for each token"):
        reward(a_rollout([2, 3], ["eos", "eos"]))


@pytest.mark.checklist(30)
def test_hints_of_a_run_add_nothing_to_a_response(tokenizer, tmp_path, monkeypatch):
    reward = reward_of(tmp_path, real=("whole", False, 2.0), hint=("counted", True, 3.0))
    made = trainer(tokenizer, job(steps=1), None, reward=reward)
    seen = Seen(made, monkeypatch)
    (row,) = steps(made, 1)
    experience = seen.experiences[0]
    offsets = experience.sequences.response_offsets
    sums = segment_sum(experience.rewards, offsets)
    assert torch.allclose(sums, torch.ones(len(sums)), atol=1e-4)
    assert row["reward"] == row["score"] == 1.0
    starts = offsets[:-1]
    longer = experience.sequences.response_lengths > 1
    lengths = experience.sequences.response_lengths.float()
    assert torch.equal(experience.rewards[starts][longer], 3.0 * lengths[longer])


@pytest.mark.checklist(30)
def test_only_prompts_with_unequal_rewards_are_kept(tokenizer):
    config = job(steps=2, **FILTER)
    made = trainer(tokenizer, config, None, reward=only_even_prompts_vary)
    rollout, scores, draws, metrics = collect(
        made.engine,
        made.prompts,
        only_even_prompts_vary,
        config,
        temperature=1.0,
        draw=0,
        clock=Clock(SilentLog()),
    )
    ids = [p.id for p in rollout.prompts]
    assert all(i % 2 == 0 for i in ids)
    assert len(ids) == len(scores.total) == 12
    assert all(ids.count(i) == 2 for i in ids)  # whole groups
    assert draws == metrics["filter/draws"] > 1
    assert metrics["filter/kept_prompts"] == 6
    assert metrics["filter/drawn_prompts"] == 6 * draws
    offered = [p.id for d in range(draws) for p in made.prompts.batch(d)]
    assert list(dict.fromkeys(ids)) == [i for i in offered if i % 2 == 0][:6]
    (row,) = steps(made, 1)
    assert made.state.draws == draws == row["filter/draws"]
    (after,) = steps(made, 1)
    assert made.state.draws == draws + after["filter/draws"]


@pytest.mark.checklist(30)
def test_a_prompt_twice_in_a_batch_makes_no_step_larger(tokenizer):
    """Batches of 4 of 3 prompts: one stands twice in each, and its two groups count as two."""
    config = job(steps=1, batch_size=4, samples_per_prompt=2, filter_groups=True)
    made = trainer(tokenizer, config, None)
    stream = PromptStream(made.prompts.prompts[:3], 4, seed=0)
    for draw in range(4):
        rollout, *_ = collect(
            made.engine,
            stream,
            vowels,
            config,
            temperature=1.0,
            draw=draw,
            clock=Clock(SilentLog()),
        )
        assert len(rollout) <= 8
        assert len({p.id for p in rollout.prompts}) <= 3


@pytest.mark.checklist(30)
def test_without_filtering_a_step_draws_once(tokenizer):
    made = trainer(tokenizer, job(steps=2), None, reward=only_even_prompts_vary)
    rows = steps(made, 2)
    assert made.state.draws == 2
    assert not any(key.startswith("filter/") for row in rows for key in row)


@pytest.mark.checklist(30)
def test_a_step_whose_rewards_are_all_equal_still_runs(tokenizer):
    made = trainer(tokenizer, job("separate", steps=2, kl_coef=0.0, **FILTER), None, reward=zeros)
    before = parameters(made)
    rows = steps(made, 2)
    assert [(r["filter/draws"], r["filter/kept_prompts"]) for r in rows] == [(4, 0)] * 2
    assert (made.state.draws, made.state.step) == (8, 2)
    after = parameters(made)
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("critic."))


@pytest.mark.checklist(33)
def test_the_temperature_schedule():
    config = RolloutSettings(temperature=1.2, final_temperature=0.8)
    assert [temperature_at(config, s, 5) for s in range(5)] == pytest.approx([1.2, 1.1, 1.0, 0.9, 0.8])
    assert temperature_at(config, 0, 1) == 1.2
    assert temperature_at(RolloutSettings(temperature=0.7), 3, 5) == 0.7


@pytest.mark.checklist(15)
@pytest.mark.checklist(33)
def test_a_run_whose_temperature_moves_has_ratio_1_at_each_start(tokenizer):
    config = replace(
        job(steps=4, lr=3e-3),
        rollout=RolloutSettings(max_new_tokens=12, temperature=0.5, final_temperature=2.0),
    )
    rows = steps(trainer(tokenizer, config, None), 4)
    assert [r["temperature"] for r in rows] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    for row in rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["rollout_gap"] < 1e-4
    assert rows[0]["kl"] == 0.0
    assert rows[3]["entropy"] > rows[0]["entropy"]
    kept = steps(trainer(tokenizer, with_ppo(job(steps=1)), None), 1)
    assert kept[0]["temperature"] == 1.0
