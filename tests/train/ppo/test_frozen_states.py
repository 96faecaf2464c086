"""Blocks that never learn are read once: the states behind them are kept, and every pass starts there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import actors, job, parameters, prepared_by, run, vowels

from proxlm.config import EnvironmentSettings, LoraSettings, ModelSettings, NewModelSettings, RolloutSettings
from proxlm.data.prompts import PromptStream
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.kernels import block_layouts
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.forward import frozen_states, response_states, token_outputs
from proxlm.models.frozen import freeze, frozen_blocks
from proxlm.models.load import build_language_model
from proxlm.seeds import Stream
from proxlm.train.ppo.loop import PPOLoop
from proxlm.train.ppo.update import update
from proxlm.types import Prompt, Sequences
from small_models import WORDS

LAYERS, FAMILIES = 4, ["llama", "qwen3", "gpt2"]
SEQUENCES = Sequences.from_lists([[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]], [[9, 10], [11, 12, 13], [4]])


def model_of(tokenizer, family="llama", top=1, lora=0, **model):
    """Four blocks with weights large enough that each matters; `top` of them learn."""
    torch.manual_seed(0)
    new = NewModelSettings(type=family, hidden=32, layers=LAYERS, heads=4, context=128)
    built = build_language_model(new, tokenizer, ModelSettings(device="cpu", **model))
    with torch.no_grad():
        for p in built.network.parameters():
            if p.dim() == 2:
                p.mul_(3.0)
    if lora:
        built = add_lora(built, LoraSettings(rank=lora), top)
        with torch.no_grad():
            for name, p in built.network.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
    else:
        freeze(built.network, top)
    built.frozen_blocks = frozen_blocks(built)
    return built


def loop_of(tokenizer, config, folder, **model):
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 3)]
    stream = PromptStream(prompts, config.ppo.batch_size, config.run.seed)
    models = make_actor_critic(model_of(tokenizer, **model), config.model.critic)
    return PPOLoop(config, models, stream, vowels, folder)


def forgetful(models):
    """The same networks, whose passes start at the tokens."""
    for model in (models.policy, models.reference):
        if model is not None:
            model.frozen_blocks = 0
    return models


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top", [1, 3])
@torch.no_grad()
def test_a_pass_from_the_states_that_are_kept_is_the_whole_pass(tokenizer, family, top):
    model = model_of(tokenizer, family, top)
    assert model.frozen_blocks == LAYERS - top
    whole = token_outputs(model, SEQUENCES, entropy=True)
    kept = frozen_states(model, SEQUENCES)
    assert kept.shape == (len(SEQUENCES.tokens), 32)
    part = token_outputs(model, replace(SEQUENCES, frozen_states=kept), entropy=True)
    for a, b in zip(whole, part, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)
    # They matter: others give others.
    other = token_outputs(model, replace(SEQUENCES, frozen_states=kept.roll(1, 0)), entropy=True)
    assert (other.logprobs - whole.logprobs).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [3, 64])
@torch.no_grad()
def test_the_engine_keeps_the_states_of_all_tokens_while_it_writes(tokenizer, family, batch_size):
    model = model_of(tokenizer, family, 2)
    settings = RolloutSettings(
        max_new_tokens=12, batch_size=batch_size, temperature=3.0, stop=["a", "e", "i", "o", "t", "s"]
    )
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS)]
    prompts += prompts[:2]  # read once for both
    engine = NativeEngine(model, settings)
    rollout = generate(engine, prompts, settings, seed=0, step=0)
    assert len({int(n) for n in rollout.sequences.response_lengths}) > 1
    found = rollout.sequences.frozen_states
    wanted = frozen_states(model, rollout.sequences)
    assert found is not None
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-5)
    rows = torch.tensor([3, 0])
    part = rollout.sequences.select(rows)
    assert torch.allclose(part.frozen_states, frozen_states(model, part), atol=1e-5, rtol=1e-5)
    # An evaluation needs none; what is sampled is the same.
    plain = generate(engine, prompts, settings, seed=0, step=0, stream=Stream.EVALUATION)
    assert plain.sequences.frozen_states is None
    model.frozen_blocks = 0
    whole = generate(engine, prompts, settings, seed=0, step=0)
    assert whole.sequences.frozen_states is None
    assert torch.equal(whole.sequences.tokens, rollout.sequences.tokens)
    assert torch.allclose(whole.logprobs, rollout.logprobs, atol=1e-5)


class Echo:
    def reset(self, task):
        self.turns = 0
        return "say something"

    def step(self, reply):
        self.turns += 1
        return "" if self.turns == 1 else " and then?", 1.0, self.turns == 3


@torch.no_grad()
def test_conversations_keep_them_over_their_turns(tokenizer):
    model = model_of(tokenizer, top=2)
    spec = MultiTurn(
        Echo, PlainMessageTokens(tokenizer), EnvironmentSettings(use="x", max_turns=5, lockstep=True)
    )
    prompts = [Prompt(i, (0,), "") for i in range(4)]
    settings = RolloutSettings(max_new_tokens=5, temperature=2.0)
    rollout = spec(NativeEngine(model, settings), prompts, settings, seed=0, step=0)
    found = rollout.sequences.frozen_states
    assert found is not None
    assert torch.allclose(found, frozen_states(model, rollout.sequences), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "separate", "adapter", "none"])
@pytest.mark.parametrize("kept_by", ["engine", "prepare"])
def test_a_step_learns_what_the_whole_computation_does(tokenizer, tmp_path, critic, kept_by):
    lora = 4 if critic == "adapter" else 0
    more = {"advantage": "reinforce++"} if critic == "none" else {}
    config = job(critic if critic != "none" else "shared", **more)

    def learnt(whole):
        made = loop_of(tokenizer, config, tmp_path, top=2, lora=lora)
        if critic == "none":
            made.models.value_head = None
        if whole:
            forgetful(made.models)
        stream = Stream.TRAINING if kept_by == "engine" else Stream.EVALUATION
        rollout = generate(made.engine, made.prompts.batch(0), config.rollout, seed=0, step=0, stream=stream)
        prepared = prepared_by(made, rollout, vowels(rollout))
        assert (prepared.experience.sequences.frozen_states is None) == whole
        stats = update(made.learner, prepared)
        assert whole or stats[0].approx_kl == 0.0  # the first ratio is exactly 1
        return prepared.experience, parameters(made)

    (part, moved), (whole, wanted) = learnt(False), learnt(True)
    for name in ("old_logprobs", "ref_logprobs", "values", "advantages"):
        assert torch.allclose(getattr(part, name), getattr(whole, name), atol=1e-5, rtol=1e-5), name
    start = parameters(loop_of(tokenizer, config, tmp_path, top=2, lora=lora))
    assert moved.keys() == wanted.keys()
    for name, b in wanted.items():
        step = float((b - start[name]).norm())
        assert float((moved[name] - b).norm()) <= 1e-5 * float(b.norm()) + 1e-3 * step, name


def test_what_never_learns_is_neither_read_again_nor_held_twice(tokenizer, tmp_path, monkeypatch):
    made = loop_of(tokenizer, job("separate", steps=1), tmp_path, top=1)
    models = made.models
    frozen = [block.layer for block in block_layouts.layout_of(models.policy.trunk).blocks[: LAYERS - 1]]
    embedding = models.policy.network.get_input_embeddings().weight
    for trunk in (models.critic_trunk, models.reference.trunk):
        assert trunk.embed_tokens.weight is embedding
        for own, other in zip(frozen, trunk.layers, strict=False):
            assert all(p is q for p, q in zip(own.parameters(), other.parameters(), strict=True))
        assert trunk.layers[-1].mlp.up_proj.weight is not models.policy.trunk.layers[-1].mlp.up_proj.weight
    rollout = generate(made.engine, made.prompts.batch(0), made.config.rollout, seed=0, step=0)
    seen, heads = [], block_layouts.LlamaBlock.heads
    monkeypatch.setattr(
        block_layouts.LlamaBlock,
        "heads",
        lambda self, *arguments: (seen.append(self.layer), heads(self, *arguments))[1],
    )
    update(made.learner, prepared_by(made, rollout, vowels(rollout)))
    top = [models.policy.trunk.layers[-1], models.critic_trunk.layers[-1], models.reference.trunk.layers[-1]]
    assert {id(layer) for layer in seen} == {id(layer) for layer in top}


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_run_moves_the_top_blocks_alone(tokenizer, tmp_path, critic):
    config = job(critic, steps=2, lr=1e-2)
    made = loop_of(tokenizer, config, tmp_path, top=1)
    before = {name: p.clone() for name, p in made.models.policy.network.named_parameters()}
    rows = run(made)
    assert [row["first_minibatch/ratio_error"] for row in rows] == [0.0, 0.0]
    for name, p in made.models.policy.network.named_parameters():
        assert torch.equal(p, before[name]) == (f"layers.{LAYERS - 1}." not in name), name
    assert all(f"layers.{LAYERS - 1}." in name for name in made.weights() if name.startswith("policy."))


@torch.no_grad()
def test_a_trunk_with_other_weights_starts_at_the_tokens(tokenizer):
    models = make_actor_critic(model_of(tokenizer, top=1), "separate")
    kept = replace(SEQUENCES, frozen_states=frozen_states(models.policy, SEQUENCES))
    strange = actors(tokenizer, job("separate")).critic_trunk  # of another model, with two blocks
    whole = response_states(models.policy, SEQUENCES, strange)[0]
    assert torch.equal(response_states(models.policy, kept, strange)[0], whole)


@torch.no_grad()
def test_in_bfloat16_they_are_kept_in_two_bytes(tokenizer):
    model = model_of(tokenizer, top=2, precision="bfloat16")
    kept = frozen_states(model, SEQUENCES)
    assert kept.dtype == torch.bfloat16
    whole = token_outputs(model, SEQUENCES).logprobs
    part = token_outputs(model, replace(SEQUENCES, frozen_states=kept)).logprobs
    assert torch.allclose(whole, part, atol=0.1)


@pytest.mark.checklist(34)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_kept_sampling_sets_and_kept_states_go_together(tokenizer, tmp_path, critic):
    config = job(critic, steps=2)
    config = replace(config, rollout=replace(config.rollout, top_p=0.8))
    for row in run(loop_of(tokenizer, config, tmp_path, top=1)):
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["rollout_gap"] < 1e-3
        assert row["kept_tokens"] > 1
