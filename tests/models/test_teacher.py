"""What can be a teacher, and what is refused before any weights are read: by its kind, its tokens and its context."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from proxlm.config import LoraSettings, ModelSettings, NewModelSettings
from proxlm.data.tokenizer import different_tokens
from proxlm.errors import ConfigError, ModelError
from proxlm.models.actor_critic import load_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.forward import token_outputs
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.save import save_language_model
from proxlm.models.source import ModelSource
from proxlm.models.teacher import check_teacher, note_on_ends
from proxlm.types import Sequences
from small_models import tiny_model

pytestmark = pytest.mark.checklist(46)
TEXTS = Sequences.from_lists([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("teachers")
    for name, family, seed in (
        ("policy", "llama", 0),
        ("teacher", "gpt2", 1),
        ("both", "t5", 0),
        ("two", "bart", 0),
    ):
        save_language_model(tiny_model(tokenizer, family, seed=seed), place / name)
    # Of these nothing can be read but what is needed at the door.
    for name in ("policy", "teacher", "both"):
        shutil.copytree(place / name, place / f"{name}-without-weights")
        (place / f"{name}-without-weights" / "model.safetensors").unlink()
    return place


def settings(folder, policy, teacher, **more):
    return ModelSettings(str(folder / policy), teacher=str(folder / teacher), device="cpu", **more)


def at_the_door(folder, policy, teacher, prompt=10, response=10):
    check_teacher(ModelSource(settings(folder, policy, teacher)), prompt, response)


def retokenised(folder, name, change):
    """A copy of the teacher without weights whose tokenizer.json is changed."""
    copy = folder / name
    shutil.copytree(folder / "teacher-without-weights", copy)
    content = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    change(content)
    (copy / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return name


def test_a_teacher_of_another_type_is_known_before_its_weights_are(folder):
    at_the_door(folder, "policy-without-weights", "teacher-without-weights")
    at_the_door(folder, "both-without-weights", "two")


@pytest.mark.parametrize(("policy", "teacher"), [("policy", "teacher"), ("both", "two")])
def test_it_is_loaded_frozen_and_shares_nothing(folder, policy, teacher):
    models = load_actor_critic(settings(folder, policy, teacher), critic=False)
    network = models.teacher.network
    assert not any(p.requires_grad for p in network.parameters())
    own = {p.data_ptr() for p in models.policy.network.parameters()}
    assert not own & {p.data_ptr() for p in network.parameters()}
    alone = load_language_model(ModelSettings(str(folder / teacher), device="cpu"))
    wanted = token_outputs(alone, TEXTS, 0.7).logprobs.detach()
    assert torch.equal(models.teacher_logprobs(TEXTS, 0.7), wanted)
    assert not torch.allclose(models.reference_logprobs(TEXTS, 0.7), wanted, atol=0.1)
    assert not any(
        "teacher" in name for name, _ in (*models.policy_parameters(), *models.critic_parameters())
    )


def test_it_computes_in_the_policy_s_precision(folder):
    models = load_actor_critic(settings(folder, "policy", "teacher", precision="bfloat16"), critic=False)
    assert models.policy.bfloat16 is models.teacher.bfloat16 is True
    assert load_actor_critic(settings(folder, "policy", "teacher")).teacher.bfloat16 is False


def test_an_adapter_teaches_as_it_is_merged_into_its_base(tokenizer, folder, tmp_path):
    base = load_language_model(ModelSettings(str(folder / "policy"), device="cpu"))
    adapted = add_lora(base, LoraSettings(rank=2))
    with torch.no_grad():
        for name, p in adapted.network.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    wanted = token_outputs(adapted, TEXTS).logprobs.detach()
    adapted.adapters.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(folder / "policy")})
    )
    named = replace(settings(folder, "policy", "teacher"), teacher=str(tmp_path))
    check_teacher(ModelSource(named), 10, 10)
    models = load_actor_critic(named, critic=False)
    assert torch.allclose(models.teacher_logprobs(TEXTS, 1.0), wanted, atol=1e-4)


def swapped(content):
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def renamed(content):
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["qqqq"] = vocabulary.pop(last)
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) != last]


def test_tokens_of_the_same_number_and_another_meaning_are_named(folder, tokenizer):
    ids = {id: token for token, id in tokenizer.get_vocab().items()}
    vocabulary = json.loads((folder / "teacher" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    first = min(vocabulary[token] for token in list(vocabulary)[40:42])
    name = retokenised(folder, "swapped", swapped)
    with pytest.raises(ModelError) as raised:
        at_the_door(folder, "policy-without-weights", name)
    said = str(raised.value)
    assert said.startswith('model.teacher = "')
    assert f"its token {first} is {ids[first + 1]!r}, the policy's {ids[first]!r} (2 differ)" in said
    assert len(said) <= 300
    name = retokenised(folder, "renamed", renamed)
    with pytest.raises(ModelError, match=r"its token 319 is 'qqqq', the policy's '.+'; a teacher reads"):
        at_the_door(folder, "policy-without-weights", name)


def test_tokens_that_the_policy_does_not_have_are_no_difference(folder, tokenizer, tmp_path):
    def more(content):
        content["added_tokens"].append(
            {**content["added_tokens"][0], "id": 320, "content": "<|more|>", "special": True}
        )

    name = retokenised(folder, "more", more)
    at_the_door(folder, "policy-without-weights", name)
    teacher = ModelSource(ModelSettings(str(folder / name))).tokenizer
    assert different_tokens(teacher, tokenizer, "the policy's", may_have_more=True) == ""
    assert different_tokens(teacher, tokenizer, "theirs") == "its token 320 is '<|more|>', theirs none"
    assert different_tokens(tokenizer, teacher, "theirs") == "its token 320 is none, theirs '<|more|>'"
    # The other way round, the teacher would meet a token that it does not have.
    shutil.copytree(folder / "policy-without-weights", tmp_path / "policy")
    shutil.copy(folder / name / "tokenizer.json", tmp_path / "policy" / "tokenizer.json")
    with pytest.raises(ModelError, match=r"its token 320 is none, the policy's '<\|more\|>'"):
        at_the_door(folder, tmp_path / "policy", "teacher-without-weights")


def test_another_end_of_texts_is_noted(folder, tmp_path):
    """As of a base model that learns from a chat model: the teacher never ends a text as the policy does."""
    named = settings(folder, "policy-without-weights", "teacher-without-weights")
    assert note_on_ends(ModelSource(named)) == ""
    shutil.copytree(folder / "teacher-without-weights", tmp_path / "other")
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", "<|pad|>"),
        ("generation_config.json", "eos_token_id", 2),
    ):
        file = tmp_path / "other" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    other = ModelSource(replace(named, teacher=str(tmp_path / "other")))
    assert note_on_ends(other).startswith("the teacher ends a text with <|pad|>, the policy with <|eos|>:")


def test_a_smaller_head_and_another_kind_are_refused(folder, tmp_path):
    shutil.copytree(folder / "policy-without-weights", tmp_path / "wide")
    file = tmp_path / "wide" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 384}))
    with pytest.raises(ModelError, match=r"its head has 320 rows and the policy's 384"):
        at_the_door(folder, tmp_path / "wide", "teacher-without-weights")
    at_the_door(folder, "policy-without-weights", tmp_path / "wide")
    with pytest.raises(ModelError, match=r"an encoder–decoder, and the policy is a decoder"):
        at_the_door(folder, "policy-without-weights", "two")
    with pytest.raises(ModelError, match=r"a decoder, and the policy is an encoder–decoder"):
        at_the_door(folder, "both-without-weights", "teacher-without-weights")


def test_a_context_that_is_too_short_is_refused(folder, tokenizer, tmp_path):
    """128 tokens each; what the policy itself cannot read asks for nothing."""
    torch.manual_seed(0)
    short = NewModelSettings(type="gpt2", hidden=32, layers=1, heads=4, context=32)
    save_language_model(
        build_language_model(short, tokenizer, ModelSettings(device="cpu")), tmp_path / "short"
    )
    at_the_door(folder, "policy", tmp_path / "short", prompt=22, response=10)
    with pytest.raises(
        ConfigError, match=r"model\.teacher: the teacher's context of 32 .* a prompt of 23 and"
    ):
        at_the_door(folder, "policy", tmp_path / "short", prompt=23, response=10)
    at_the_door(folder, "policy", "teacher", prompt=100, response=512)
    at_the_door(folder, "both", "two", prompt=128, response=127)  # each side has its own


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing/here", r'model\.teacher = ".*nothing/here": no such folder'),
        ("bad", r'model\.teacher = ".*bad": cannot be loaded'),
        ("teacher-without-weights", r'model\.teacher = ".*": cannot be loaded'),
    ],
)
def test_a_teacher_that_cannot_be_read_is_named_as_one(folder, name, says):
    bad = folder / "bad"
    if name == "bad" and not bad.exists():
        shutil.copytree(folder / "teacher-without-weights", bad)
        (bad / "config.json").write_text("{")
    if name == "teacher-without-weights":
        at_the_door(folder, "policy", name)
    with pytest.raises(ModelError, match=says) as raised:
        load_actor_critic(settings(folder, "policy", name), critic=False)
    assert "model.policy" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
