"""Scoring beside the writing: the same scores, the same groups at any batch size, errors at once."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, run, trainer, vowels

from proxlm.config import DataSettings, EnvironmentSettings, RewardSettings, RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.errors import RewardError, RunError
from proxlm.rewards import build_reward
from proxlm.train.common.clock import Clock
from proxlm.train.ppo import overlapped_scoring as overlap_module
from proxlm.train.ppo.collect import collect
from proxlm.types import Prompt, Scores
from small_models import WORDS, tiny_model

# Seconds after which what hangs has failed.
SAFE = 60.0


class Deals:
    """Prompts of given lengths, the same in every batch."""

    def __init__(self, tokenizer, lengths):
        ids = tokenizer(" ".join(WORDS * 3)).input_ids
        self.prompts = [Prompt(i, tuple(ids[i : i + n]), f"p{i}") for i, n in enumerate(lengths)]

    def batch(self, _draw):
        return self.prompts


class Log(SilentLog):
    """Calls `hear` with (phase, done, total)."""

    def __init__(self, hear):
        super().__init__()
        self.hear, self.now = hear, ""

    def phase(self, name):
        self.now = name

    def progress(self, done, total):
        self.hear(self.now, done, total)


def settings(size, batch_size=4, tokens=12, stop=(), reward=RewardSettings(), **ppo):  # noqa: B008
    config = job(**ppo)
    return replace(
        config,
        rollout=RolloutSettings(max_new_tokens=tokens, batch_size=batch_size, stop=list(stop)),
        reward=replace(reward, overlap=size),
    )


def collected(
    tokenizer, reward, config, lengths=(5, 2, 9, 2, 5, 1, 3, 3, 4, 8, 2, 6), hear=lambda *_: None, deals=None
):
    """One step's (rollout, scores, draws, metrics, clock)."""
    clock = Clock(Log(hear))
    found = collect(
        NativeEngine(tiny_model(tokenizer), config.rollout),
        deals or Deals(tokenizer, lengths),
        reward,
        config,
        temperature=2.0,
        draw=0,
        clock=clock,
    )
    return *found, clock


def letters(completions):
    """Of each response alone: a number, and numbers of its tokens."""
    return {
        "vowels": [sum(c in "aeiou" for c in one.text) / 7 for one in completions],
        "tokens": [[0.1 * (t % 10) for t in one.tokens] for one in completions],
    }


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_scores_are_bit_for_bit_those_of_all_together(tokenizer, size):
    reward = build_reward(RewardSettings(), letters)
    plain, wanted, *_ = collected(tokenizer, reward, settings(0, stop=["e"]))
    rollout, scores, *_ = collected(tokenizer, reward, settings(size, stop=["e"]))
    assert torch.equal(rollout.sequences.tokens, plain.sequences.tokens)
    assert torch.equal(rollout.logprobs, plain.logprobs)
    assert (rollout.texts, rollout.finish, rollout.prompts) == (plain.texts, plain.finish, plain.prompts)
    assert torch.equal(scores.total, wanted.total)
    assert torch.equal(scores.per_token, wanted.per_token)
    assert scores.components == wanted.components
    assert len(set(wanted.total.tolist())) > 3
    assert len(set(rollout.sequences.response_lengths.tolist())) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_groups_are_neighbours_in_the_order_of_prompt_lengths_at_any_batch_size(tokenizer, batch_size):
    calls, inside, threads = [], [], set()

    def seen(rollout):
        inside.append(1)
        assert len(inside) == 1  # one at a time
        calls.append([p.id for p in rollout.prompts])
        threads.add(threading.get_ident())
        inside.pop()
        return vowels(rollout)

    config = settings(4, batch_size, samples_per_prompt=2)
    rollout, scores, *_ = collected(tokenizer, seen, config, lengths=(5, 2, 9, 2, 5))
    assert calls == [[1, 1, 3, 3], [0, 0, 4, 4], [2, 2]]
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert [p.id for p in rollout.prompts] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert torch.equal(scores.total, vowels(rollout).total)


def test_the_reward_works_while_others_are_written(tokenizer):
    """The reward of the first group waits for the writing to go on, which waits for the reward to begin."""
    begun, written = threading.Event(), threading.Event()

    def reward(rollout):
        begun.set()
        assert written.wait(SAFE)
        return vowels(rollout)

    def hear(phase, done, _total):
        if (phase, done) == ("generate", 8):
            assert begun.wait(SAFE)
            assert not written.is_set()
        if phase == "generate" and done >= 10:
            written.set()

    _, scores, _, _, clock = collected(tokenizer, reward, settings(2, batch_size=2), hear=hear)
    assert len(scores.total) == 12
    assert clock.overlapped["score_overlapped"] > 0.0


