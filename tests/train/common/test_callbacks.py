"""Callbacks: which events come when, metrics of one's own, ending a run early, and errors."""

from __future__ import annotations

from typing import Any

import pytest

import proxlm
from proxlm.errors import ConfigError
from proxlm.train.common.callbacks import Callback, Callbacks
from small_models import TEXTS, WORDS
from test_public_api import SMALL, config, lengths


class Recorder(proxlm.Callback):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_start(self, folder, step):
        self.events.append(("start", folder.name, step))

    def on_rollout(self, step, rollout):
        self.events.append(("rollout", step, len(rollout)))

    def on_scores(self, step, rollout, scores):
        self.events.append(("scores", step, [len(text) for text in rollout.texts] == scores.total.tolist()))

    def on_step(self, step, metrics):
        metrics["user/twice_the_reward"] = 2 * metrics["reward"]
        self.events.append(("step", step, metrics["reward"]))

    def on_evaluation(self, step, name, metrics):
        self.events.append(("evaluation", step, name, metrics["reward"]))

    def on_checkpoint(self, step, folder):
        self.events.append(("checkpoint", step, folder.name))

    def on_end(self, step):
        self.events.append(("end", step))


def trainer(tmp_path, *callbacks, **ppo):
    policy = proxlm.new_model(TEXTS * 20, SMALL, proxlm.ModelSettings(device="cpu"), seed=1)
    return proxlm.PPOTrainer(policy, lengths, list(WORDS[:6]), config(tmp_path, **ppo), callbacks=callbacks)


def test_every_event_in_its_order(tmp_path) -> None:
    recorder = Recorder()
    run = trainer(tmp_path, recorder).train()
    first, second = run.metrics["reward"]
    assert recorder.events == [
        ("evaluation", 0, "before", run.before.metrics["reward"].mean),
        ("start", "run", 0),
        ("rollout", 0, 4),
        ("scores", 0, True),
        ("step", 1, first),
        ("rollout", 1, 4),
        ("scores", 1, True),
        ("step", 2, second),
        ("checkpoint", 2, "step-00000002"),
        ("end", 2),
        ("evaluation", 2, "after", run.after.metrics["reward"].mean),
    ]
    assert run.metrics["user/twice_the_reward"] == [2 * first, 2 * second]


def test_callbacks_change_nothing_else(tmp_path) -> None:
    with_one = trainer(tmp_path / "a", Recorder()).train()
    without = trainer(tmp_path / "b").train()
    assert with_one.metrics["reward"] == without.metrics["reward"]
    assert with_one.samples == without.samples


class StopAfter(proxlm.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step(self, step, metrics):
        if step == self.steps:
            raise proxlm.StopTraining("enough")


def test_a_run_that_a_callback_stops_ends_as_finished(tmp_path, capsys) -> None:
    run = trainer(tmp_path, StopAfter(2), steps=9).train()
    assert run.metrics["step"] == [1, 2]
    assert run.after is not None
    assert (run.folder / "checkpoints" / "step-00000002").is_dir()
    assert (run.model / "model.safetensors").is_file()
    assert "stopped by a callback: enough" in capsys.readouterr().out
    assert proxlm.load_model(run.model).context == 64


def test_a_run_that_a_callback_stopped_can_be_continued(tmp_path) -> None:
    from dataclasses import replace

    stopped = trainer(tmp_path, StopAfter(2), steps=4)
    stopped.train()
    recorder = Recorder()
    resumed = trainer(tmp_path, recorder, steps=4)
    resumed.config = replace(resumed.config, run=replace(resumed.config.run, resume=True))
    run = resumed.train()
    whole = trainer(tmp_path / "whole", steps=4).train()
    assert ("start", "run", 2) in recorder.events
    assert run.metrics["reward"] == whole.metrics["reward"]
    left, right = (folder / "policy" / "model.safetensors" for folder in (run.folder, whole.folder))
    assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("stop", [1, 2])
def test_a_fine_tuning_that_a_callback_stops_is_validated_once_more_and_leaves_its_model(
    tmp_path, stop
) -> None:
    policy = proxlm.new_model(TEXTS * 20, SMALL, proxlm.ModelSettings(device="cpu"), seed=1)
    pairs = [{"prompt": text[:6], "response": text[6:]} for text in TEXTS * 4]
    settings = proxlm.SFTConfig(
        train=proxlm.SupervisedSettings(steps=9, batch_tokens=128, validate_every=2),
        run=proxlm.RunSettings(folder=str(tmp_path / "run"), tensorboard=False),
    )
    run = proxlm.SFTTrainer(policy, pairs, settings, callbacks=[StopAfter(stop)]).train()
    assert run.metrics["step"] == [*range(1, stop + 1)]
    assert [loss is not None for loss in run.metrics["validation_loss"]] == [
        step == stop for step in run.metrics["step"]
    ]
    assert (run.model / "model.safetensors").is_file()
    assert (run.folder / "report.html").is_file()
    assert run.verify() == []


class Fails(proxlm.Callback):
    def on_scores(self, step, rollout, scores):
        raise ZeroDivisionError("mine")


def test_an_error_of_a_callback_ends_the_run_as_it_is(tmp_path) -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer(tmp_path, Fails(), recorder).train()
    assert "end" not in [event[0] for event in recorder.events]


def test_supervised_and_control_runs_have_the_same_events(tmp_path) -> None:
    class Steps(Recorder):
        def on_step(self, step, metrics):
            self.events.append(("step", step))

        def on_evaluation(self, step, name, metrics):
            self.events.append(("evaluation", step, name, sorted(metrics)))

    seen = Steps()
    settings = proxlm.PretrainConfig(
        new=SMALL,
        train=proxlm.SupervisedSettings(steps=2, batch_tokens=128, validate_every=2, block=16),
        run=proxlm.RunSettings(folder=str(tmp_path / "text"), tensorboard=False, report=False),
    )
    proxlm.PretrainTrainer(TEXTS * 20, settings, callbacks=[seen]).train()
    assert [event[:2] for event in seen.events] == [
        ("start", "text"),
        ("step", 1),
        ("evaluation", 2),
        ("step", 2),
        ("checkpoint", 2),
        ("end", 2),
    ]
    seen = Steps()
    control = proxlm.ControlConfig(
        environment=proxlm.GymSettings(steps=64, count=2),
        ppo=proxlm.ControlPPOSettings(horizon=16, minibatches=2),
        run=proxlm.RunSettings(folder=str(tmp_path / "pole"), tensorboard=False, report=False, threads=1),
    )
    run = proxlm.ControlTrainer("CartPole-v1", control, callbacks=[seen]).train()
    assert [event[:2] for event in seen.events] == [
        ("start", "pole"), ("step", 1), ("step", 2), ("checkpoint", 2), ("end", 2)
    ]  # fmt: skip
    assert run.metrics["environment_steps"] == [32, 64]


@pytest.mark.parametrize("given", [5, Callback(), None])
def test_what_is_no_list_of_callbacks_is_refused(given) -> None:
    with pytest.raises(ConfigError, match="callbacks: expected a list of callbacks, got"):
        Callbacks(given)
