"""What does not fit a model's weights is refused by name, by every loader, before a folder is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import proxlm
from causal_types import loaded
from model_types import tiny_network
from proxlm.config import ModelSettings, RewardSettings, load_config
from proxlm.errors import ConfigError, ModelError, UserError
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.sft import SFTTrainer
from proxlm.models.actor_critic import critic_from, make_actor_critic
from proxlm.models.adapters import some_logits
from proxlm.models.agreement import check_gradients
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from proxlm.rewards import build_reward
from small_models import tiny_model

LAYER = "model.layers.0.mlp.up_proj.weight"


def policy(folder):
    return load_language_model(ModelSettings(policy=str(folder), device="cpu"))


def reward_model(folder):
    build_reward(RewardSettings(use="reward_model", args={"path": str(folder), "device": "cpu"})).prepare()


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A policy, and a classifier of the same sizes."""
    from transformers import LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("models")
    model = tiny_model(tokenizer)
    save_language_model(model, folder / "policy")
    config = type(model.network.config).from_pretrained(folder / "policy", num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder


def loaders(tokenizer):
    def critic(folder):
        critic_from(make_actor_critic(tiny_model(tokenizer), "separate"), str(folder))

    return {"policy": policy, "reward": reward_model, "critic": critic}


def prefixed(prefix):
    return lambda weights: {prefix + name: w for name, w in weights.items()}


def without(*ends):
    return lambda weights: {name: w for name, w in weights.items() if not name.endswith(ends)}


def renamed(weights):
    return {name.replace("up_proj", "w3"): w for name, w in weights.items()}


DAMAGE = {
    "value-head prefix": (prefixed("pretrained_model."), "there with pretrained_model. before their names"),
    "compiled prefix": (prefixed("_orig_mod."), "there with _orig_mod. before their names"),
    "parallel prefix": (prefixed("module."), "there with module. before their names"),
    "one tensor missing": (without(LAYER), f"missing: {LAYER};"),
    "a layer missing": (without("layers.1.mlp.up_proj.weight", "layers.1.mlp.down_proj.weight"), "missing: "),
    "embedding missing": (without("embed_tokens.weight"), r"missing: (lm_head|model\.embed_tokens)\.weight"),
    "other names": (renamed, r"unknown: model\.layers\.0\.mlp\.w3\.weight and 1 more"),
    "a tensor more": (
        lambda w: {**w, "v_head.summary.weight": torch.ones(1, 32)},
        r"unknown: v_head\.summary\.weight",
    ),
    "a layer more": (
        lambda w: {**w, LAYER.replace("0", "7"): w[LAYER].clone()},
        r"unknown: model\.layers\.7",
    ),
    "another shape": (
        lambda w: {**w, LAYER: w[LAYER][:-2].contiguous()},
        r"of another shape: model\.layers\.0\.mlp\.up",
    ),
    "transposed": (lambda w: {**w, LAYER: w[LAYER].T.contiguous()}, r"of another shape: model\.layers\.0"),
    "nothing": (lambda w: {}, "missing: "),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("loader", ["policy", "reward", "critic"])
def test_tensors_that_do_not_fit_are_named(saved, tmp_path, tokenizer, loader, damage):
    source = saved / ("policy" if loader == "policy" else "reward")
    folder = Path(shutil.copytree(source, tmp_path / "bad"))
    load = loaders(tokenizer)[loader]
    load(folder)
    change, message = DAMAGE[damage]
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message) as raised:
        load(folder)
    text = str(raised.value)
    assert str(folder) in text
    assert text.count(" … ") == 0  # whole, in one line


def test_names_that_mean_nothing_new_are_understood(saved, tmp_path):
    """Buffers of former times, and a tied head that stands in the file as well."""
    folder = Path(shutil.copytree(saved / "policy", tmp_path / "old"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    old, new = policy(folder), policy(saved / "policy")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(old.network(ids).logits, new.network(ids).logits)


def test_a_checkpoint_in_parts_needs_all_of_them(saved, tmp_path, tokenizer):
    network = tiny_network("llama", tokenizer)
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(policy(tmp_path).network(ids).logits, network(ids).logits)
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    parts[1].rename(tmp_path / "away")
    with pytest.raises(ModelError):
        policy(tmp_path)
    # An index that does not know of the part is no better.
    whole["weight_map"] = {n: f for n, f in whole["weight_map"].items() if f != parts[1].name}
    index.write_text(json.dumps(whole))
    with pytest.raises(ModelError, match="missing: "):
        policy(tmp_path)


def test_weights_that_are_there_twice_are_refused(tokenizer, tmp_path):
    """transformers would take the single file, whichever is the newer."""
    network = tiny_network("llama", tokenizer)
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    save_file({name: torch.zeros(1) for name in ("a", "b")}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"holds weights twice, in model\.safetensors and in the parts"):
        policy(tmp_path)


def test_quantised_weights_are_refused(saved, tmp_path):
    folder = Path(shutil.copytree(saved / "policy", tmp_path / "small"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"its weights are quantised \(gptq\); .*use the model that it was made from"
    ):
        policy(folder)


def test_a_language_model_is_no_reward_model(saved):
    with pytest.raises(ConfigError, match="a LlamaForCausalLM; a reward model is a trained classifier"):
        reward_model(saved / "policy")


def test_a_base_model_that_is_called_a_classifier_is_refused_as_critic(saved, tmp_path, tokenizer):
    """By its configuration; one that says that it is a language model begins a critic with V = 0."""
    folder = Path(shutil.copytree(saved / "policy", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for names in (["LlamaForSequenceClassification"], ["LlamaModel"], None):
        (folder / "config.json").write_text(json.dumps({**config, "architectures": names}), "utf-8")
        with pytest.raises(
            ModelError, match=r"missing: score\.weight.*a reward model is a trained classifier"
        ):
            loaders(tokenizer)["critic"](folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
@pytest.mark.parametrize("loader", ["policy", "reward", "critic"])
def test_pickled_weights_are_refused_with_how_to_convert_them(saved, tmp_path, tokenizer, loader, name):
    folder = Path(shutil.copytree(saved / ("policy" if loader == "policy" else "reward"), tmp_path / "old"))
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"never read")
    with pytest.raises(ModelError, match=rf"only pickled weights \({name}\).*safetensors are needed"):
        loaders(tokenizer)[loader](folder)


def longer(tokenizer, folder, count, special=False):
    """Give the folder a tokenizer of `count` tokens more."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder)
    made.add_tokens([f"<tool{i}>" for i in range(count)], special_tokens=special)
    made.save_pretrained(folder)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("loader", ["policy", "reward"])
def test_a_tokenizer_longer_than_the_embedding_is_refused(saved, tmp_path, tokenizer, loader, count):
    folder = Path(shutil.copytree(saved / loader, tmp_path / "long"))
    longer(tokenizer, folder, count)
    size = len(tokenizer)
    with pytest.raises(
        ModelError, match=f"the tokenizer has {size + count} tokens.*embedding {size}; call resize"
    ):
        loaders(tokenizer)[loader](folder)


def test_special_tokens_beyond_the_embedding_are_refused_where_a_text_holds_one(saved, tmp_path, tokenizer):
    """As in Gemma 3, whose tokenizer has the place of an image, and whose text models have no row for it."""
    folder = Path(shutil.copytree(saved / "policy", tmp_path / "long"))
    longer(tokenizer, folder, 2, special=True)
    model = proxlm.load_model(folder, proxlm.ModelSettings(device="cpu"))
    size = len(tokenizer)
    assert len(model.tokenizer) == size + 2
    assert len(proxlm.generate(model, ["The cat"], proxlm.RolloutSettings(max_new_tokens=2))) == 1
    message = (
        rf"holds the special token <tool1>, .*its number is {size + 1}, and the embedding has {size} rows"
    )
    with pytest.raises(ModelError, match=message):
        proxlm.generate(model, ["The cat", "a <tool1> b"], proxlm.RolloutSettings(max_new_tokens=2))
    run = proxlm.RunSettings(folder=str(tmp_path / "run"), tensorboard=False)
    texts = ["The cat", "a dog", "sat <tool1>"]
    config = proxlm.PPOConfig(
        data=proxlm.DataSettings(eval_count=0), ppo=proxlm.PPOSettings(batch_size=2, minibatches=1), run=run
    )
    with pytest.raises(ModelError, match=f"prompt 'sat <tool1>': {message}"):
        proxlm.PPOTrainer(model, lambda answers: [1.0] * len(answers), texts, config).train()
    pairs = [{"prompt": text, "response": " sat <tool1>."} for text in texts * 4]
    with pytest.raises(ModelError, match=f"the records: {message}"):
        proxlm.SFTTrainer(model, pairs, proxlm.SFTConfig(run=run)).train()
    assert not (tmp_path / "run").exists()


def test_a_special_token_that_every_text_gets_must_have_an_embedding(saved, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(saved / "policy", tmp_path / "long"))
    made = AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens({"eos_token": "<new end>"})
    made.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"the last is '<new end>'.*call resize"):
        loaders(tokenizer)["policy"](folder)


@pytest.mark.parametrize("job", ["ppo", "sft"])
def test_a_job_that_cannot_load_its_model_leaves_no_folder(saved, tmp_path, tokenizer, job):
    folder = Path(shutil.copytree(saved / "policy", tmp_path / "long"))
    longer(tokenizer, folder, 2)
    rows = [{"prompt": f"The cat {i}", "response": " sat."} for i in range(12)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model.policy": str(folder), "run.folder": str(tmp_path / "run"), "run.tensorboard": False}
    if job == "ppo":
        settings |= {
            "data.prompts": str(data),
            "data.eval_count": 1,
            "reward.use": "length",
            "rollout.max_new_tokens": 4,
        }
        settings |= {"reward.args": {"target": 4}, "ppo.steps": 1, "ppo.batch_size": 2}
        trainer = PPOTrainer(config=load_config("ppo", None, settings))
    else:
        settings |= {"text.train": [str(data)], "train.steps": 1}
        trainer = SFTTrainer(config=load_config("sft", None, settings))
    with pytest.raises(UserError, match="the tokenizer has"):
        trainer.train()
    assert not (tmp_path / "run").exists()


def test_the_padding_token_keeps_its_embedding(tokenizer, tmp_path):
    """transformers sets it to 0 while it loads a Youtu model."""
    model = loaded(tokenizer, "youtu")
    save_language_model(model, tmp_path)
    again = load_language_model(ModelSettings(policy=str(tmp_path), device="cpu"))
    with torch.no_grad():
        assert torch.equal(some_logits(again.network), some_logits(model.network))


def test_a_type_without_gradients_in_evaluation_mode_is_refused(tokenizer):
    with pytest.raises(ModelError, match=r"reformer: .*model type reformer cannot be run"):
        check_gradients(loaded(tokenizer, "reformer"))
    check_gradients(loaded(tokenizer, "opt"))
