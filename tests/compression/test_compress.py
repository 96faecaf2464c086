"""`proxlm compress`: every stage loads where the next one and others read it, and the same command gives the same."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import proxlm
from proxlm.__main__ import main
from proxlm.config import (
    BlockSettings,
    CalibrationSettings,
    CompressConfig,
    CostSettings,
    DataSettings,
    MagnitudeSettings,
    RecoverSettings,
    RewardSettings,
    RolloutSettings,
    StructuredSettings,
)
from proxlm.errors import ConfigError, ModelError, RunError
from proxlm.jobs.compress import compress_model
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

RECIPE = """
[text]
train = ["{train}"]
validation = ["{held_out}"]
[train]
steps = 4
block = 24
batch_tokens = 96
validate_every = 2
[optim]
lr = 1e-2
warmup = 0
[run]
report = false
"""


@pytest.fixture(scope="module")
def place(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, texts and a recipe."""
    folder = tmp_path_factory.mktemp("compress")
    save_language_model(tiny_model(tokenizer), folder / "model")
    texts = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS * 6]
    (folder / "train.jsonl").write_text("\n".join(texts), encoding="utf-8")
    (folder / "held-out.jsonl").write_text("\n".join(texts[:3]), encoding="utf-8")
    recipe = RECIPE.format(train=folder / "train.jsonl", held_out=folder / "held-out.jsonl")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return folder


def settings(place: Path, **more: Any) -> CompressConfig:
    cost = CostSettings(text=[str(place / "held-out.jsonl")], tokens=20, new_tokens=4, repeats=1)
    return CompressConfig(cost=cost, **more)


