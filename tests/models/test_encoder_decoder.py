"""Encoder–decoders: what the two sides read, the head's own changes, adapters, new and saved models."""

from __future__ import annotations

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from proxlm.config import (
    LoraSettings,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    RunSettings,
    SFTConfig,
    SupervisedSettings,
)
from proxlm.data.supervised import SFTExample
from proxlm.errors import ModelError
from proxlm.models.actor_critic import critic_from, make_actor_critic
from proxlm.models.adapters import add_lora, reference_active
from proxlm.models.agreement import check_forward
from proxlm.models.encoder_decoder import source_and_target, start_token
from proxlm.models.forward import response_states, token_outputs
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.model_types import is_encoder_decoder_type
from proxlm.models.save import save_language_model
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.loop import SupervisedLoop
from proxlm.train.supervised.objective import LanguageModelObjective, next_token_losses
from proxlm.types import Sequences
from small_models import tiny_model

FAMILIES = ["t5", "bart"]


def model_config():
    return ModelSettings(device="cpu")


def batch():
    return Sequences.from_lists([[3, 4, 5], [6], [7, 8]], [[9], [10, 11, 12], [13, 14]])


@pytest.mark.checklist(32)
def test_source_and_target_by_hand():
    source, target = source_and_target(batch(), start=1)
    assert source.tokens.tolist() == [3, 4, 5, 6, 7, 8]
    assert source.offsets.tolist() == [0, 3, 4, 6]
    assert target.tokens.tolist() == [1, 9, 1, 10, 11, 12, 1, 13, 14]
    assert target.offsets.tolist() == [0, 2, 6, 9]
    assert target.prompt_lengths.tolist() == [1, 1, 1]
    assert target.response_tokens.tolist() == batch().response_tokens.tolist()


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_logprobs_are_those_of_the_models_own_forward(tokenizer, family):
    model = tiny_model(tokenizer, family)
    with torch.no_grad():
        states, final = response_states(model, batch())
        own = model.network(
            input_ids=torch.tensor([[6]]),
            decoder_input_ids=torch.tensor([[model.start_id, 10, 11, 12]]),
            output_hidden_states=True,
        )
        last = own.decoder_hidden_states[-1][0]
        got = token_outputs(model, batch(), temperature=0.7).logprobs[1:4]
    assert torch.allclose(states[1:4], last[:3], atol=1e-5)
    assert torch.allclose(final[1], last[3], atol=1e-5)
    wanted = torch.log_softmax(own.logits[0, :3] / 0.7, -1)[torch.arange(3), torch.tensor([10, 11, 12])]
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_and_every_token_before_matter_and_those_after_do_not(tokenizer, family):
    model = tiny_model(tokenizer, family)

    def logprobs(prompt, response):
        with torch.no_grad():
            return token_outputs(model, Sequences.from_lists([prompt], [response])).logprobs

    plain = logprobs([3, 4, 5], [9, 10, 11])
    prompt = (logprobs([3, 40, 5], [9, 10, 11]) - plain).abs()
    assert (prompt > 1e-3).all()
    changed = (logprobs([3, 4, 5], [9, 50, 11]) - plain).abs()
    assert changed[0] < 1e-6
    assert changed[2] > 1e-3


def test_t5s_scale_and_barts_bias_belong_to_the_head(tokenizer):
    """Without them check_forward would refuse the model, as it does for a change that it does not know."""
    bart = tiny_model(tokenizer, "bart")
    bart.network.final_logits_bias = torch.linspace(-3, 3, len(tokenizer))[None]
    check_forward(bart)
    t5 = tiny_model(tokenizer, "t5")
    assert t5.network.config.scale_decoder_outputs
    check_forward(t5)
    t5.network.config.scale_decoder_outputs = False
    check_forward(t5)
    t5.network.register_forward_hook(lambda m, a, output: setattr(output, "logits", output.logits * 2))
    with pytest.raises(ModelError, match="model type t5 differ by"):
        check_forward(t5)


