"""Rollouts made ahead: k updates stale, the same whatever the timing, beside the updates, exact after a resume."""

from __future__ import annotations

import copy
import gc
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SilentLog, job, parameters, run, trainer, vowels

from proxlm.checkpoint import checkpoints, load_checkpoint
from proxlm.config import EnvironmentSettings, OptimiserSettings, OptimisersSettings, RolloutSettings
from proxlm.config.ppo import CorrectionSettings
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.protocol import Answer, Task
from proxlm.environments.resolve import with_environment
from proxlm.errors import ConfigError, RewardError, RunError
from proxlm.models.forward import token_outputs
from proxlm.models.lstm import plain_kernels
from proxlm.train.common.callbacks import Callback, Callbacks, StopTraining
from proxlm.train.ppo import loop as ppo
from proxlm.train.ppo import rollout_queue
from small_models import tiny_model

TIMED = ("time", "tokens_per_second", "memory_gb")
LONG = 60.0  # seconds until something that hangs is given up


def stale_job(critic="shared", mode="token_truncate", k=1, **more):
    return job(critic, max_staleness=k, staleness_correction=CorrectionSettings(mode=mode), **more)


def saving(config):
    return replace(config, run=replace(config.run, save_every=1, keep=99))


def numbers(rows):
    """The rows without what a clock or a memory gauge says."""
    return [{name: v for name, v in row.items() if not name.startswith(TIMED)} for row in rows]


