"""Exports: what other programs read computes what the original does, and what would not is never finished."""

from __future__ import annotations

import gc
import json
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import proxlm
from proxlm.__main__ import main
from proxlm.config import ExportCheckSettings, ExportConfig, LoraSettings, ModelSettings
from proxlm.config.tokenizer import TokenizerSettings
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError, ModelError, RunError
from proxlm.jobs.export import export_model
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

if find_spec("gguf") is not None:
    from gguf_files import tiny_llama

gguf = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("xllamacpp") is None, reason="gguf and xllamacpp are not installed"
)
QUICK = ExportCheckSettings(count=3, tokens=12, greedy=6)


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models by type, with heads that see more keys than they have."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for kind in ("llama", "qwen2", "qwen3", "gpt2", "lstm"):
        made[kind] = root / kind
        save_language_model(tiny_model(tokenizer, kind), made[kind])
    return made


def exported(model: Any, output: Path, format: str, weights: str = "float32", **more: Any) -> Any:
    return export_model(model, output, ExportConfig(format=format, weights=weights, check=QUICK, **more))


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.arange(24)[None] * 5 % 200).logits


@gguf
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_llama_cpp_computes_what_the_model_does(folders: Any, tmp_path: Path, kind: str) -> None:
    done = exported(folders[kind], tmp_path / "out", "gguf")
    assert done.agreement.reader == "llama.cpp"
    assert done.agreement.same_ids == done.agreement.texts >= 20
    assert done.agreement.kl < 1e-8
    assert done.agreement.difference < 2e-3
    assert done.agreement.greedy == done.agreement.same_token == 1.0
    record = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert record["agreement"]["kl"] == done.agreement.kl
    assert len(record["sha256"]["model"]["model.safetensors"]) == 64


@gguf
@pytest.mark.parametrize(
    ("weights", "most", "tensors"),
    [
        ("float16", 1e-3, "15 F16, 5 F32"),
        ("q8_0", 0.02, "15 Q8_0, 5 F32"),
        ("q5_1", 0.1, "1 Q8_0, 14 Q5_1, 5 F32"),
        ("q4_0", 0.5, "1 Q8_0, 14 Q4_0, 5 F32"),
    ],
)
def test_fewer_bits_cost_little_and_make_it_smaller(
    tokenizer: Any, tmp_path: Path, weights: str, most: float, tensors: str
) -> None:
    network = tiny_llama(tokenizer)
    config = ExportConfig(format="gguf", weights=weights, check=QUICK)
    done = export_model(network, tmp_path / "out", config, tokenizer=tokenizer)
    assert 0 < done.agreement.kl < most
    assert done.notes == [f"tensors: {tensors}; text is split as llama.cpp's gpt-2"]


@gguf
def test_a_tokenizer_of_the_sentencepiece_kind_gives_the_same_ids(stories: Path, tmp_path: Path) -> None:
    done = exported(stories, tmp_path / "out", "gguf", "bfloat16")
    assert done.agreement.same_ids == done.agreement.texts
    assert 0 < done.agreement.kl < 0.01


@gguf
def test_transformers_and_proxlm_read_the_same_numbers(
    folders: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exported(folders["llama"], tmp_path / "out", "gguf")
    original = load_language_model(ModelSettings(policy=str(folders["llama"]), device="cpu"))
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model-float32.gguf", dtype=torch.float32
    )
    assert torch.equal(logits(read), logits(original.network))
    file = str(tmp_path / "out" / "model-float32.gguf")
    imported = load_language_model(ModelSettings(policy=file, device="cpu"))
    assert torch.equal(logits(imported.network), logits(original.network))
    for text in TEXTS:
        assert imported.tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]


@gguf
def test_the_same_export_is_the_same_bytes(folders: Any, tmp_path: Path) -> None:
    first, second = (exported(folders["qwen3"], tmp_path / name, "gguf", "q8_0").folder for name in "ab")
    assert (first / "model-q8_0.gguf").read_bytes() == (second / "model-q8_0.gguf").read_bytes()


@gguf
def test_an_untied_head_and_fewer_key_heads_are_written(tokenizer: Any, tmp_path: Path) -> None:
    network = tiny_llama(tokenizer, tie_word_embeddings=False, attention_bias=True)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    done = export_model(
        network, tmp_path / "out", ExportConfig(format="gguf", check=QUICK), tokenizer=tokenizer
    )
    assert done.agreement.kl < 1e-8
    assert done.agreement.same_token == 1.0


