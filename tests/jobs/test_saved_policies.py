"""What a run leaves: its policy with template and adapters, which the next job takes up."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model_types import logits_of, tiny_network
from proxlm.config import LoraSettings, ModelSettings, load_config
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.sft import SFTTrainer
from proxlm.models.load import load_language_model

TEMPLATE = "{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% endfor %}"


@pytest.fixture
def place(tokenizer, tmp_path, monkeypatch):
    """The current folder, with a model, prompts, examples and a reward."""
    monkeypatch.chdir(tmp_path)
    tiny_network("llama", tokenizer, std=0.2, tie_word_embeddings=False).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [{"prompt": f"The cat {i}", "response": " sat on the mat."} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    (tmp_path / "reward.py").write_text(
        "import zlib\n\n\n"
        "def score(completions):\n"
        "    return [zlib.crc32(c.text.encode()) % 100 / 50 - 1 for c in completions]\n"
    )
    return tmp_path


def ppo(folder, **settings):
    plain = {
        "model.policy": "model", "data.prompts": "rows.jsonl", "data.eval_count": 1, "reward.use": "reward.py:score",
        "rollout.max_new_tokens": 6, "ppo.steps": 2, "ppo.batch_size": 4, "optim.policy.lr": 1e-2,
        "optim.policy.schedule": "constant", "run.tensorboard": False, "run.report": False, "run.folder": folder,
    }  # fmt: skip
    made = {**plain, **{name.replace("__", "."): value for name, value in settings.items()}}
    return PPOTrainer(config=load_config("ppo", None, made)).train()


def sft(folder, **settings):
    plain = {
        "model.policy": "model", "text.train": ["rows.jsonl"], "train.steps": 3, "optim.lr": 1e-2, "optim.warmup": 0,
        "run.tensorboard": False, "run.report": False, "run.folder": folder,
    }  # fmt: skip
    made = {**plain, **{name.replace("__", "."): value for name, value in settings.items()}}
    return SFTTrainer(config=load_config("sft", None, made)).train()


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def loaded(folder, rank=0):
    return load_language_model(ModelSettings(policy=str(folder), device="cpu", lora=LoraSettings(rank=rank)))


def logits(model):
    return logits_of(model.network, model.tokenizer("The cat 1 sat").input_ids)


def test_ppo_saves_the_chat_template_that_it_used(place):
    run = ppo("run", data__chat=True, data__chat_template="template.jinja")
    for folder in (run.model, run.folder / "checkpoints" / "step-00000002" / "policy"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    ppo("resumed", data__chat=True, data__chat_template="template.jinja", ppo__steps=1)


@pytest.mark.parametrize("critic", ["shared", "separate", "adapter"])
@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "up_proj"]])
def test_adapters_at_either_end_learn_and_are_saved(place, critic, targets):
    settings = {"model__critic": critic, "model__lora__rank": 2, "model__lora__targets": targets}
    run = ppo("run", **settings)
    for row in rows_of(run.folder):
        assert row["first_minibatch/ratio_error"] == 0
        assert row["rollout_gap"] < 1e-4
        assert row["grad_norm/policy"] > 0
    saved = logits(loaded(run.model))
    assert float((saved - logits(loaded("model"))).abs().max()) > 1e-3
    from_adapter = logits(loaded(f"{run.model}/adapter", rank=2))
    assert torch.allclose(saved, from_adapter, atol=1e-4)


def test_an_adapter_goes_from_sft_through_ppo_and_a_resume(place):
    first = sft("first", model__lora__rank=4)
    start = logits(loaded(first.model))
    settings = {"model__policy": f"{first.model}/adapter", "model__lora__rank": 4, "model__critic": "adapter"}
    whole = ppo("whole", **settings, ppo__steps=3)
    rows = rows_of(whole.folder)
    # The reference is what the run began with, not the bare base.
    assert abs(rows[0]["kl"]) < 1e-6
    assert [row["first_minibatch/ratio_error"] for row in rows] == [0, 0, 0]
    # The adapter still is one of the first base's.
    adapter = f"{whole.model}/adapter"
    base = json.loads((place / adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(place / "model")
    after = logits(loaded(adapter, rank=4))
    assert float((after - start).abs().max()) > 1e-3
    assert torch.allclose(after, logits(loaded(whole.model)), atol=1e-4)
    # A resume is exact.
    ppo("parts", **settings, ppo__steps=3, run__save_every=1, run__keep=9)
    newest = place / "parts" / "checkpoints" / "step-00000003"
    files = ("state.safetensors", "policy/model.safetensors", "policy/adapter/adapter_model.safetensors")
    before = {name: load_file(newest / name) for name in files}
    for folder in (newest, place / "parts" / "policy"):
        folder.rename(place / f"gone-{folder.name}")
    ppo("parts", **settings, ppo__steps=3, run__save_every=1, run__keep=9, run__resume=True)
    for name, tensors in before.items():
        again = load_file(newest / name)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], t) for key, t in tensors.items())
