"""Callbacks: which events come when, metrics of one's own, ending a run early, and errors."""

from __future__ import annotations

from dataclasses import replace
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


class StopsIn(Recorder):
    """Asks to stop when `event` comes for the first time."""

    def __init__(self, event: str, name: str = "") -> None:
        super().__init__()
        self.event, self.name, self.asked = event, name, False

    def __getattribute__(self, event):
        found = super().__getattribute__(event)
        if not event.startswith("on_") or event != self.event:
            return found

        def asks(step, *arguments):
            found(step, *arguments)
            if not self.asked and self.name in ("", *arguments[:1]):
                self.asked = True
                raise proxlm.StopTraining(f"in {event}")

        return asks


@pytest.mark.parametrize(
    ("event", "name", "steps"),
    [
        ("on_start", "", [1]),
        ("on_rollout", "", [1]),
        ("on_scores", "", [1]),
        ("on_step", "", [1]),
        ("on_evaluation", "before", [1]),
        ("on_evaluation", "during", [1, 2]),
        ("on_evaluation", "after", [1, 2, 3, 4]),
        ("on_checkpoint", "", [1, 2, 3]),
        ("on_end", "", [1, 2, 3, 4]),
    ],
)
def test_a_request_to_stop_works_in_every_event(tmp_path, event, name, steps) -> None:
    policy = proxlm.new_model(TEXTS * 20, SMALL, proxlm.ModelSettings(device="cpu"), seed=1)
    settings = config(tmp_path, steps=4)
    settings = replace(
        settings,
        evaluation=replace(settings.evaluation, every=2),
        run=replace(settings.run, save_every=2, keep=9),
    )
    recorder, later = StopsIn(event, name), Recorder()
    run = proxlm.PPOTrainer(policy, lengths, list(WORDS[:6]), settings, callbacks=[recorder, later]).train()
    assert recorder.asked
    assert run.metrics["step"] == steps
    assert recorder.events == later.events
    assert run.after is not None
    assert (run.folder / "checkpoints" / f"step-{steps[-1]:08d}").is_dir()
    assert run.verify() == []


def test_a_trainer_that_was_stopped_can_train_again(tmp_path) -> None:
    stopped = trainer(tmp_path, StopsIn("on_evaluation", "after"), steps=2)
    stopped.train()
    run = replace(stopped.config.run, folder=str(tmp_path / "again"))
    stopped.config = replace(stopped.config, run=run)
    assert stopped.train().metrics["step"] == [1, 2]


class Misspelt(Callback):
    def on_stepp(self, step, metrics):
        raise AssertionError


class OfAnotherLibrary(Callback):
    def on_train_begin(self, *arguments):
        raise AssertionError


class TakesLess(Callback):
    def on_step(self, step):
        raise AssertionError


class Waits(Callback):
    async def on_step(self, step, metrics):
        raise AssertionError


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Misspelt, r"Misspelt.on_stepp: no such event; did you mean on_step\?"),
        (OfAnotherLibrary, "on_train_begin: no such event; .*the events are on_start, on_rollout"),
        (TakesLess, "TakesLess.on_step: must take step, metrics"),
        (Waits, "Waits.on_step: an event cannot be async"),
    ],
)
def test_an_event_that_would_not_be_called_is_refused(kind, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Callbacks([Recorder(), kind()])


def test_an_event_may_be_set_on_the_object_and_take_more() -> None:
    seen = []
    callback = Callback()
    callback.on_end = lambda *given, more=1: seen.append((given, more))
    Callbacks([callback]).on_end(3)
    assert seen == [((3,), 1)]