def test_a_step_counts_the_time_beside_it_in_no_sum(tokenizer, tmp_path):
    (row,) = run(trainer(tokenizer, settings(3, steps=1), tmp_path / "a"))
    phases = [row[f"time/{phase}"] for phase in ("generate", "score", "prepare", "update")]
    assert row["time/step"] == pytest.approx(sum(phases), rel=1e-9)
    assert "time/score_overlapped" in row
    (row,) = run(trainer(tokenizer, settings(0, steps=1), tmp_path / "b"))
    assert "time/score_overlapped" not in row


def test_waiting_for_the_reward_is_progress_of_its_phase(tokenizer):
    """What the watchdog looks at: the reward begins once none of the responses is scored."""
    waits, heard = threading.Event(), []

    def reward(rollout):
        assert waits.wait(SAFE)
        return vowels(rollout)

    def hear(phase, done, total):
        if phase == "score":
            heard.append((done, total))
            waits.set()

    collected(tokenizer, reward, settings(5), hear=hear)
    assert heard[0] == (0, 12)
    assert set(heard[1:]) <= {(5, 12), (10, 12)}


def raising(completions):
    raise ValueError("no answer")


def test_an_error_ends_the_writing_with_the_message_it_always_had(tokenizer, monkeypatch):
    written, failed = [], threading.Event()
    step = NativeEngine.step
    monkeypatch.setattr(NativeEngine, "step", lambda self: (written.append(len(self)), step(self))[1])

    def hear(_phase, done, _total):
        if done >= 4:
            assert failed.wait(SAFE)

    def reward(rollout):
        try:
            return build_reward(RewardSettings(), raising)(rollout)
        finally:
            failed.set()

    messages, steps = [], []
    for size, listen in ((0, lambda *_: None), (2, hear)):
        written.clear()
        with pytest.raises(RewardError) as raised:
            collected(tokenizer, reward, settings(size, batch_size=2, tokens=100), hear=listen)
        messages.append(str(raised.value))
        steps.append(len(written))
    assert messages[0] == messages[1]
    assert "reward raising raised ValueError: no answer" in messages[0]
    assert steps[1] < steps[0] / 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RunError])
def test_an_error_of_the_last_group_comes_out_as_it_is(tokenizer, error):
    def reward(rollout):
        if len(rollout) == 2:
            raise error("the last one")
        return vowels(rollout)

    with pytest.raises(error, match="the last one"):
        collected(tokenizer, reward, settings(5))


@pytest.mark.parametrize("when", ["generate", "score"])
def test_ctrl_c_waits_for_no_reward_and_later_groups_are_left(tokenizer, when):
    begun, release, calls = threading.Event(), threading.Event(), []

    def hanging(rollout):
        calls.append(len(rollout))
        begun.set()
        assert release.wait(SAFE)
        return vowels(rollout)

    def hear(phase, done, _total):
        if phase == when and (done >= 8 or when == "score"):
            assert begun.wait(SAFE)
            raise KeyboardInterrupt

    overlap_module.IDLE_WORKERS.clear()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        collected(tokenizer, hanging, settings(2, batch_size=2), hear=hear)
    # The next run does not wait for the one that hangs, either.
    _, scores, *_ = collected(tokenizer, vowels, settings(2))
    assert len(scores.total) == 12
    assert not release.is_set()
    assert time.monotonic() - began < SAFE / 2
    release.set()
    while len(overlap_module.IDLE_WORKERS) < 2:  # until both threads have nothing to do
        assert time.monotonic() - began < SAFE
        time.sleep(0.01)
    assert calls == [2]


def test_filtered_groups_are_those_without_overlap(tokenizer):
    def whether_e(rollout):
        return Scores(torch.tensor([float("e" in text) for text in rollout.texts]))

    both = [
        collected(
            tokenizer,
            whether_e,
            settings(size, samples_per_prompt=3, batch_size=12, filter_groups=True, filter_rounds=3),
        )
        for size in (0, 4)
    ]
    (plain, wanted, draws, metrics, _), (rollout, scores, again, seen, clock) = both
    assert rollout.texts == plain.texts
    assert torch.equal(scores.total, wanted.total)
    assert (draws, metrics) == (again, seen)
    assert draws > 1
    assert 0 < metrics["filter/kept_prompts"] < metrics["filter/drawn_prompts"]
    assert clock.overlapped["score_overlapped"] >= 0.0


def failing_at_times(completions):
    """Some responses have no reward; of the others each token has one."""
    return [ValueError("3") if sum(one.tokens) % 3 == 0 else [0.5] * len(one.tokens) for one in completions]


