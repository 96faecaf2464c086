"""What sharded weights cannot be used for is said before a model or data is read."""

from typing import Any

import pytest

from proxlm.config import load_config
from proxlm.errors import ConfigError

SHARDED: dict[str, Any] = {"distributed.strategy": "fsdp", "model.policy": "not there"}
JOBS: dict[str, dict[str, Any]] = {
    "ppo": {"data.prompts": "p", "ppo.staleness_correction.mode": "token_truncate"},
    "pretrain": {"text.train": ["t"], "text.validation": ["t"], "optim.weight_decay": 0.0},
    "sft": {"text.train": ["t"]},
    "reward": {"text.train": ["t"], "ensemble.size": 2},
    "dpo": {"text.train": ["t"]},
    "distill": {
        "data.prompts": "p",
        "model.teacher": "t",
        "distill.eval_samples": 0,
    },
}
SUPERVISED = [job for job in JOBS if job != "ppo"]
REFUSED = [
    *(("ppo", key, value) for key, value in (("ppo.max_staleness", 1), ("ppo.loss", "trpo"))),
    *(("ppo", f"optim.{part}.name", "muon") for part in ("policy", "critic")),
    *((job, "optim.name", name) for job in SUPERVISED for name in ("muon", "lbfgs", "adafactor")),
    ("reward", "ensemble.save", "average"),
    ("distill", "distill.mode", "on_policy"),
    ("distill", "distill.eval_samples", 4),
]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model.train_layers": 1},
        {"model.freeze": ["*.mlp.*"]},
        {"model.precision": "bfloat16"},
        {"model.lora.rank": 2},
    ],
)
def test_what_sharded_weights_can_be_used_for(job: str, more: dict[str, Any]) -> None:
    load_config(job, None, SHARDED | JOBS[job] | more)


@pytest.mark.parametrize("job", SUPERVISED)
def test_averages_and_dropout_can_be_sharded(job: str) -> None:
    more: dict[str, Any] = {"train.average": "ema", "train.dropout": 0.1}
    if job == "dpo":  # it compares log-probs with the reference's
        del more["train.dropout"]
    if job == "reward":  # an ensemble has no other average
        more["ensemble.size"] = 1
    load_config(job, None, SHARDED | JOBS[job] | more)


@pytest.mark.parametrize("job", [job for job in JOBS if job != "reward"])
def test_sharded_weights_and_checkpointing_go_together(job: str) -> None:
    load_config(job, None, SHARDED | JOBS[job] | {"model.activation_checkpointing": True})


@pytest.mark.parametrize(("job", "key", "value"), REFUSED)
def test_what_sharded_weights_cannot_be_used_for(job: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(job, None, SHARDED | JOBS[job] | {key: value})
    assert key in str(raised.value)
    assert "not with distributed.strategy = fsdp; set that to ddp" in str(raised.value)


def test_a_critic_alone_is_not_sharded() -> None:
    with pytest.raises(ConfigError, match="critic is saved from whole weights; set it to ddp"):
        load_config("value", None, SHARDED | {"data.prompts": "p"})
