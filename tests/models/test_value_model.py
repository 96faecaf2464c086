"""Critics on disk: of other sizes than the policy, saved as classifiers, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from proxlm.config import ModelSettings, NewModelSettings, ValueSettings
from proxlm.errors import ModelError
from proxlm.models.actor_critic import critic_from, make_actor_critic
from proxlm.models.load import build_language_model
from proxlm.models.save import save_language_model
from proxlm.models.value_head import ValueHead, bins_of, ensemble_of
from proxlm.models.value_model import save_value_model
from proxlm.rl.value_ensemble import Ensemble
from proxlm.rl.value_histogram import ValueBins
from proxlm.types import Sequences
from small_models import tiny_model

ROWS = Sequences.from_lists([[5, 6, 7], [8], [9, 4, 6, 7]], [[9, 10], [11, 12, 13], [5]])
BINS = ValueBins(-1.0, 2.0, 7)


def small_model(tokenizer, type="llama", context=64):
    """Smaller than `tiny_model` in everything but the vocabulary."""
    torch.manual_seed(5)
    new = NewModelSettings(type=type, hidden=16, layers=1, heads=2, context=context)
    return build_language_model(new, tokenizer, ModelSettings(device="cpu"))


def saved_critic(tokenizer, folder, type="llama", bins=None, context=64, heads=1):
    """A critic of the small model with a random head, written to a folder; its network and head."""
    small = small_model(tokenizer, type, context)
    head = ValueHead(16, bins, Ensemble(heads))
    torch.nn.init.normal_(head.linear.weight, std=0.3)
    save_value_model(small.trunk, head, small, folder)
    return small, head


@pytest.mark.parametrize("type", ["llama", "gpt2", "qwen3", "lstm"])
@pytest.mark.parametrize("policy", ["llama", "gpt2"])
def test_a_smaller_critic_gives_the_same_values_in_proxlm_and_in_transformers(
    tokenizer, tmp_path, type, policy
):
    small, head = saved_critic(tokenizer, tmp_path, type)
    models = critic_from(make_actor_critic(tiny_model(tokenizer, policy), "separate"), str(tmp_path))
    with torch.no_grad():
        values, final = (models.value_of(states) for states in models.critic_states(ROWS))
        own = make_actor_critic(small, "shared")
        wanted = [head(states) for states in own.critic_states(ROWS)]
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        texts = [ROWS.tokens[a:b] for a, b in zip(ROWS.offsets[:-1], ROWS.offsets[1:], strict=True)]
        scores = torch.cat([network(input_ids=text[None]).logits[:, 0] for text in texts])
    assert torch.allclose(values, wanted[0], atol=1e-5)
    assert torch.allclose(final, wanted[1], atol=1e-5)
    assert torch.allclose(scores, final, atol=1e-5)
    assert float(final.std()) > 1e-3
    assert models.policy.hidden_size == 32
    assert models.critic_context == (64 if type != "lstm" else None)


def test_a_language_model_gives_its_trunk_and_v_is_0(tokenizer, tmp_path):
    small = small_model(tokenizer)
    save_language_model(small, tmp_path)
    models = critic_from(make_actor_critic(tiny_model(tokenizer), "separate"), str(tmp_path))
    states, final = models.critic_states(ROWS)
    assert torch.allclose(states, make_actor_critic(small, "shared").critic_states(ROWS)[0], atol=1e-6)
    assert not models.value_of(final).any()
    # Every weight of the trunk learns but the head's of the language model, which is not part of it.
    assert sum(p.numel() for _, p in models.critic_parameters()) == 17 + sum(
        p.numel() for p in small.trunk.parameters()
    )


def test_a_categorical_critic_is_saved_with_its_bins_and_read_with_the_same(tokenizer, tmp_path):
    _, head = saved_critic(tokenizer, tmp_path, bins=BINS)
    policy = make_actor_critic(tiny_model(tokenizer), "separate", BINS)
    models = critic_from(policy, str(tmp_path), bins=BINS)
    assert torch.equal(models.value_head.linear.weight, head.linear.weight)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    final = models.critic_states(ROWS)[1]
    with torch.no_grad():
        logits = network(input_ids=ROWS.tokens[None, :5]).logits
    assert torch.allclose(
        models.value_head(final)[0], logits.softmax(-1)[0] @ torch.linspace(-1, 2, 7), atol=1e-5
    )
    for bins, wrong in (
        (None, "needs 1 output, as model.value says; it has 7"),
        (replace(BINS, count=9), "needs 9 outputs"),
        (replace(BINS, high=3.0), "its bins are .* set them alike"),
    ):
        with pytest.raises(ModelError, match=wrong):
            critic_from(policy, str(tmp_path), bins=bins)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("type", ["llama", "lstm"])
def test_a_categorical_critics_bias_is_read_again_where_the_classifier_has_none(
    tokenizer, tmp_path, type, heads
):
    small = small_model(tokenizer, type)
    head = ValueHead(16, BINS, Ensemble(heads))
    torch.nn.init.normal_(head.linear.weight, std=0.3)
    torch.nn.init.normal_(head.linear.bias)
    save_value_model(small.trunk, head, small, tmp_path)
    policy = make_actor_critic(tiny_model(tokenizer), "separate", BINS, Ensemble(heads))
    models = critic_from(policy, str(tmp_path), bins=BINS, ensemble=Ensemble(heads))
    assert torch.equal(models.value_head.linear.bias, head.linear.bias)
    assert torch.equal(models.value_head.linear.weight, head.linear.weight)
    if heads == 1:
        copies = critic_from(policy, str(tmp_path), bins=BINS, ensemble=Ensemble(2, spread=0.0))
        assert torch.equal(copies.value_head.linear.bias.view(2, 7), head.linear.bias.expand(2, 7))


@pytest.mark.parametrize("bias", ["7", [1.0] * 6, [True] * 7, [float("nan")] * 7, [None] * 7])
def test_a_bias_that_is_none_is_refused(tokenizer, tmp_path, bias):
    saved_critic(tokenizer, tmp_path, bins=BINS)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["value_bins"]["bias"] = bias
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    policy = make_actor_critic(tiny_model(tokenizer), "separate", BINS)
    with pytest.raises(ModelError, match=r"value_bins.bias: expected 7 finite numbers"):
        critic_from(policy, str(tmp_path), bins=BINS)


@pytest.mark.checklist(44)
@pytest.mark.parametrize("bins", [None, BINS])
@pytest.mark.parametrize("type", ["llama", "lstm"])
def test_several_heads_are_saved_one_after_the_other_and_read_again(tokenizer, tmp_path, bins, type):
    _, head = saved_critic(tokenizer, tmp_path, type, bins=bins, heads=3)
    policy = make_actor_critic(tiny_model(tokenizer), "separate", bins, Ensemble(3, "min"))
    models = critic_from(policy, str(tmp_path), bins=bins, ensemble=Ensemble(3, "min"))
    assert torch.equal(models.value_head.linear.weight, head.linear.weight)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert network.config.value_heads == 3
    with torch.no_grad():
        logits = network(input_ids=ROWS.tokens[None, :5]).logits[0].view(3, -1)
        found = models.value_of(models.critic_states(ROWS)[1])[0]
    each = logits[:, 0] if bins is None else logits.softmax(-1) @ torch.linspace(-1, 2, 7)
    assert torch.allclose(found, each.min(), atol=1e-5)
    assert float(each.std()) > 1e-3
    for heads in (1, 2):
        with pytest.raises(
            ModelError, match=f"it has 3 value heads, model.value.heads says {heads}; set it to 3"
        ):
            critic_from(policy, str(tmp_path), bins=bins, ensemble=Ensemble(heads))


@pytest.mark.checklist(44)
@pytest.mark.parametrize("bins", [None, BINS])
def test_all_heads_may_begin_as_the_only_one_of_a_critic_or_a_reward_model(tokenizer, tmp_path, bins):
    _, head = saved_critic(tokenizer, tmp_path, bins=bins)
    policy = make_actor_critic(tiny_model(tokenizer), "separate", bins)
    models = critic_from(policy, str(tmp_path), bins=bins, ensemble=Ensemble(4, spread=0.05))
    by_head = models.value_head.linear.weight.unflatten(0, (4, -1)).detach()
    assert torch.allclose(by_head.mean(0), head.linear.weight, atol=1e-6)
    assert float((by_head - head.linear.weight.detach()).std()) == pytest.approx(0.05 / 4, rel=0.4)
    states, final = models.critic_states(ROWS)
    with torch.no_grad():
        assert torch.allclose(models.value_of(final), head(final), atol=1e-5 if bins is None else 1e-2)
        assert float(models.value_head.values(states).std(-1).min()) > 1e-4
    exact = critic_from(policy, str(tmp_path), bins=bins, ensemble=Ensemble(4, spread=0.0))
    assert torch.allclose(exact.value_of(final), head(final), atol=1e-6)


@pytest.mark.checklist(44)
def test_four_outputs_of_a_classifier_are_no_four_heads(tokenizer, tmp_path):
    from transformers import LlamaForSequenceClassification

    small = small_model(tokenizer)
    config = small.network.config
    config.num_labels = 4
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = make_actor_critic(tiny_model(tokenizer), "separate")
    with pytest.raises(ModelError, match=r"needs 1 output, .* it has 4 outputs"):
        critic_from(policy, str(tmp_path), ensemble=Ensemble(4))


def test_a_text_beyond_the_critics_context_is_refused(tokenizer, tmp_path):
    saved_critic(tokenizer, tmp_path, context=8)
    models = critic_from(make_actor_critic(tiny_model(tokenizer), "separate"), str(tmp_path))
    assert models.critic_context == 8
    fits, beyond = (Sequences.from_lists([[5] * 4], [[6] * n]) for n in (4, 5))
    assert models.values(fits).shape == (4,)
    with pytest.raises(ModelError, match="the critic: a text of 9 tokens does not fit its context of 8"):
        models.values(beyond)


def test_another_tokenizer_is_refused(tokenizer, tmp_path):
    saved_critic(tokenizer, tmp_path)
    models = make_actor_critic(tiny_model(tokenizer), "separate")
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ModelError, match=r"policy's: its token \d+ is '.+', the policy's '.+' \(2 differ\)"):
        critic_from(models, str(tmp_path))


def test_the_settings_make_the_bins():
    assert bins_of(ValueSettings()) is None
    assert ensemble_of(ValueSettings()) == Ensemble()
    several = ValueSettings(heads=4, combine="lower_bound", pessimism=2.0, init_spread=0.3)
    assert ensemble_of(several) == Ensemble(4, "lower_bound", 2.0, 0.3)
    assert bins_of(ValueSettings("categorical", -1.0, 2.0, 7, 0.5)) == ValueBins(-1.0, 2.0, 7, 0.5)