def test_failed_responses_are_counted_over_the_whole_step(tokenizer, tmp_path):
    config = RewardSettings(on_error="score", error_score=-2.0)
    rows, found = [], []
    for size in (0, 2):
        reward = build_reward(config, failing_at_times)
        found.append(collected(tokenizer, reward, settings(size))[1])
        rows += run(trainer(tokenizer, settings(size, steps=1), tmp_path / f"{size}", reward=reward))
    assert 0 < found[0].failed == found[1].failed < 12
    assert torch.equal(found[0].total, found[1].total)
    assert torch.equal(found[0].per_token, found[1].per_token)
    assert 0 < rows[0]["reward_failed"] == rows[1]["reward_failed"] < 12
    assert rows[0]["reward"] == rows[1]["reward"]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_call_that_fails_costs_its_group_alone(tokenizer, broken):
    """Also the very first one, before which no call has told the components' names."""
    calls = []

    def function(completions):
        calls.append(len(completions))
        if len(calls) == broken + 1:
            raise ValueError("busy")
        return letters(completions)

    rewards = {
        size: build_reward(RewardSettings(on_error="score", error_score=-2.0), made)
        for size, made in ((0, letters), (5, function))
    }
    rollout, wanted, *_ = collected(tokenizer, rewards[0], settings(0))
    scores = collected(
        tokenizer, rewards[5], settings(5, reward=RewardSettings(on_error="score", error_score=-2.0))
    )[1]
    assert calls == [5, 5, 2]
    # Lengths 1 2 2 2 3, then 3 4 5 5 6, then 8 9.
    lost = [{5, 1, 3, 10, 6}, {7, 8, 0, 4, 11}, {9, 2}][broken]
    kept = torch.tensor([b not in lost for b in range(12)])
    assert scores.failed == len(lost)
    assert scores.total.tolist() == [float(wanted.total[b]) if kept[b] else -2.0 for b in range(12)]
    assert torch.equal(
        scores.per_token, wanted.per_token * kept.repeat_interleave(rollout.sequences.response_lengths)
    )
    for name, values in wanted.components.items():
        assert scores.components[name] == [v if kept[b] else -2.0 for b, v in enumerate(values)]


def test_every_group_may_fail(tokenizer):
    config = RewardSettings(on_error="score", error_score=-2.0)
    scores = collected(tokenizer, build_reward(config, raising), settings(5, reward=config))[1]
    assert scores.total.tolist() == [-2.0] * 12
    assert scores.failed == 12


def test_components_that_change_between_groups_are_refused(tokenizer):
    def changing(rollout):
        return Scores(torch.zeros(len(rollout)), components={f"of {len(rollout)}": [0.0] * len(rollout)})

    message = r"components of 5 for some responses and of 2 for others \(reward\.overlap = 5\)"
    with pytest.raises(RewardError, match=message):
        collected(tokenizer, changing, settings(5))


def test_the_process_of_an_isolated_reward_outlives_the_step_that_started_it(tokenizer, tmp_path):
    file = tmp_path / "pids.py"
    file.write_text(
        "import os\n\ndef pid(completions):\n    return [float(os.getpid())] * len(completions)\n"
    )
    config = RewardSettings(use=f"{file}:pid", isolate=True)
    reward = build_reward(config)
    pids = set()
    for _ in range(3):
        pids.update(collected(tokenizer, reward, settings(5, reward=config))[1].total.tolist())
    assert len(pids) == 1
    assert pids != {float(os.getpid())}


def best_of_group(rollout):
    """1 for the response with the most vowels among those it is given with."""
    shares = vowels(rollout).total
    return Scores((shares == shares.max()).float())


def test_resumed_run_equals_the_uninterrupted_one(tokenizer, tmp_path):
    config = settings(4, steps=4)
    whole = trainer(tokenizer, config, tmp_path / "whole", reward=best_of_group)
    run(whole)
    first = trainer(tokenizer, config, tmp_path / "parts", reward=best_of_group)
    for _ in range(2):
        first.step(SilentLog())
    first.save()
    second = trainer(tokenizer, config, tmp_path / "parts", reward=best_of_group)
    second.resume()
    run(second)
    a, b = parameters(whole), parameters(second)
    assert all(torch.equal(a[n], b[n]) for n in a)
    # Groups matter to such a reward, so that a resume must keep them.
    plain = trainer(tokenizer, settings(0, steps=4), tmp_path / "plain", reward=best_of_group)
    run(plain)
    c = parameters(plain)
    assert any(not torch.equal(a[n], c[n]) for n in a)
    other = trainer(tokenizer, settings(0, steps=4), tmp_path / "parts", reward=best_of_group)
    with pytest.raises(RunError, match=r"made with reward\.overlap = 4, not 0"):
        other.resume()


def test_conversations_have_no_groups():
    config = replace(settings(4), data=DataSettings(prompts="x"))
    assert "reward.overlap" not in dict(config.problems())
    talks = replace(config, environment=EnvironmentSettings(use="number-game"))
    assert "environment.use" in dict(talks.problems())["reward.overlap"]