def alike(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class ByHand:
    """One thing after another: keep the policy from before every update, and sample each step with one of them."""

    def __init__(self, policy, settings, k):
        self.policy, self.settings, self.k, self.old = policy, settings, k, []

    def take(self, collect, step, draw, clock):
        self.old.append(copy.deepcopy(self.policy))
        version = max(0, step - self.k)
        engine = NativeEngine(self.old[version], self.settings)
        engine.load_weights([], version)
        return collect(engine, step, draw, clock)

    def tensors(self):
        return {}

    def close(self):
        pass


class Answers:
    """An environment of two turns that pays for vowels."""

    def reset(self, task: Task) -> str:
        self.task, self.turns = task, 0
        return task.text

    def step(self, reply: str) -> Answer:
        self.turns += 1
        return " and", sum(c in "aeiou" for c in reply) / 10, self.turns == 2


def sleepy(rollout):
    """The same reward at another time in each run."""
    time.sleep(random.SystemRandom().random() / 30)
    return vowels(rollout)


def forced(made, monkeypatch, order):
    """In each step the update comes before the rollouts made beside it ("update"), or after them ("rollout")."""
    sample, learn, done = made.generate, ppo.update, threading.Semaphore(0)

    def generate(*given, **more):
        beside = threading.current_thread().name == "proxlm-rollouts"
        begun = next((job for job in made.collector.jobs if not job.done.is_set()), None) if beside else None
        if order == "update" and begun is not None and begun not in waited:
            waited.append(begun)
            assert done.acquire(timeout=LONG)
        return sample(*given, **more)

    def update(*given):
        if order == "rollout":
            made.collector.wait()
        stats = learn(*given)
        done.release()
        return stats

    waited = []
    made.generate = generate
    monkeypatch.setattr(ppo, "update", update)


@pytest.mark.checklist(21)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_step_learns_from_the_policy_k_updates_before_it(tokenizer, tmp_path, monkeypatch, k):
    config = saving(stale_job(mode="token", k=k, steps=5, lr=3e-3))
    rollouts, experiences = [], []
    made = trainer(tokenizer, config, tmp_path, reward=lambda r: (rollouts.append(r), vowels(r))[1])
    prepare = ppo.prepare

    def kept(*given, **more):
        found = prepare(*given, **more)
        experiences.append(found.experience)
        return found

    monkeypatch.setattr(ppo, "prepare", kept)
    start = {name: p.detach().clone() for name, p in made.models.policy_parameters()}
    rows = run(made)
    ages = [min(step, k) for step in range(5)]
    assert [row["staleness"] for row in rows] == ages
    assert [[row[f"staleness/share_{age}"] for age in range(k + 1)] for row in rows] == [
        [float(age == own) for age in range(k + 1)] for own in ages
    ]
    assert [r.policy_versions.unique().tolist() for r in rollouts] == [[max(0, s - k)] for s in range(5)]
    policies = [{f"policy.{name}": p for name, p in start.items()}]
    policies += [load_checkpoint(folder)[0] for folder in checkpoints(tmp_path)]
    for step, (rollout, experience) in enumerate(zip(rollouts, experiences, strict=True)):
        by, version = tiny_model(tokenizer), max(0, step - k)
        with torch.no_grad():
            for name, p in by.network.named_parameters():
                p.copy_(policies[version][f"policy.{name}"])
            again = token_outputs(by, rollout.sequences, 1.0).logprobs
        for held in range(version, step):  # what a checkpoint holds: the policies of the steps before it
            for name, _ in by.trainable():
                kept = policies[step][f"extra.version-{held}.{name}"]
                assert torch.equal(kept, policies[held][f"policy.{name}"])
        copies = {name.split(".")[1] for name in policies[step] if name.startswith("extra.")}
        assert copies == {f"version-{held}" for held in range(version, step)}
        assert torch.allclose(again, rollout.logprobs, atol=1e-5)
        weights = torch.exp(experience.old_logprobs - rollout.logprobs)
        off = float((weights - 1).abs().max())
        assert torch.allclose(experience.correction, weights if step else torch.ones_like(weights))
        assert off < 1e-4 if step == 0 else off > 1e-2
        row = rows[step]
        weights = experience.correction
        assert row["staleness_weight/max"] == pytest.approx(float(weights.max()))
        share = float(weights.sum()) ** 2 / len(weights) / float(weights.square().sum())
        assert row["staleness_weight/effective_share"] == pytest.approx(share)
        gap = (experience.old_logprobs - rollout.logprobs).double()
        assert row["rollout_kl"] == pytest.approx(float((gap.exp() - 1 - gap).mean()), abs=1e-6)
    assert all(row["rollout_gap"] > 0.01 and row["rollout_kl"] > 1e-4 for row in rows[1:])


def settings(name, k=1):
    """A job, and what its trainer is given."""
    more = {
        "adapter": {"critic": "adapter"},
        "separate": {"critic": "separate", "critic_warmup": 1, "reference_decay": 0.9},
        "groups": {"samples_per_prompt": 3, "batch_size": 4, "filter_groups": True, "filter_rounds": 3},
    }
    config = stale_job(**more.get(name, {}), k=k, steps=4 if k == 1 else 6, lr=3e-3)
    given = {"lora": 4} if name in ("lora", "adapter") else {}
    if name in ("lstm", "t5", "gpt2"):
        given["family"] = name
    if name == "groups":  # some groups are all alike, so that some steps draw more often than others
        given["reward"] = lambda r: replace(vowels(r), total=(vowels(r).total > 0.25).float())
    if name == "temperature":
        config = replace(
            config, rollout=RolloutSettings(max_new_tokens=12, temperature=1.0, final_temperature=0.5)
        )
    return config, given


ONE_AHEAD = [
    "plain",
    "lora",
    "adapter",
    "separate",
    "groups",
    "temperature",
    "lstm",
    "t5",
    "gpt2",
    "multi-turn",
]


@pytest.mark.parametrize(
    ("name", "k"),
    [(name, 1) for name in ONE_AHEAD] + [("plain", 4), ("lora", 2), ("groups", 3), ("multi-turn", 2)],
)
def test_it_is_the_same_as_one_thing_after_another(tokenizer, tmp_path, monkeypatch, name, k):
    config, given = settings(name, k)
    results = []
    for way in ("beside", "by hand"):
        made = trainer(tokenizer, config, tmp_path / way, **{"reward": sleepy, **given})
        if name == "multi-turn":
            made.reward = with_environment(None)
            talks = EnvironmentSettings(use="x", max_turns=3)
            made.generate = MultiTurn(Answers, PlainMessageTokens(tokenizer), talks)
        with monkeypatch.context() as patch:
            if way == "by hand":
                made.collector = ByHand(made.models.policy, config.rollout, k)
            else:
                forced(made, patch, "update")
            results.append((numbers(run(made)), parameters(made), made.state))
    (rows, weights, state), (rows_by_hand, weights_by_hand, state_by_hand) = results
    assert rows == rows_by_hand
    assert state == state_by_hand
    assert alike(weights, weights_by_hand)
    assert rows[-1]["staleness"] == k
    assert rows[-1]["rollout_gap"] > 1e-3
    if name == "groups":
        assert state.draws > 4


@pytest.mark.parametrize(("critic", "lora", "k"), [("separate", 0, 1), ("adapter", 4, 1), ("shared", 0, 3)])
def test_timing_changes_nothing(tokenizer, tmp_path, monkeypatch, critic, lora, k):
    results = []
    for order in ("as it comes", "update", "rollout", "by chance"):
        reward = sleepy if order == "by chance" else vowels
        made = trainer(
            tokenizer, stale_job(critic, k=k, steps=3 if k == 1 else 5), tmp_path / order, lora, reward
        )
        with monkeypatch.context() as patch:
            if order in ("update", "rollout"):
                forced(made, patch, order)
            results.append((numbers(run(made)), parameters(made)))
    for rows, weights in results[1:]:
        assert rows == results[0][0]
        assert alike(weights, results[0][1])


@pytest.mark.checklist(38)
@pytest.mark.parametrize(
    ("lora", "k", "steps"), [(0, 1, (1, 2, 3)), (4, 1, (2,)), (0, 3, (1, 3, 4)), (4, 2, (3,))]
)
def test_a_resume_from_each_checkpoint_ends_the_same(tokenizer, tmp_path, lora, k, steps):
    config = saving(stale_job("separate", k=k, steps=3 + k if k > 1 else 4, lr=3e-3))
    whole = trainer(tokenizer, config, tmp_path / "whole", lora)
    rows = numbers(run(whole))
    for step in steps:
        parts = tmp_path / f"parts-{step}"
        first = trainer(tokenizer, config, parts, lora)
        for _ in range(step):
            first.step(SilentLog())
        first.save()
        first.collector.close()
        saved = {name for name in load_checkpoint(checkpoints(parts)[-1])[0] if name.startswith("extra.")}
        learning = [name for name, _ in first.models.policy_parameters()]  # with LoRA, the adapters alone
        versions = range(max(0, step - k), step)
        assert saved == {f"extra.version-{version}.{name}" for version in versions for name in learning}
        second = trainer(tokenizer, config, parts, lora)
        second.resume()
        assert numbers(run(second)) == rows[step:]
        assert alike(parameters(second), parameters(whole))


@pytest.mark.parametrize("k", [1, 3])
def test_a_finished_run_may_be_made_longer(tokenizer, tmp_path, k):
    whole = trainer(tokenizer, saving(stale_job(k=k, steps=4, lr=3e-3)), tmp_path / "whole")
    rows = numbers(run(whole))
    run(trainer(tokenizer, saving(stale_job(k=k, steps=2, lr=3e-3)), tmp_path / "parts"))
    longer = trainer(tokenizer, saving(stale_job(k=k, steps=4, lr=3e-3)), tmp_path / "parts")
    longer.resume()
    assert numbers(run(longer)) == rows[2:]
    assert alike(parameters(longer), parameters(whole))


@pytest.mark.parametrize("k", [1, 3])
def test_going_back_in_the_same_process(tokenizer, tmp_path, k):
    """A trainer that has rollouts ahead reads an older checkpoint: they are not used."""
    config = saving(stale_job(k=k, steps=4, lr=3e-3))
    made = trainer(tokenizer, config, tmp_path)
    for _ in range(2):
        made.step(SilentLog())
    made.save()
    rows = run(made)
    for folder in checkpoints(tmp_path)[1:]:
        folder.rename(folder.with_name(f"not-{folder.name}"))
    made.resume()
    assert made.state.step == 2
    assert numbers(run(made)) == numbers(rows)


def test_there_are_never_more_than_k_copies(tokenizer, tmp_path, monkeypatch):
    """They are made as they are needed, and of what learns alone; the queue is never longer than k."""
    made_copies, copy_of = [], rollout_queue.frozen_copy

    def counted(policy):
        made_copies.append(copy_of(policy))
        return made_copies[-1]

    monkeypatch.setattr(rollout_queue, "frozen_copy", counted)
    made = trainer(tokenizer, stale_job(k=2, steps=6), tmp_path, lora=4)
    assert made.collector.tensors() == {}
    learning = sum(p.numel() for _, p in made.models.policy.trainable())
    for step in range(6):
        made.step(SilentLog())
        assert len(made_copies) == min(step + 1, 2)
        assert len(made.collector.jobs) <= 2
        assert sum(t.numel() for t in made.collector.tensors().values()) == len(made_copies) * learning
    made.close()
    base = {id(p) for p in made.models.policy.network.parameters() if not p.requires_grad}
    for twin in made_copies:
        own = [p for p in twin.network.parameters() if id(p) not in base]
        assert sum(p.numel() for p in own) == learning


def test_a_run_that_is_ended_early_leaves_nothing_behind(tokenizer, tmp_path):
    config = saving(stale_job(k=3, steps=8, lr=3e-3))
    made = trainer(tokenizer, config, tmp_path)

    class Ends(Callback):
        def on_step(self, step, metrics):
            if step == 2:
                jobs.extend(made.collector.jobs)
                raise StopTraining

    jobs = []
    made.callbacks = Callbacks((Ends(),))
    assert len(run(made)) == 2
    assert not made.collector.jobs
    assert len(jobs) == 3
    assert all(job.done.wait(LONG) for job in jobs)
    again = trainer(tokenizer, config, tmp_path)
    again.resume()
    rest = numbers(run(again))
    whole = trainer(tokenizer, config, tmp_path / "whole")
    assert rest == numbers(run(whole))[2:]
    assert alike(parameters(again), parameters(whole))


def test_a_checkpoint_without_the_copies_is_refused(tokenizer, tmp_path):
    config = saving(stale_job(k=2, steps=4))
    made = trainer(tokenizer, config, tmp_path)
    for _ in range(3):
        made.step(SilentLog())
    found = made.collector.tensors()
    made.close()
    name = next(iter(found))
    for tensors in ({}, {n: t for n, t in found.items() if n != name}, {**found, name: torch.zeros(7)}):
        with pytest.raises(
            RunError, match=r"^there: does not hold the policies from before its last 2 updates"
        ):
            made.collector.resume(Path("there"), 3, tensors)


def test_switching_the_mode_is_refused_on_resume(tokenizer, tmp_path):
    config = stale_job(steps=1)
    run(trainer(tokenizer, config, tmp_path))
    other = replace(config, ppo=replace(config.ppo, max_staleness=0, steps=2))
    with pytest.raises(RunError, match=r"made with ppo\.max_staleness = 1, not 0"):
        trainer(tokenizer, other, tmp_path).resume()


def test_without_the_mode_nothing_of_it_is_there(tokenizer, tmp_path):
    rows = run(trainer(tokenizer, job(steps=2), tmp_path))
    assert [row["staleness"] for row in rows] == [0.0, 0.0]
    assert all("time/waiting" not in row and row["rollout_kl"] < 1e-8 for row in rows)
    assert not [name for row in rows for name in row if "_weight/" in name or "staleness/" in name]
    tensors = load_checkpoint(checkpoints(tmp_path)[-1])[0]
    assert not [name for name in tensors if name.startswith("extra.")]


def test_a_policy_that_stays_gives_the_synchronous_run(tokenizer, tmp_path):
    results = []
    for k in (2, 0):
        config = stale_job("separate", steps=4)
        config = replace(
            config,
            ppo=replace(config.ppo, max_staleness=k),
            optim=OptimisersSettings(OptimiserSettings(lr=0.0), OptimiserSettings(lr=1e-2)),
        )
        made = trainer(tokenizer, config, tmp_path / str(k))
        rows = [
            # The engine's rounding counts as staleness where the rollout is stale.
            {n: v for n, v in row.items() if not n.startswith("staleness")}
            for row in numbers(run(made))
        ]
        results.append((rows, parameters(made)))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert alike(results[0][1], results[1][1])
    assert results[0][0][-1]["value_mean"] != 0.0


def test_the_update_and_the_next_rollout_run_at_the_same_time(tokenizer, tmp_path, monkeypatch):
    """Each waits for the other to begin, so that neither would end if one came after the other."""
    learn, updates, rollouts = ppo.update, threading.Event(), threading.Event()
    calls, heard = [], []

    def reward(rollout):
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            rollouts.set()
            heard.append(updates.wait(LONG))
        return vowels(rollout)

    def waiting_update(*given):
        updates.set()
        heard.append(rollouts.wait(LONG))
        return learn(*given)

    monkeypatch.setattr(ppo, "update", waiting_update)
    rows = run(trainer(tokenizer, stale_job(steps=3), tmp_path, reward=reward))
    assert heard == [True] * 4
    assert calls == ["MainThread", "proxlm-rollouts", "proxlm-rollouts"]
    for row in rows:
        assert {"time/generate", "time/score", "time/waiting", "time/prepare", "time/update"} <= row.keys()
        own = row["time/waiting"] + row["time/prepare"] + row["time/update"]
        assert row["time/step"] == pytest.approx(own)
    first = rows[0]
    assert first["time/waiting"] == pytest.approx(first["time/generate"] + first["time/score"], rel=0.5)


@pytest.mark.parametrize("k", [1, 3])
def test_a_reward_that_fails_ends_the_run_at_its_own_step(tokenizer, tmp_path, k):
    calls = []

    def reward(rollout):
        calls.append(1)
        if len(calls) == 3:
            raise RewardError("reward x: the judge has gone home")
        return vowels(rollout)

    config = saving(stale_job(k=k, steps=5))
    made = trainer(tokenizer, config, tmp_path, reward=reward)
    log = SilentLog()
    with pytest.raises(RewardError, match="the judge has gone home"):
        made.train(log)
    # The step before has been made whole and saved.
    assert [row["step"] for row in log.rows] == [1, 2]
    assert checkpoints(tmp_path)[-1].name == "step-00000002"
    whole = trainer(tokenizer, config, tmp_path / "whole")
    rows = numbers(run(whole))
    again = trainer(tokenizer, config, tmp_path)
    again.resume()
    assert numbers(log.rows) + numbers(run(again)) == rows
    assert alike(parameters(again), parameters(whole))


def test_the_same_trainer_may_go_on_after_an_error(tokenizer, tmp_path):
    calls = []

    def reward(rollout):
        calls.append(1)
        if len(calls) == 3:
            raise RewardError("once")
        return vowels(rollout)

    made = trainer(tokenizer, stale_job(steps=4), tmp_path / "a", reward=reward)
    log = SilentLog()
    with pytest.raises(RewardError):
        made.train(log)
    made.train(log)
    whole = trainer(tokenizer, stale_job(steps=4), tmp_path / "b")
    assert numbers(log.rows) == numbers(run(whole))
    assert alike(parameters(made), parameters(whole))


@pytest.mark.parametrize("k", [1, 3])
def test_out_of_memory_beside_an_update_is_tried_again_alone(tokenizer, tmp_path, k):
    calls = []

    def reward(rollout):
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return vowels(rollout)

    made, log = trainer(tokenizer, stale_job(k=k, steps=3), tmp_path / "a", reward=reward), SilentLog()
    notes = []
    log.note = notes.append  # type: ignore[method-assign]
    made.train(log)
    assert calls == ["MainThread", "proxlm-rollouts", "MainThread", "proxlm-rollouts"]
    assert [note for note in notes if "out of memory" in note] == [
        "out of memory while responses were generated beside an update; they are generated alone"
    ]
    whole = trainer(tokenizer, stale_job(k=k, steps=3), tmp_path / "b")
    assert numbers(log.rows) == numbers(run(whole))


def test_a_run_that_is_stopped_waits_for_no_rollout(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_queue, "LEAVE_SECONDS", 0.2)
    calls, release = [], threading.Event()

    def reward(rollout):
        calls.append(1)
        if len(calls) == 2:
            release.wait(LONG)
        return vowels(rollout)

    made, log = trainer(tokenizer, stale_job(steps=4), tmp_path, reward=reward), SilentLog()

    def stop(save, due):
        if len(log.rows) == 1:
            raise KeyboardInterrupt

    log.checkpoint = stop  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made.train(log)
    assert time.monotonic() - began < LONG / 2
    release.set()
    made.train(log)
    whole = trainer(tokenizer, stale_job(steps=4), tmp_path / "b")
    assert numbers(log.rows) == numbers(run(whole))


def test_a_rollout_that_nobody_waits_for_ends_between_two_tokens(tokenizer, tmp_path):
    config = stale_job(steps=3)
    made = trainer(tokenizer, config, tmp_path)
    short, endless = made.generate, RolloutSettings(max_new_tokens=100, temperature=1.0)
    begun = threading.Event()

    def generate(engine, prompts, sampling, **more):
        if threading.current_thread().name != "proxlm-rollouts":
            return short(engine, prompts, sampling, **more)
        begun.set()
        while True:
            short(engine, prompts, endless, **more)

    made.generate = generate
    made.step(SilentLog())
    assert begun.wait(LONG)
    (endless_job,) = made.collector.jobs
    made.collector.close()
    assert endless_job.done.wait(LONG)
    assert isinstance(endless_job.error, rollout_queue.AbandonedError)


def test_the_copy_shares_what_never_learns_and_nothing_else(tokenizer, tmp_path):
    for lora in (0, 4):
        policy = trainer(tokenizer, stale_job(), tmp_path, lora).models.policy
        twin = rollout_queue.frozen_copy(policy)
        own, other = (dict(model.network.named_parameters()) for model in (policy, twin))
        assert own.keys() == other.keys()
        learning = {name for name, _ in policy.trainable()}
        for name, p in own.items():
            assert torch.equal(p, other[name])
            assert (p is other[name]) == (name not in learning)
            assert not other[name].requires_grad
        assert all(p.requires_grad for _, p in policy.trainable())
        assert twin.tokenizer is not policy.tokenizer


def test_the_thread_ends_with_its_trainer(tokenizer, tmp_path):
    def threads():
        return {t for t in threading.enumerate() if t.name == "proxlm-rollouts"}

    before = threads()
    made = trainer(tokenizer, stale_job(), tmp_path)
    run(made)
    (own,) = threads() - before
    assert own.daemon
    del made
    gc.collect()
    own.join(LONG)
    assert not own.is_alive()


def test_kernels_are_switched_back_by_the_last_of_two_threads():
    def state():
        return bool(torch.backends.mkldnn.enabled), bool(torch.backends.cudnn.enabled)

    before, inside, leave = state(), threading.Event(), threading.Event()

    def other():
        with plain_kernels():
            inside.set()
            leave.wait(LONG)

    thread = threading.Thread(target=other)
    with plain_kernels():
        thread.start()
        assert inside.wait(LONG)
    assert state() == (False, False)
    leave.set()
    thread.join(LONG)
    assert state() == before


def test_what_cannot_be_combined_is_refused(tokenizer):
    def said(config):
        return [message for key, message in config.problems() if key == "ppo.max_staleness"]

    for allowed in (job(), stale_job(), stale_job(mode="token_mask"), stale_job(mode="sequence")):
        assert said(allowed) == []
    assert said(stale_job(mode="none")) == [
        "its responses come from an older policy: set ppo.staleness_correction.mode, to token_truncate for instance"
    ]
    assert "ppo.loss = trpo" in said(stale_job(loss="trpo"))[0]
    recurrent = replace(tiny_model(tokenizer, "lstm"), bfloat16=True)
    with pytest.raises(
        ConfigError, match=r"max_staleness: a recurrent policy needs model\.precision = float32"
    ):
        rollout_queue.RolloutQueue(recurrent, 1, 3, lambda model: NativeEngine(model, RolloutSettings()))


@pytest.mark.parametrize("k", [1, 3])
def test_it_learns(tokenizer, tmp_path, k):
    config = stale_job("separate", k=k, steps=25, lr=3e-3, kl_coef=0.01)
    rows = run(trainer(tokenizer, config, tmp_path))
    first, last = (sum(r["reward"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.1
    assert all(row["rollout_kl"] > 0 for row in rows[1:])


@pytest.mark.checklist(20)
@pytest.mark.checklist(21)
@pytest.mark.parametrize(("weights", "k"), [("policy", 1), ("int8", 1), ("int8", 2)])
def test_mismatch_and_staleness_are_told_apart(tokenizer, tmp_path, monkeypatch, weights, k):
    """With a weight for each, the trainer's passes compute the older policy's log-probs, before it is gone."""
    truncate = CorrectionSettings(mode="token_truncate")
    config = job(steps=4, max_staleness=k, engine_correction=truncate, staleness_correction=truncate)
    config = replace(config, rollout=replace(config.rollout, weights=weights, top_p=0.9))
    made = trainer(tokenizer, config, tmp_path)
    seen, plain = [], ppo.prepare

    def kept(models, rollout, *given, **more):
        found = plain(models, rollout, *given, **more)
        seen.append((rollout, found.experience))
        return found

    monkeypatch.setattr(ppo, "prepare", kept)
    rows = run(made)
    assert rows[-1]["staleness"] == k
    assert seen[0][0].trainer_logprobs is None  # of the present version: the update's own passes tell
    assert rows[0]["staleness_weight/kl"] == 0.0
    assert rows[0]["staleness_weight/max"] == rows[0]["staleness_weight/mean"] == 1.0
    for row, (rollout, experience) in zip(rows[1:], seen[1:], strict=True):
        engine = rollout.trainer_logprobs - rollout.logprobs
        stale = experience.old_logprobs - rollout.trainer_logprobs
        wanted = engine.exp().clamp(max=2) * stale.exp().clamp(max=2)
        assert torch.allclose(experience.correction, wanted, rtol=1e-5)
        assert row["staleness_weight/kl"] > 1e-4
        assert float(stale.abs().max()) > 0.01
        off = float(engine.abs().max())
        assert off > 1e-3 if weights == "int8" else off < 1e-4
        assert (row["engine_weight/kl"] > 1e-7) is (weights == "int8")