def test_the_start_token_is_the_configurations(tokenizer):
    model = tiny_model(tokenizer, "t5")
    assert model.start_id == model.network.config.decoder_start_token_id == tokenizer.bos_token_id
    model.network.generation_config.decoder_start_token_id = 7
    assert model.start_id == 7
    for config in (model.network.generation_config, model.network.config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(ModelError, match="no decoder_start_token_id"):
        start_token(model.network, "here")


@pytest.mark.parametrize("family", FAMILIES)
def test_critics_share_or_do_not_share_weights(tokenizer, family):
    shared = make_actor_critic(tiny_model(tokenizer, family), "shared")
    separate = make_actor_critic(tiny_model(tokenizer, family), "separate")
    assert {n for n, _ in shared.critic_parameters()} == {"head.linear.weight", "head.linear.bias"}
    names = [n for n, _ in separate.critic_parameters()]
    assert any(n.startswith("trunk.encoder.") for n in names)
    assert any(n.startswith("trunk.decoder.") for n in names)
    policy = {p.data_ptr() for _, p in separate.policy_parameters()}
    assert not policy & {p.data_ptr() for _, p in separate.critic_parameters()}
    # One embedding for both sides, in the critic, too.
    trunk = separate.critic_trunk
    assert trunk.encoder.embed_tokens.weight is trunk.decoder.embed_tokens.weight
    assert separate.values(batch()).tolist() == [0] * 6
    assert not any(m.training for m in trunk.modules())


@pytest.mark.checklist(37)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_the_reference_bit_for_bit_and_merge(tokenizer, tmp_path, family):
    bare = token_outputs(tiny_model(tokenizer, family), batch()).logprobs
    model = add_lora(tiny_model(tokenizer, family), LoraSettings(rank=2))
    assert {half for n, _ in model.trainable() for half in ("encoder", "decoder") if f"{half}." in n} == {
        "encoder",
        "decoder",
    }
    with torch.no_grad():
        assert torch.equal(token_outputs(model, batch()).logprobs, bare)
        for name, p in model.trainable():
            if "lora_B" in name:
                p.normal_(std=0.3)
        adapted = token_outputs(model, batch()).logprobs
        assert not torch.allclose(adapted, bare, atol=1e-2)
        with reference_active(model):
            assert torch.equal(token_outputs(model, batch()).logprobs, bare)
        save_language_model(model, tmp_path)
        merged = load_language_model(ModelSettings(policy=str(tmp_path), device="cpu"))
        assert torch.allclose(token_outputs(merged, batch()).logprobs, adapted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_with_transformers_and_with_us(tokenizer, tmp_path, family):
    model = tiny_model(tokenizer, family)
    save_language_model(model, tmp_path)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).state_dict()
    ours = load_language_model(ModelSettings(policy=str(tmp_path), device="cpu"))
    assert ours.encoder_decoder
    assert ours.start_id == model.start_id
    assert ours.context == (128 if family == "bart" else None)
    for name, value in model.network.state_dict().items():
        assert torch.equal(theirs[name], value)
        assert torch.equal(ours.network.state_dict()[name], value)


def test_t5_without_the_scale_keeps_that(tokenizer, tmp_path):
    """T5 1.1 does not scale its states; transformers remembers it in the configuration."""
    torch.manual_seed(0)
    new = NewModelSettings(type="t5", hidden=32, layers=2, heads=4, tie_embeddings=False)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    assert not model.network.config.scale_decoder_outputs
    # Its embedding starts small instead, so that its first logits are of the size that a scaled model's are.
    scaled = build_language_model(
        NewModelSettings(type="t5", hidden=32, layers=2, heads=4), tokenizer, model_config()
    )
    with torch.no_grad():
        sizes = [model_.logits(response_states(model_, batch())[0]).std() for model_ in (model, scaled)]
    assert 0.5 < float(sizes[0] / sizes[1]) < 2
    save_language_model(model, tmp_path)
    loaded = load_language_model(ModelSettings(policy=str(tmp_path), device="cpu"))
    with torch.no_grad():
        one, two = (token_outputs(m, batch()).logprobs for m in (model, loaded))
    assert torch.equal(one, two)


@pytest.mark.parametrize("family", ["t5", "mt5", "bart", "marian"])
def test_new_models_have_the_asked_shape_on_both_sides(tokenizer, family):
    new = NewModelSettings(type=family, hidden=48, layers=3, heads=4, context=64, intermediate=80)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    for half in (model.trunk.encoder, model.trunk.decoder):
        layers = half.block if "t5" in family else half.layers
        assert len(layers) == 3
        shapes = {tuple(m.weight.shape) for m in layers.modules() if isinstance(m, torch.nn.Linear)}
        assert shapes == {(48, 48), (80, 48), (48, 80)}
    assert is_encoder_decoder_type(family)
    assert not is_encoder_decoder_type("llama")
    assert not is_encoder_decoder_type("no such type")


def test_a_critic_may_begin_as_another_encoder_decoder(tokenizer, tmp_path):
    """A smaller T5 under a T5: its states, a new head with V = 0, and all of it learns."""
    from transformers import T5ForSequenceClassification

    models = make_actor_critic(tiny_model(tokenizer, "t5"), "separate")
    new = NewModelSettings(type="t5", hidden=16, layers=1, heads=2, context=128)
    small = build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    save_language_model(small, tmp_path / "small")
    made = critic_from(models, str(tmp_path / "small"))
    sequences = Sequences.from_lists([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])
    states, final = made.critic_states(sequences)
    own, _ = response_states(small, sequences)
    assert torch.allclose(states, own, atol=1e-6)
    assert states.shape == (5, 16)
    assert not made.value_of(final).any()
    assert {name.split(".")[1] for name, _ in made.critic_parameters()} >= {"encoder", "decoder", "linear"}
    save_language_model(tiny_model(tokenizer), tmp_path / "decoder")
    with pytest.raises(ModelError, match="a decoder, and the policy is an encoder–decoder"):
        critic_from(models, str(tmp_path / "decoder"))
    T5ForSequenceClassification(small.network.config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ModelError, match="a classifier on an encoder–decoder is no value of a state"):
        critic_from(models, str(tmp_path / "classifier"))


def test_a_type_that_changes_its_logits_otherwise_is_refused(tokenizer):
    """UMT5 scales its states whatever its configuration says of it."""
    config = AutoConfig.for_model(
        "umt5", vocab_size=len(tokenizer), d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=32
    )
    from proxlm.models.load import wrap

    config.decoder_start_token_id = 0
    with pytest.raises(ModelError, match="model type umt5 differ by"):
        wrap(AutoModelForSeq2SeqLM.from_config(config), tokenizer, ModelSettings(policy="new", device="cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_lowers_the_loss_of_copying(tokenizer, tmp_path, family):
    """A response that is its prompt: only what the encoder reads can tell it."""
    eos, generator = tokenizer.eos_token_id, torch.Generator().manual_seed(0)
    words = torch.randint(20, 30, (240, 3), generator=generator).tolist()
    rows = [SFTExample(tuple(w), (*w, eos), (True,) * 4) for w in words]
    train, held_out = Examples.from_rows(rows[:200]), Examples.from_rows(rows[200:])
    torch.manual_seed(0)
    new = NewModelSettings(type=family, hidden=32, layers=1, heads=2, context=32)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    before = next_token_losses(model, held_out, 4096)[0]
    optimiser = OptimiserSettings(lr=1e-2, schedule="cosine", warmup=10)
    settings = SupervisedSettings(steps=300, batch_tokens=448, validate_every=150)
    made = SupervisedLoop(
        LanguageModelObjective(model, train, held_out),
        SFTConfig(train=settings, optim=optimiser, run=RunSettings(seed=0, save_every=0)),
        tmp_path,
    )
    made.train(SilentLog())
    after = next_token_losses(model, held_out, 4096)[0]
    # Knowing the ten words but not the prompt would leave three quarters of log 10, 1.73.
    assert before > 4
    assert after < 1.6


@pytest.mark.checklist(37)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [0, 4])
def test_the_reference_stays_while_the_policy_and_its_encoder_learn(tokenizer, tmp_path, family, lora):
    made = trainer(tokenizer, job("separate", steps=2), tmp_path, lora=lora, family=family)
    with torch.no_grad():
        before = made.models.reference_logprobs(batch(), 1.0)
    start = parameters(made)
    made.train(SilentLog())
    after = parameters(made)
    for half in ("encoder", "decoder"):
        for who in ("critic.trunk.", ""):
            names = [n for n in start if half in n and n.startswith("critic.") == bool(who)]
            assert any(not torch.equal(start[n], after[n]) for n in names), (half, who)
    assert torch.equal(made.models.reference_logprobs(batch(), 1.0), before)


def test_a_trust_region_step_is_taken(tokenizer, tmp_path):
    """Its products differentiate twice, through both halves."""
    made = trainer(tokenizer, job(steps=2, loss="trpo"), tmp_path, family="t5")
    log = SilentLog()
    made.train(log)
    for row in log.rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["trpo/kl"] <= 1.01 * made.config.ppo.trpo.delta
    assert any(row["trpo/accepted"] for row in log.rows)