@gguf
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "hidden_act", "gelu"), "hidden_act = gelu, which llama.cpp's llama has not"),
        (
            lambda c: c.rope_parameters.update(rope_type="linear", factor=2.0),
            "rotary positions of the kind linear",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tokenizer: Any, tmp_path: Path, change: Any, message: str
) -> None:
    network = tiny_model(tokenizer).network
    change(network.config)
    with pytest.raises(ModelError, match=message):
        export_model(network, tmp_path / "out", ExportConfig(format="gguf", check=QUICK), tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


@gguf
def test_a_tokenizer_that_splits_in_a_way_without_a_name_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    from tokenizers import pre_tokenizers

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ModelError, match=r"llama.cpp has no name for how its tokenizer splits text"):
        export_model(
            tiny_model(tokenizer).network, tmp_path / "out", ExportConfig(format="gguf"), tokenizer=other
        )


@gguf
def test_single_characters_and_bytes_are_written_and_what_llama_cpp_cannot_do_is_refused(
    tmp_path: Path,
) -> None:
    def output(**settings: Any) -> Any:
        made = train_tokenizer(TEXTS * 5, 400, 64, settings=TokenizerSettings(**settings))
        return exported(tiny_model(made), tmp_path / str(settings), "gguf")

    done = output(kind="characters", whole_han=1)
    assert done.agreement.same_ids == done.agreement.texts
    assert done.agreement.kl < 1e-8
    for settings, message in (
        ({"kind": "characters", "unknown": "unk"}, "unknown characters are one token each"),
        ({"kind": "bpe", "whole_han": 1}, "as llama.cpp's SentencePiece kind does not"),
        ({"kind": "unigram"}, "of the kind Unigram"),
        ({"kind": "bpe", "lowercase": True}, "no name for how its tokenizer splits text"),
    ):
        with pytest.raises(ModelError, match=message):
            output(**settings)


@pytest.mark.parametrize("weights", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "lstm"])
def test_safetensors_hold_the_weights_rounded_and_nothing_else(
    folders: Any, tmp_path: Path, kind: str, weights: str
) -> None:
    from safetensors.torch import load_file

    done = exported(folders[kind], tmp_path / "out", "safetensors", weights)
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[kind], tmp_path / "out"))
    dtype = getattr(torch, weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], t.to(dtype)) for name, t in before.items())
    assert done.agreement.reader == "transformers"
    assert (done.agreement.kl == 0.0) == (weights == "float32")


