"""Dropout: its rate and mean, and gradients that depend on (seed, step, row) and on no layout of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from causal_types import sharp_network, small_config
from proxlm.config import DistillSettings, EnsembleSettings, LoraSettings, ModelSettings, ObjectiveSettings
from proxlm.data.supervised import SFTExample
from proxlm.errors import ConfigError
from proxlm.models.adapters import add_lora
from proxlm.models.classifier import classifier_of, classifier_of_language_model
from proxlm.train.supervised.criteria import Comparisons
from proxlm.train.supervised.distill_objective import DistillObjective
from proxlm.train.supervised.dropout import Dropout, Tokens, kept
from proxlm.train.supervised.ensemble_objective import EnsembleObjective
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.labelled_texts import LabelledTexts
from proxlm.train.supervised.objective import LanguageModelObjective
from proxlm.train.supervised.reward_objective import RewardObjective
from proxlm.train.supervised.teacher_reading import Teacher
from small_models import TEXTS, tiny_model

TYPES = ["llama", "gpt2", "lstm", "t5", "bart"]
ALL = 10**6


def examples_of(tokenizer):
    """Four rows of 11 to 24 tokens, and the first one again."""
    rows = []
    for text in [*TEXTS, TEXTS[0]]:
        ids = tuple(tokenizer(text)["input_ids"])[:24]
        rows.append(SFTExample(ids[:3], ids[3:], tuple(i % 4 != 1 for i in range(len(ids) - 3))))
    return Examples.from_rows(rows)


def objective_of(model, tokenizer, p=0.2, seed=7):
    examples = examples_of(tokenizer)
    return LanguageModelObjective(model, examples, examples, dropout=Dropout([model.network], p, seed))


def gradient(objective, step=3, budget=ALL, rows=(0, 1, 2, 3, 4)):
    """The loss and all gradients in one vector."""
    for _, p in objective.trainable():
        p.grad = None
    objective.begin_step(step)
    loss, _ = objective.gradient(list(rows), budget)
    return loss, torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                            for _, p in objective.trainable()])  # fmt: skip


def same(first, second):
    """Whether two gradients differ by rounding only."""
    return float((first - second).norm() / first.norm()) < 2e-5


def masks(rows, positions, channels=64, site=0, key=(1, 2), threshold=6554):
    tokens = Tokens(torch.tensor(rows), torch.tensor(positions))
    return kept(tokens, channels, site, (torch.tensor(key[0]), torch.tensor(key[1])), threshold)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_channels_tokens_and_sites_are_independent(p):
    """Of 409,600 draws the share has a standard error of at most 0.0008, a correlation of 64,000 one of 0.004."""
    count, threshold = 6400, round(p * 2**16)
    found = masks(list(range(count)), [5] * count, 64, 0, threshold=threshold).double()
    assert abs(1 - float(found.mean()) - p) < 0.004
    others = [
        masks(list(range(count)), [5] * count, 64, 1, threshold=threshold),  # another site
        masks(list(range(count)), [6] * count, 64, 0, threshold=threshold),  # another position
        masks(list(range(1, count + 1)), [5] * count, 64, 0, threshold=threshold),  # another row
        masks(list(range(count)), [5] * count, 64, 0, (2, 2), threshold),  # another seed or step
        found.roll(1, 1),  # another channel
        found.roll(8, 1),
    ]
    for other in others:
        pair = torch.stack([found.flatten(), other.double().flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.01


def test_channels_that_do_not_fill_a_counter_are_the_first_ones():
    assert torch.equal(masks([3, 9], [0, 1], 13), masks([3, 9], [0, 1], 64)[:, :13])


def test_what_is_kept_is_scaled_so_that_the_mean_stays(tokenizer):
    """Of the embeddings that go into the first block, over 100 steps: share dropped, and the mean within 5 errors."""
    model, p, steps = tiny_model(tokenizer), 0.3, 100
    dropout, seen = Dropout([model.network], p, 1), []
    block = model.trunk.layers[0]
    ids = torch.arange(5, 45).view(2, 20)
    handle = block.input_layernorm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for step in range(steps):
            dropout.begin_step(step)
            with dropout.on(torch.tensor([4, 8])):
                model.trunk(input_ids=ids, use_cache=False)
        handle.remove()
        plain = model.trunk.embed_tokens(ids)
    found = torch.stack(seen)
    dropped = found == 0
    assert abs(float(dropped.float().mean()) - p) < 0.007
    assert torch.allclose(found[~dropped], (plain / (1 - p)).expand_as(found)[~dropped], rtol=1e-4)
    error = plain.abs() * (p / (1 - p) / steps) ** 0.5
    assert bool(((found.mean(0) - plain).abs() < 5 * error + 1e-5).all())


@pytest.mark.parametrize("type", TYPES)
def test_the_gradient_is_the_same_for_every_split_and_padding(tokenizer, type):
    """Rows alone have no padding; all together the shortest has 13 places of it; 60 tokens make three passes."""
    objective = objective_of(tiny_model(tokenizer, type), tokenizer)
    loss, found = gradient(objective)
    for budget in (1, 60):
        other_loss, other = gradient(objective, budget=budget)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert same(found, other)
    _, shuffled = gradient(objective, rows=(4, 2, 0, 3, 1))
    assert same(found, shuffled)
    plain_loss, plain = gradient(objective_of(tiny_model(tokenizer, type), tokenizer, 0.0))
    assert abs(plain_loss - loss) > 1e-3
    assert not same(found, plain)


@pytest.mark.parametrize("type", ["llama", "gpt2", "lstm"])
def test_packed_rows_have_the_same_masks(tokenizer, type):
    padded = gradient(objective_of(tiny_model(tokenizer, type), tokenizer))
    packed = gradient(objective_of(tiny_model(tokenizer, type, packed=True), tokenizer))
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    assert same(padded[1], packed[1])


@pytest.mark.parametrize("type", TYPES)
def test_without_dropout_the_bits_are_those_without_the_setting(tokenizer, type):
    examples = examples_of(tokenizer)
    model = tiny_model(tokenizer, type)
    loss, plain = gradient(LanguageModelObjective(model, examples, examples))
    other_loss, other = gradient(objective_of(model, tokenizer, 0.0))
    assert loss == other_loss
    assert torch.equal(plain, other)


@pytest.mark.parametrize("type", ["llama", "lstm"])
def test_steps_seeds_and_rows_have_masks_of_their_own_and_torchs_generator_no_part(tokenizer, type):
    model = tiny_model(tokenizer, type)
    objective = objective_of(model, tokenizer)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loss, found = gradient(objective)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again_loss, again = gradient(objective)
    assert again_loss == loss
    assert torch.equal(found, again)
    for other in (
        gradient(objective, step=4),
        gradient(objective_of(model, tokenizer, seed=8)),
        gradient(objective_of(model, tokenizer, p=0.21)),
    ):
        assert other[0] != loss
        assert not same(found, other[1])
    # Rows 0 and 4 are the same text.
    assert abs(gradient(objective, rows=[0])[0] - gradient(objective, rows=[4])[0]) > 1e-3


def test_validation_and_samples_have_none(tokenizer):
    model = tiny_model(tokenizer)
    examples = examples_of(tokenizer)
    plain = LanguageModelObjective(model, examples, examples)
    objective = objective_of(model, tokenizer, 0.5)
    gradient(objective)
    assert objective.validate(ALL) == plain.validate(ALL)
    assert objective.samples(2) == plain.samples(2)


def test_with_adapters_both_the_base_and_they_are_dropped(tokenizer):
    """The same masks as of the model without adapters: they begin with a product of 0."""
    loss = gradient(objective_of(tiny_model(tokenizer), tokenizer))[0]
    model = add_lora(tiny_model(tokenizer), LoraSettings(rank=2))
    objective = objective_of(model, tokenizer)
    adapted_loss, found = gradient(objective)
    assert adapted_loss == pytest.approx(loss, rel=1e-5)
    assert same(found, gradient(objective, budget=1)[1])


OTHERS = ["falcon", "gpt_neox", "gemma2", "mamba", "opt", "qwen3"]


@pytest.mark.parametrize("type", [*TYPES, *OTHERS])
def test_where_all_is_dropped_every_token_is_equally_likely(tokenizer, type):
    """What goes into the blocks and what they add is 0, so the logits are 0: the loss is log |V|."""
    model = tiny_model(tokenizer, type if type in TYPES else "llama")
    if type in OTHERS:
        model.network = sharp_network(small_config(type))
    objective = objective_of(model, tokenizer, 0.99999)
    assert gradient(objective, rows=[0])[0] == pytest.approx(math.log(320), abs=1e-4)
    objective = objective_of(model, tokenizer)
    assert same(gradient(objective)[1], gradient(objective, budget=1)[1])


@pytest.mark.parametrize("type", ["mixtral", "deepseek_v3", "granitemoeshared", "rwkv"])
def test_a_type_whose_additions_are_not_known_is_refused_in_a_line(type):
    network = sharp_network(small_config(type))
    with pytest.raises(
        ConfigError, match=rf"train\.dropout: .* where {type} adds to its residual stream; set it"
    ):
        Dropout([network], 0.1)
    Dropout([network], 0.0)


def encoder(tokenizer, type):
    config = AutoConfig.for_model(
        type, vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=4, num_hidden_layers=2,
        intermediate_size=48, pad_token_id=0, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config)
    return classifier_of(network, tokenizer, ModelSettings(policy=type, device="cpu"))


@pytest.mark.parametrize("type", ["bert", "llama", "lstm"])
def test_a_reward_model_has_the_same_gradient_for_every_split(tokenizer, type):
    settings = ModelSettings(policy=type, device="cpu")
    if type == "bert":
        model = encoder(tokenizer, type)
    else:
        model = classifier_of_language_model(tiny_model(tokenizer, type), settings)
        torch.nn.init.normal_(model.output_layer.weight, generator=torch.Generator().manual_seed(0))
    rows = [list(tokenizer(text)["input_ids"])[: 9 + 5 * i] for i, text in enumerate(TEXTS)]
    pairs = [rows[:2], rows[2:], [rows[0], rows[3]]]
    texts = LabelledTexts.of([(pair, (0.0,), ()) for pair in pairs], 2)
    objective = RewardObjective(
        model, texts, texts, Comparisons(ObjectiveSettings()), Dropout([model.network], 0.2, 7)
    )
    loss, found = gradient(objective, rows=(0, 1, 2))
    other_loss, other = gradient(objective, budget=1, rows=(2, 0, 1))
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert same(found, other)
    assert gradient(objective, step=4, rows=(0, 1, 2))[0] != loss
    # Both texts of a comparison have masks of their own: alike, they would have a loss of exactly log 2.
    twins = LabelledTexts.of([([rows[1], rows[1]], (0.0,), ())], 2)
    objective.training = twins
    assert abs(gradient(objective, rows=(0,))[0] - 0.6931472) > 1e-5


def test_equal_members_of_an_ensemble_have_masks_of_their_own(tokenizer):
    settings, members = ModelSettings(policy="llama", device="cpu"), []
    for _ in range(2):
        member = classifier_of_language_model(tiny_model(tokenizer), settings)
        torch.nn.init.normal_(member.output_layer.weight, generator=torch.Generator().manual_seed(0))
        members.append(member)
    rows = [list(tokenizer(text)["input_ids"])[: 9 + 5 * i] for i, text in enumerate(TEXTS)]
    texts = LabelledTexts.of([(rows[:2], (0.0,), ()), (rows[2:], (0.0,), ())], 2)
    ensemble, criterion = EnsembleSettings(size=2, bagging=False), Comparisons(ObjectiveSettings())
    networks = [member.network for member in members]
    for p, alike in ((0.0, True), (0.2, False)):
        dropout = Dropout(networks, p, 7)
        objective = EnsembleObjective(members, texts, texts, criterion, ensemble, 7, ALL, dropout)
        whole = gradient(objective, rows=(0, 1))[1]
        first, second = whole.chunk(2)
        assert same(first, second) == alike
        assert same(whole, gradient(objective, rows=(0, 1), budget=1)[1])


def test_a_student_samples_without_dropout_and_learns_with_it(tokenizer):
    examples = examples_of(tokenizer)

    def made(p):
        student, other = tiny_model(tokenizer, seed=1), tiny_model(tokenizer, seed=2)
        teacher = Teacher(other, len(student.network.get_output_embeddings().weight), 1.0, 0)
        settings = DistillSettings(mode="on_policy", student_share=0.5)
        dropout = Dropout([student.network], p, 3)
        return DistillObjective(student, teacher, examples, examples, settings, 6, 0, dropout=dropout)

    plain, objective = made(0.0), made(0.3)
    first, found = gradient(objective)
    other, of_parts = gradient(objective, budget=1)
    assert other == pytest.approx(first, rel=1e-5)
    assert same(found, of_parts)
    assert abs(gradient(plain)[0] - first) > 1e-3
    assert torch.equal(plain._samples_of([0, 1]).tokens, objective._samples_of([0, 1]).tokens)