def logits(folder: Path) -> torch.Tensor:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return network(input_ids=torch.arange(20)[None] * 7 % 300).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_pruned_weights_stay_0_under_recovery_and_the_same_command_gives_the_same(
    place: Path, tmp_path: Path
) -> None:
    config = settings(
        place,
        magnitude=MagnitudeSettings(sparsity=0.5),
        recover=RecoverSettings(recipe=str(place / "recipe.toml")),
    )
    done = compress_model(place / "model", tmp_path / "a", config)
    assert [cost.name for cost in done.costs] == ["original", "pruned", "recovered"]
    assert done.model == tmp_path / "a" / "recovery" / "policy"
    pruned, recovered = tensors(tmp_path / "a" / "pruned"), tensors(done.model)
    zeros = {name: t == 0 for name, t in pruned.items() if int((t == 0).sum()) == t.numel() // 2}
    assert len(zeros) == 14, "seven matrices in each of two blocks"
    for name, zero in zeros.items():
        assert torch.equal(recovered[name] == 0, zero)
        assert not torch.equal(recovered[name], pruned[name])
    original, after_pruning, after_recovery = done.costs
    assert (original.kl, original.same_token, original.zeros) == (0.0, 1.0, 0.0)
    assert after_pruning.zeros == after_recovery.zeros == 0.5
    assert after_recovery.perplexity < after_pruning.perplexity
    again = compress_model(place / "model", tmp_path / "b", config)
    assert [replace(cost, seconds=0) for cost in again.costs] == [
        replace(cost, seconds=0) for cost in done.costs
    ]
    assert (again.model / "model.safetensors").read_bytes() == (done.model / "model.safetensors").read_bytes()


def test_a_folder_is_gone_on_with_and_one_of_something_else_is_not_touched(
    place: Path, tmp_path: Path
) -> None:
    config = settings(place, recover=RecoverSettings(recipe=str(place / "recipe.toml")))
    whole = compress_model(place / "model", tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(place, tmp_path, config)
    assert not (tmp_path / "part" / "recovered.json").exists()
    done = compress_model(place / "model", tmp_path / "part", config)
    assert (done.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    before = (tmp_path / "part" / "costs.json").read_bytes()
    assert compress_model(place / "model", tmp_path / "part", config).costs == done.costs
    assert (tmp_path / "part" / "costs.json").read_bytes() == before
    with pytest.raises(RunError, match="was begun with other settings"):
        compress_model(place / "model", tmp_path / "part", replace(config, magnitude=MagnitudeSettings(0.3)))
    with pytest.raises(RunError, match="holds something else"):
        compress_model(place / "model", place, config)


def _interrupted(place: Path, tmp_path: Path, config: CompressConfig) -> None:
    """The same, ended in the third step of the recovery, behind the checkpoint of the second."""
    from proxlm.train.supervised.loop import SupervisedLoop

    real = SupervisedLoop.step

    def step(self: Any, log: Any) -> Any:
        if self.state.step == 2:
            raise KeyboardInterrupt
        return real(self, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedLoop, "step", step)
        compress_model(place / "model", tmp_path / "part", config)


@pytest.mark.parametrize("command", ["sft", "distill"])
def test_recovery_by_answers_or_by_the_original_as_teacher(place: Path, tmp_path: Path, command: str) -> None:
    records = [json.dumps({"prompt": t[:9], "response": t[9:]}, ensure_ascii=False) for t in TEXTS * 4]
    (tmp_path / "train.jsonl").write_text("\n".join(records), encoding="utf-8")
    recipe = "\n".join(
        [
            f'[text]\ntrain = ["{tmp_path / "train.jsonl"}"]\nvalidation_share = 0.25',
            "[train]\nsteps = 3\nbatch_tokens = 96\n[optim]\nlr = 1e-2\nwarmup = 0\n[run]\nreport = false",
        ]
    )
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    config = settings(place, recover=RecoverSettings(command=command, recipe=str(tmp_path / "recipe.toml")))
    done = compress_model(place / "model", tmp_path / "out", config)
    _, pruned, recovered = done.costs
    assert recovered.zeros == 0.5
    assert recovered.kl != pruned.kl
    if command == "distill":
        saved = (tmp_path / "out" / "recovery" / "config.toml").read_text("utf-8")
        assert f'teacher = "{place / "model"}"' in saved


@pytest.mark.parametrize("method", ["structured", "blocks"])
def test_a_smaller_model_is_a_plain_one_of_transformers(place: Path, tmp_path: Path, method: str) -> None:
    config = settings(
        place,
        method=method,
        structured=StructuredSettings(heads=0.4 if method == "structured" else 0.25),
        calibration=CalibrationSettings(text=[str(place / "train.jsonl")], count=4, tokens=20),
    )
    done = compress_model(place / "model", tmp_path / "out", config)
    original, pruned = done.costs
    assert pruned.parameters < original.parameters
    assert pruned.size < original.size
    assert pruned.kl > 0
    found = json.loads((done.model / "config.json").read_text("utf-8"))
    network = AutoModelForCausalLM.from_pretrained(done.model)
    assert sum(p.numel() for p in network.parameters()) == pruned.parameters
    if method == "blocks":
        assert found["num_hidden_layers"] == 1
        influence = json.loads((done.model / "pruning.json").read_text("utf-8"))
        assert influence["dropped"] == [influence["influence"].index(min(influence["influence"]))]
    else:
        assert (found["num_attention_heads"], found["head_dim"], found["intermediate_size"]) == (2, 8, 64)
    assert proxlm.generate(str(done.model), ["The cat"], RolloutSettings(max_new_tokens=3))[0].tokens


@pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("xllamacpp") is None, reason="gguf and xllamacpp are not installed"
)
def test_the_quantised_file_is_measured_and_read_by_llama_cpp(
    place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [
        "compress",
        str(place / "model"),
        "--method",
        "none",
        "--quantise",
        "q8_0",
        "--cost.tokens",
        "20",
    ]
    command += ["--cost.text", str(place / "held-out.jsonl"), "--output", str(tmp_path / "out")]
    assert main([*command, "--cost.new-tokens", "4", "--cost.repeats", "1"]) == 0
    assert "q8_0" in capsys.readouterr().out
    original, file = json.loads((tmp_path / "out" / "costs.json").read_text("utf-8"))
    assert file["program"] == "llama.cpp"
    assert file["size"] < original["size"] / 2
    assert 0 < file["kl"] < 0.02
    assert (tmp_path / "out" / "compression.md").read_text("utf-8").count("|") > 20


def test_the_reward_of_the_responses_is_measured_if_asked(place: Path, tmp_path: Path) -> None:
    config = settings(
        place,
        method="blocks",
        calibration=CalibrationSettings(text=[str(place / "train.jsonl")], count=2, tokens=20),
        reward=RewardSettings(use="length", args={"target": 3}),
        data=DataSettings(eval_prompts=str(place / "train.jsonl"), prompt_field="text", eval_count=4),
        rollout=RolloutSettings(max_new_tokens=4),
    )
    done = compress_model(place / "model", tmp_path / "out", config)
    assert all(cost.reward is not None for cost in done.costs)
    assert asdict(done.costs[0])["reward"] == done.costs[0].reward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "none"}, "there is nothing to do"),
        ({"method": "blocks"}, "calibration.text: required"),
        ({"magnitude": MagnitudeSettings(pattern="2:4", sparsity=0.3)}, "2:4 is half of the weights"),
        ({"blocks": BlockSettings(drop=2)}, "method"),
    ],
)
def test_settings_that_do_not_fit_are_errors_before_a_model_is_read(
    place: Path, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compress_model("nowhere", tmp_path / "out", settings(place, **change))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_an_error_and_what_is_corrected_goes_on(place: Path, tmp_path: Path) -> None:
    config = settings(
        place, recover=RecoverSettings(recipe=str(place / "recipe.toml"), set=["model.lora.rank=2"])
    )
    with pytest.raises(ConfigError, match="merged adapters would fill the weights"):
        compress_model(place / "model", tmp_path / "out", config)
    calibration = CalibrationSettings(text=[str(place / "train.jsonl")], count=1, tokens=8)
    blocks = settings(place, method="blocks", calibration=calibration, blocks=BlockSettings(drop=2))
    with pytest.raises(ModelError, match="has 2 blocks"):
        compress_model(place / "model", tmp_path / "wrong", blocks)
    corrected = replace(blocks, blocks=BlockSettings(drop=1))
    assert len(compress_model(place / "model", tmp_path / "wrong", corrected).costs) == 2
    with pytest.raises(ModelError, match=r"no such folder|cannot be loaded"):
        compress_model(tmp_path / "nothing", tmp_path / "other", settings(place))