def test_an_adapter_is_merged_or_written_for_peft(folders: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = LoraSettings(rank=4)
    model = load_language_model(ModelSettings(policy=str(folders["qwen3"]), device="cpu", lora=lora))
    with torch.no_grad():
        for name, p in model.trainable():
            if "lora_B" in name:
                p.normal_(std=0.1)
    save_language_model(model, tmp_path / "policy")
    whole = exported(tmp_path / "policy", tmp_path / "whole", "safetensors")
    assert whole.agreement.kl == 0.0
    done = exported(tmp_path / "policy", tmp_path / "adapter", "adapter")
    assert done.agreement.reader == "PEFT"
    assert done.agreement.kl < 1e-9
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == str(folders["qwen3"])
    base = AutoModelForCausalLM.from_pretrained(folders["qwen3"], dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    assert torch.allclose(logits(adapted), logits(merged), atol=1e-4)
    again = exported(tmp_path / "adapter", tmp_path / "again", "adapter", base=str(folders["qwen3"]))
    assert again.agreement.kl < 1e-9
    with pytest.raises(ModelError, match="disagrees with the original"):
        exported(tmp_path / "adapter", tmp_path / "wrong", "adapter", base=_other_base(folders, tmp_path))
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ModelError, match="no adapter's folder"):
        exported(folders["qwen3"], tmp_path / "none", "adapter")


def _other_base(folders: Any, tmp_path: Path) -> str:
    model = load_language_model(ModelSettings(policy=str(folders["qwen3"]), device="cpu"))
    with torch.no_grad():
        model.network.model.norm.weight.mul_(1.5)
    save_language_model(model, tmp_path / "other")
    return str(tmp_path / "other")


@pytest.mark.parametrize("kind", ["reward", "process"])
def test_classifiers_keep_their_scores(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    from proxlm.models.classifier import load_classifier, save_classifier
    from proxlm.models.source import ModelSource

    source = ModelSource(ModelSettings(device="cpu"), tiny_model(tokenizer).network, tokenizer)
    model = load_classifier(source, labels=1, per_token=kind == "process")
    with torch.no_grad():
        model.output_layer.weight.normal_()
    save_classifier(model, tmp_path / "model")
    done = exported(tmp_path / "model", tmp_path / "out", "safetensors", "bfloat16")
    assert done.agreement.kl is None
    assert 0 < done.agreement.difference < 0.5
    with pytest.raises(ModelError, match=r"a classifier of t.* where a language model is needed"):
        exported(tmp_path / "model", tmp_path / "gguf", "gguf")


def test_an_encoder_decoder_is_safetensors_alone(tmp_path: Path) -> None:
    save_language_model(tiny_model(train_tokenizer(TEXTS * 20, 300, 64, True), "t5"), tmp_path / "t5")
    done = exported(tmp_path / "t5", tmp_path / "out", "safetensors", "bfloat16")
    assert 0 < done.agreement.kl < 0.02
    for format in ("gguf", "onnx"):
        with pytest.raises(ModelError, match=r"an? encoder–decoder"):
            exported(tmp_path / "t5", tmp_path / format, format)


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_onnx_computes_what_the_model_does_for_any_batch_and_length(folders: Any, tmp_path: Path) -> None:
    import onnxruntime

    done = exported(folders["qwen3"], tmp_path / "out", "onnx")
    assert done.agreement.reader == "onnxruntime"
    assert done.agreement.kl < 1e-9
    assert done.agreement.greedy == 1.0
    original = load_language_model(ModelSettings(policy=str(folders["qwen3"]), device="cpu")).network
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    ids = torch.arange(60).reshape(4, 15) * 7 % 300
    mask = (torch.arange(15) < torch.tensor([[15], [9], [1], [4]])).long()
    (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    for row, length in enumerate(mask.sum(1).tolist()):
        with torch.no_grad():
            alone = original(input_ids=ids[row : row + 1, :length]).logits[0]
        assert torch.allclose(torch.from_numpy(found[row, :length]), alone, atol=1e-4)
    with pytest.raises(ModelError, match="LSTM"):
        exported(folders["lstm"], tmp_path / "lstm", "onnx")


def test_what_disagrees_is_not_finished(folders: Any, tmp_path: Path, capsys: Any) -> None:
    check = ["--check.count", "2", "--check.tokens", "8", "--check.greedy", "0", "--check.kl", "1e-12"]
    command = ["export", str(folders["llama"]), "--weights", "bfloat16", "--output", str(tmp_path / "out")]
    assert main([*command, *check]) == 2
    assert "disagrees with the original: mean KL" in capsys.readouterr().err
    assert list(tmp_path.glob("*out*")) == []


def test_nothing_is_written_over(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="is there already"):
        exported(folders["llama"], tmp_path / "out", "safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "safetensors", "weights": "q8_0"}, "holds float32, float16, bfloat16"),
        ({"format": "onnx", "weights": "float16"}, "holds float32"),
        ({"base": "x"}, 'is for format = "adapter"'),
    ],
)
def test_settings_that_do_not_fit_are_errors_before_a_model_is_read(
    tmp_path: Path, settings: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model("nowhere", tmp_path / "out", ExportConfig(**settings))


def test_weights_beyond_float16_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.network.model.norm.weight[3] = 1e6
    with pytest.raises(ModelError, match=r"model.norm.weight has weights beyond 6.55e\+04"):
        exported(model, tmp_path / "out", "safetensors", "float16")


def test_a_model_in_memory_is_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model(tokenizer)
    before = {name: p.clone() for name, p in model.network.state_dict().items()}
    done = exported(model, tmp_path / "out", "safetensors")
    assert done.agreement.kl == 0.0
    assert all(torch.equal(p, before[name]) for name, p in model.network.state_dict().items())
    assert proxlm.export_model is export_model


def test_held_out_texts_come_first_and_a_runs_folder_is_its_model(folders: Any, tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "held-out.txt"
    run.mkdir()
    (run / "config.toml").write_text('job = "sft"\n', encoding="utf-8")
    with pytest.raises(ModelError, match="a run without a model yet"):
        exported(run, tmp_path / "out", "safetensors")
    (run / "policy").symlink_to(folders["llama"])
    text.write_text("The cat sat.", encoding="utf-8")
    check = ExportCheckSettings(text=[str(text)], count=1, greedy=0)
    done = export_model(run, tmp_path / "out", ExportConfig(check=check))
    ids = load_language_model(ModelSettings(policy=str(folders["llama"]), device="cpu")).tokenizer(
        "The cat sat."
    )
    assert done.agreement.outputs == len(ids["input_ids"])
    assert done.agreement.greedy is None


def test_the_original_is_let_go_before_the_export_is_read(
    folders: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from proxlm.export import formats
    from proxlm.jobs import export

    seen: list[Any] = []
    load, read = export.load_original, formats.plain_transformers

    def loaded(source: Any) -> Any:
        original = load(source)
        seen.append(weakref.ref(original.network))
        return original

    def reading(folder: Path, original: Any) -> Any:
        gc.collect()
        seen.append(seen[0]() is None)
        return read(folder, original)

    monkeypatch.setattr(export, "load_original", loaded)
    monkeypatch.setattr(formats, "plain_transformers", reading)
    exported(folders["llama"], tmp_path / "out", "safetensors")
    assert seen[1] is True
