"""Any metric of a validation can choose the model and end the run; one that the job does not write is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers import SilentLog
from line_objective import Line, line

from proxlm.config import DPOConfig, PretrainConfig, RewardConfig, SFTConfig, validate
from proxlm.config.early_stopping import (
    BETTER,
    DISTILLATION,
    LANGUAGE_MODEL,
    PREFERENCES,
    REWARD_MODEL,
    is_better,
)
from proxlm.distributed.ranks import ONE_PROCESS
from proxlm.errors import ConfigError
from proxlm.runlog.metric_names import declared


class Rising(Line):
    """Beside its loss it has an accuracy that follows a script, and is missing at some validations."""

    script = (0.2, 0.6, 0.9, None, 0.9, 0.7)

    def validate(self, micro_batch_tokens, ranks=ONE_PROCESS):
        self.count = getattr(self, "count", -1) + 1
        value = self.script[min(self.count, len(self.script) - 1)]
        return {**super().validate(micro_batch_tokens)} | (
            {} if value is None else {"validation_accuracy": value}
        )


def test_the_highest_accuracy_is_kept_and_patience_counts_from_it(tmp_path):
    by = {"early_stopping_metric": "validation_accuracy"}
    made, log = line(tmp_path, Rising(), patience=3, lr=0.01, train=by), SilentLog()
    made.train(log)
    assert (made.state.best_step, made.state.best_value) == (15, 0.9)
    assert made.state.step == 30  # the three validations after that one were no better
    losses = [row["validation_loss"] for row in log.rows if "validation_loss" in row]
    assert losses == sorted(losses, reverse=True)  # by the loss it would have gone on


def test_the_training_loss_is_a_metric_too(tmp_path):
    made, log = line(tmp_path, train={"early_stopping_metric": "loss"}), SilentLog()
    made.train(log)
    assert made.state.best_value == min(row["loss"] for row in log.rows if "validation_loss" in row)


@pytest.mark.parametrize(
    ("value", "other", "lower"), [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False)]
)
def test_what_is_better(value, other, lower):
    nan = float("nan")
    assert is_better(value, other, "validation_loss") == lower
    assert is_better(other, value, "validation_accuracy") == lower
    assert is_better(value, nan, "validation_loss")
    assert not is_better(nan, value, "validation_loss")
    assert not is_better(nan, nan, "validation_accuracy")


JOBS: dict[str, Any] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "reward": RewardConfig,
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("metric", [*BETTER, "grad_norm", "", "reward", "validation\x1bloss"])
def test_a_metric_that_the_job_does_not_write_is_refused_before_anything_is_read(job, metric):
    config = JOBS[job]()
    config = dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, train=["no-such-file.jsonl"]),
        model=dataclasses.replace(config.model, policy="no-such-model"),
        train=dataclasses.replace(config.train, early_stopping_metric=metric),
    )
    written = {"dpo": PREFERENCES, "reward": REWARD_MODEL["comparisons"]}.get(job, LANGUAGE_MODEL)
    if metric in written:
        validate(config)
        return
    with pytest.raises(ConfigError, match=r"train\.early_stopping_metric") as error:
        validate(config)
    assert "\x1b" not in str(error.value)


def test_every_metric_is_one_that_its_jobs_declare():
    for job, written in {
        "pretrain": LANGUAGE_MODEL,
        "sft": LANGUAGE_MODEL,
        "dpo": PREFERENCES,
        "distill": DISTILLATION,
    }.items():
        assert all(job in declared(name).jobs for name in written)
    for written in REWARD_MODEL.values():
        assert all("reward" in declared(name).jobs for name in written)
    assert {name for names in REWARD_MODEL.values() for name in names} <= BETTER.keys()
