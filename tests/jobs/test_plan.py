"""`proxlm plan`: from a recipe and a config.json alone to memory, seconds, and settings that make it fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxlm.__main__ import main
from proxlm.models.weights import read_configuration

MODEL = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 4,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 4096,
}  # fmt: skip
RECIPE = """
job = "ppo"
[model]
policy = "large"
[data]
prompts = "not-there.txt"
max_prompt_tokens = 512
[reward]
use = "length"
[rollout]
max_new_tokens = 512
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a model of which only the configuration is there, and no data."""
    monkeypatch.chdir(tmp_path)
    Path("large").mkdir()
    Path("large/config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def plan(*more: str) -> dict:
    assert main(["plan", "recipe.toml", "--output", "plan.json", *more]) == 0
    return json.loads(Path("plan.json").read_text(encoding="utf-8"))


def test_a_plan_needs_no_weights_and_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan("--gpus", "8")
    best = found["ways"][0]
    assert best["fits"]
    assert best["trainers"] + best["servers"] == 8
    assert best["step_seconds"] == pytest.approx(sum(best["seconds"].values()))
    said = capsys.readouterr().out
    for word in (
        "policy",
        "moments",
        "gradients",
        "reference",
        "generate",
        "update",
        "TFLOP",
        "tokens/s",
        "best: ",
    ):
        assert word in said


def test_a_small_model_is_in_mib_on_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """And no figure of it is shown as 0 or as a power of ten."""
    small = dict(MODEL, hidden_size=56, intermediate_size=64, vocab_size=300)
    Path("large/config.json").write_text(json.dumps(small), encoding="utf-8")
    memory = plan()["ways"][0]
    said = capsys.readouterr().out
    assert said.rstrip().splitlines()[-2] == "it fits on one GPU"
    table = said[said.index("the GPU at its fullest") :].split("\n\n")[0]
    assert table.splitlines()[1].split() == ["memory", "MiB", "when"]
    assert float(table.splitlines()[-1].split()[2]) == pytest.approx(memory["peak_bytes"] / 2**20, rel=0.01)
    assert "of 80.0 GiB" in table
    assert "e-0" not in table


def test_memory_is_split_by_part() -> None:
    """AdamW in float32: moments are twice what learns; the reference is the policy again."""
    memory = plan()["ways"][0]["memory_bytes"]
    kept = memory["always"]
    assert kept["reference"] == kept["policy"]
    assert kept["moments"] == 2 * (kept["policy"] + kept["critic"])
    assert memory["update"]["gradients"] == kept["policy"] + kept["critic"]
    assert {"keys and values", "engine's weights", "logits of a token"} <= set(memory["generate"])


@pytest.mark.parametrize("gib", ["30", "42", "55"])
def test_a_setting_that_is_named_makes_it_fit(gib: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan("--gpu-memory", gib)
    assert not found["ways"][0]["fits"]
    changes = found["changes"]
    assert changes
    assert changes[0]["key"] in capsys.readouterr().out
    together = [] if changes[0]["fits"] else [f"{c['key']}={c['value']}" for c in changes]
    for change in changes if changes[0]["fits"] else changes[-1:]:
        chosen = together or [f"{change['key']}={change['value']}"]
        again = plan("--gpu-memory", gib, *(word for one in chosen for word in ("--set", one)))
        assert again["ways"][0]["fits"], chosen


def test_what_nothing_helps_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu-memory", "0.5")["changes"] == []
    assert "more memory" in capsys.readouterr().out


def test_given_rates_decide_the_seconds() -> None:
    slow, fast = (plan("--tflops", flops, "--overhead", "0")["ways"][0]["seconds"] for flops in ("1", "100"))
    assert slow["update"] > 20 * fast["update"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "model.policy=gone"], ["gone"]),
        (["--prompt_tokens", "4000"], ["4000", "4096", "max_new_tokens"]),
        (["--response_tokens", "600"], ["response_tokens = 600", "512"]),
        (["--gpus", "0"], ["gpus = 0"]),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    more: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "recipe.toml", *more]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert all(word in said for word in words)


def test_other_commands_are_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    Path("reward.toml").write_text(
        'job = "reward"\n[model]\npolicy = "large"\n[text]\ntrain = ["none.jsonl"]\n', encoding="utf-8"
    )
    assert main(["plan", "reward.toml"]) == 2
    assert "ppo, value, sft and pretrain" in capsys.readouterr().err


def test_supervised_training_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sft.toml").write_text(
        'job = "sft"\n[model]\npolicy = "large"\n[text]\ntrain = ["none.jsonl"]\n', encoding="utf-8"
    )
    assert main(["plan", "sft.toml", "--output", "plan.json"]) == 0
    kept = json.loads(Path("plan.json").read_text(encoding="utf-8"))["ways"][0]["memory_bytes"]["always"]
    assert set(kept) == {"policy", "moments"}
    assert "generate" not in capsys.readouterr().out


def test_of_a_name_on_the_hub_the_configuration_alone_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("proxlm.models.source.read_configuration", lambda *_: read_configuration("large"))
    plan("--set", "model.policy=owner/large")
    assert "of the hub config.json alone was read, no weights: owner/large" in capsys.readouterr().out
    plan()
    assert "of the hub" not in capsys.readouterr().out
