"""The recurrent family: against a cell written by hand, as a transformers model, with its state as the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

import proxlm
from proxlm.__main__ import main
from proxlm.config import LoraSettings, ModelSettings, NewModelSettings, PretrainConfig, load_config
from proxlm.engine.decoders import RecomputeDecoder, RecurrentDecoder, make_decoder
from proxlm.errors import ConfigError
from proxlm.jobs.pretrain import PretrainTrainer
from proxlm.models.actor_critic import critic_from, make_actor_critic
from proxlm.models.adapters import add_lora
from proxlm.models.forward import token_outputs
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.lstm import (
    LSTMConfig,
    LSTMForCausalLM,
    LSTMForSequenceClassification,
    LSTMModel,
    LSTMState,
    plain_kernels,
)
from proxlm.models.model_types import register_model_types
from proxlm.models.save import save_language_model
from proxlm.types import Sequences
from small_models import TEXTS, WORDS, tiny_model

# Different lengths, one token among them; the padding token, 2, also stands inside.
PROMPTS = [[3, 17, 40, 2, 5, 91, 7], [8], [60, 61, 62], [9, 2, 2, 33]]


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer, "lstm")


def by_hand(network, tokens):
    """States [t, H] of one row, cell by cell: Hochreiter & Schmidhuber 1997 with Gers et al. 2000's forget gate."""
    weights = dict(network.model.lstm.named_parameters())
    xs = [network.model.embed_tokens.weight[i] for i in tokens]
    for layer in range(network.config.num_hidden_layers):
        names = (f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        w, u, b, d = (weights[name] for name in names)
        h = c = torch.zeros(network.config.hidden_size, dtype=w.dtype)
        states = []
        for x in xs:
            i, f, g, o = (w @ x + b + u @ h + d).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        xs = states
    return torch.stack(xs)


def padded(rows, side):
    longest = max(map(len, rows))
    gaps = [[2] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    zeros = [[0] * len(gap) for gap in gaps]
    pairs = (zip(gaps, rows, strict=True), zip(zeros, ones, strict=True))
    ids, mask = ([a + b if side == "left" else b + a for a, b in pair] for pair in pairs)
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def test_numbers_are_those_of_a_cell_written_by_hand(model):
    network = model.network.double()
    for row in PROMPTS:
        states = by_hand(network, row)
        got = network(torch.tensor([row])).logits[0]
        assert float((network.model(torch.tensor([row])).last_hidden_state[0] - states).abs().max()) < 1e-12
        assert float((got - states @ network.model.embed_tokens.weight.T).abs().max()) < 1e-6


@torch.no_grad()
@pytest.mark.checklist(32)
@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_tokens_leave_the_state_as_it_is(model, side):
    network = model.network.double()
    ids, mask = padded(PROMPTS, side)
    output = network.model(ids, attention_mask=mask, use_cache=True)
    for b, row in enumerate(PROMPTS):
        alone = network.model(torch.tensor([row]), use_cache=True)
        assert torch.allclose(
            output.last_hidden_state[b][mask[b].bool()], alone.last_hidden_state[0], atol=1e-12
        )
        for name in ("hidden", "cell"):
            mine, own = (getattr(out.past_key_values, name) for out in (output, alone))
            assert torch.allclose(mine[:, b], own[:, 0], atol=1e-12)
    # What a gap holds does not matter, and a row that is all gap keeps the state it had.
    again = network.model(torch.where(mask.bool(), ids, 50), attention_mask=mask).last_hidden_state
    assert torch.equal(again, output.last_hidden_state)
    state, before = output.past_key_values, output.past_key_values.hidden
    gap = torch.cat([mask, torch.tensor([[1, 1], [0, 0], [0, 1], [1, 0]])], dim=-1)
    more = network.model(
        torch.tensor([[5, 6]] * 4), attention_mask=gap, past_key_values=state, use_cache=True
    )
    assert torch.equal(more.past_key_values.hidden[:, 1], before[:, 1])
    for b, tokens in ((0, [5, 6]), (2, [6]), (3, [5])):
        whole = network.model(torch.tensor([PROMPTS[b] + tokens]), use_cache=True).past_key_values
        assert torch.allclose(more.past_key_values.cell[:, b], whole.cell[:, 0], atol=1e-12)
    assert state.get_seq_length() == ids.shape[1] + 2


@torch.no_grad()
def test_packed_rows_are_independent(model):
    network = model.network.double()
    positions = torch.tensor([[t for row in PROMPTS for t in range(len(row))]])
    tokens = torch.tensor([[token for row in PROMPTS for token in row]])
    got = network.model(tokens, position_ids=positions, use_cache=False).last_hidden_state[0]
    assert torch.allclose(got, torch.cat([by_hand(network, row) for row in PROMPTS]), atol=1e-12)


@torch.no_grad()
def test_generate_is_recomputing_token_for_token(model):
    ids, mask = padded(PROMPTS, "left")
    network, count = model.network, 12
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    together = network.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    recomputed = network.generate(ids, attention_mask=mask, use_cache=False, **options)[:, ids.shape[1] :]
    assert torch.equal(together, recomputed)
    for b, row in enumerate(PROMPTS):
        text = list(row)
        for _ in range(count):
            text.append(int(network(torch.tensor([text])).logits[0, -1].argmax()))
        assert text[len(row) :] == together[b].tolist()
    assert len(set(together.flatten().tolist())) > 3


@torch.no_grad()
def test_beams_carry_their_states_along(model):
    ids, mask = padded(PROMPTS, "left")
    options = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "do_sample": False,
        "num_beams": 3,
        "pad_token_id": 2,
    }
    assert torch.equal(
        model.network.generate(ids, **options), model.network.generate(ids, use_cache=False, **options)
    )


@torch.no_grad()
def test_the_decoder_reads_each_token_once_and_drops_rows_exactly(model):
    read = []
    model.trunk.register_forward_pre_hook(
        lambda m, a, k: read.append((a or [k["input_ids"]])[0].shape[1]), with_kwargs=True
    )
    decoder, slow = make_decoder(model), RecomputeDecoder(model)
    assert isinstance(decoder, RecurrentDecoder)
    states = [made.add(PROMPTS, room=4, prefixes=[None] * len(PROMPTS)) for made in (decoder, slow)]
    assert torch.allclose(*states, atol=1e-6)
    for kept in ([0, 1, 2, 3], [3, 1, 0], [1, 0], [0]):
        decoder.keep(torch.tensor(kept)), slow.keep(torch.tensor(kept))
        assert decoder.cache.hidden.shape == (2, len(kept), 32)
        assert decoder.cache.hidden.is_contiguous()
        tokens = torch.arange(len(kept)) * 11 + 20
        read.clear()
        got = decoder.step(tokens)
        assert read == [1]
        assert torch.allclose(got, slow.step(tokens), atol=1e-6)


def test_a_state_repeats_and_selects_rows():
    state = LSTMState(torch.arange(6.0).view(1, 3, 2), torch.arange(6.0).view(1, 3, 2) + 10)
    state.batch_repeat_interleave(2)
    assert state.hidden[0, :, 0].tolist() == [0, 0, 2, 2, 4, 4]
    state.reorder_cache(torch.tensor([5, 0]))
    assert state.cell[0, :, 0].tolist() == [14, 10]


@torch.no_grad()
@pytest.mark.checklist(35)
def test_dropout_is_off_in_evaluation_mode_and_on_in_training(tokenizer):
    torch.manual_seed(0)
    network = LSTMForCausalLM(LSTMConfig(vocab_size=len(tokenizer), hidden_size=32, dropout=0.5))
    ids = torch.tensor([PROMPTS[0]])
    network.eval()
    assert torch.equal(network(ids).logits, network(ids).logits)
    assert (
        float((network(ids).logits[0] - by_hand(network, ids[0]) @ network.lm_head.weight.T).abs().max())
        < 1e-5
    )
    network.train()
    assert not torch.equal(network(ids).logits, network(ids).logits)


def test_gradient_reaches_every_weight_and_one_matrix_is_input_and_output(model):
    batch = Sequences.from_lists([row[:1] for row in PROMPTS], [row[1:] or [4] for row in PROMPTS])
    token_outputs(model, batch).logprobs.sum().backward()
    named = dict(model.network.named_parameters())
    assert set(named) == {"model.embed_tokens.weight"} | {
        f"model.lstm.{name}_l{layer}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for layer in (0, 1)
    }
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in named.values())
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    # The forget gate begins open.
    assert (named["model.lstm.bias_ih_l1"][32:64] == 1).all()
    assert (named["model.lstm.bias_hh_l1"] == 0).all()


def test_old_and_new_logprobs_are_the_same_computation(model):
    """Bit for bit, with gradient, without, and for the frozen reference."""
    batch = Sequences.from_lists([row[:1] for row in PROMPTS], [row[1:] or [4] for row in PROMPTS])
    reference = make_actor_critic(model, "none").reference
    with_gradient = token_outputs(model, batch).logprobs.detach()
    with torch.no_grad():
        assert torch.equal(token_outputs(model, batch).logprobs, with_gradient)
    assert torch.equal(token_outputs(reference, batch).logprobs, with_gradient)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    save_language_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "proxlm_lstm"
    assert not {"num_attention_heads", "max_position_embeddings"} & set(config)
    ours = load_language_model(ModelSettings(policy=str(tmp_path), device="cpu"))
    plain = LSTMForCausalLM.from_pretrained(tmp_path)
    wanted, ids = model.network.state_dict(), torch.tensor([PROMPTS[0]])
    for network in (ours.network, plain, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(network, LSTMForCausalLM)
        assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
        assert torch.equal(network(ids).logits, model.network(ids).logits)
        assert network.lm_head.weight is network.model.embed_tokens.weight
    assert ours.context is None
    assert ours.turn_end.tokens == {model.tokenizer.eos_token_id}


def test_the_auto_classes_know_it(model, tmp_path):
    register_model_types()
    register_model_types()
    save_language_model(model, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, LSTMConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), LSTMModel)
    scorer = AutoModelForSequenceClassification.from_config(config)
    assert isinstance(scorer, LSTMForSequenceClassification)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).lstm.weight_ih_l1, model.trunk.lstm.weight_ih_l1)


def test_heads_and_context_do_not_matter(tokenizer):
    new = NewModelSettings(type="lstm", hidden=30, heads=7, layers=1, context=16, tie_embeddings=False)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    assert model.context is None
    assert model.network.lm_head.weight is not model.network.model.embed_tokens.weight
    assert model.network(torch.zeros(1, 50, dtype=torch.int64)).logits.shape == (1, 50, len(tokenizer))
    more = {"new.hidden": 30, "new.heads": 7, "new.context": 16, "text.train": ["a.txt"]}
    assert [key for key, _ in load_config("pretrain", None, more | {"new.type": "lstm"}).problems()] == []


def test_lora_is_refused_in_a_line(tokenizer, model):
    with pytest.raises(ConfigError, match=r"proxlm_lstm has no linear layer .*; set model\.lora\.rank = 0"):
        add_lora(model, LoraSettings(rank=2))
    with pytest.raises(ConfigError, match=r"model\.lora\.targets = \['lstm'\]"):
        add_lora(model, LoraSettings(rank=2, targets=["lstm"]))


def test_bfloat16(tokenizer):
    model = tiny_model(tokenizer, "lstm", precision="bfloat16")
    batch = Sequences.from_lists([[3], [4, 5]], [[6, 7, 8], [9]])
    got, exact = token_outputs(model, batch), token_outputs(tiny_model(tokenizer, "lstm"), batch)
    assert got.logprobs.dtype == torch.float32
    assert 0 < float((got.logprobs - exact.logprobs).abs().max().detach()) < 0.5


def test_a_critic_from_a_reward_model(tokenizer, model, tmp_path):
    config = LSTMConfig(vocab_size=len(tokenizer), hidden_size=32, num_labels=1, pad_token_id=2)
    LSTMForSequenceClassification(config).save_pretrained(tmp_path)
    models = critic_from(make_actor_critic(model, "separate"), str(tmp_path))
    batch = Sequences.from_lists([[3], [4, 5]], [[6, 7, 8], [9]])
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        values = models.value_of(models.critic_states(batch)[1])
        wanted = [scorer(torch.tensor([row])).logits[0, 0] for row in ([3, 6, 7, 8], [4, 5, 9])]
    assert torch.allclose(values, torch.stack(wanted), atol=1e-6)


@pytest.mark.checklist(15)
@pytest.mark.parametrize(
    "settings", [{}, {"packed": True}, {"loss": "trpo"}, {"critic": "separate", "packed": True}], ids=str
)
def test_ppo_begins_at_ratio_1_and_the_reward_rises(tokenizer, tmp_path, settings):
    steps = 2 if settings else 40  # how fast it rises depends on the last bits of the processor
    log = SilentLog()
    made = trainer(tokenizer, job(steps=steps, lr=1e-2, kl_coef=0.01, **settings), tmp_path, family="lstm")
    before = parameters(made)
    made.train(log)
    assert [row["first_minibatch/ratio_error"] for row in log.rows] == [0.0] * steps
    assert all(row["rollout_gap"] < 1e-5 for row in log.rows)
    assert log.rows[0]["kl"] == 0.0
    after = parameters(made)
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    if not settings:
        first, last = (sum(r["reward"] for r in part) / 5 for part in (log.rows[:5], log.rows[-5:]))
        assert last > first + 0.15


def pretrain_job(folder, **more):
    text = [str(folder / "text.txt")]
    (folder / "text.txt").write_text("\n".join(TEXTS * 30), encoding="utf-8")
    settings = {
        "new.type": "lstm", "new.hidden": 24, "new.layers": 2, "new.vocabulary": 300, "text.train": text,
        "train.steps": 6, "train.batch_tokens": 256, "train.block": 32, "train.validate_every": 3, "optim.lr": 1e-2,
        "optim.schedule": "constant", "run.folder": str(folder / "run"), "run.save_every": 3, "run.threads": 1,
        "run.tensorboard": False, "run.report": False, "model.device": "cpu",
    }  # fmt: skip
    return load_config("pretrain", None, settings | more)


def test_pretrain_resume_sft_ppo_and_generate(tmp_path, monkeypatch):
    """The commands from text to a tuned model; the last in a process of its own, which must know the family."""
    monkeypatch.chdir(tmp_path)
    whole = pretrain_job(tmp_path, **{"run.folder": str(tmp_path / "whole")})
    assert isinstance(whole, PretrainConfig)
    losses = PretrainTrainer(config=whole).train().metrics["validation_loss"]
    PretrainTrainer(config=pretrain_job(tmp_path, **{"train.steps": 3})).train()
    resumed = PretrainTrainer(config=pretrain_job(tmp_path, **{"run.resume": True})).train()
    assert resumed.metrics["validation_loss"] == losses
    pairs = [json.dumps({"prompt": text[:8], "response": text[8:]}) for text in TEXTS * 4]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("\n".join(WORDS * 2), encoding="utf-8")
    common = [
        "--run.tensorboard",
        "false",
        "--run.report",
        "false",
        "--run.threads",
        "1",
        "--model.device",
        "cpu",
    ]
    sft = ["--text.train", '["pairs.jsonl"]', "--train.steps", "2", "--run.folder", "sft"]
    assert main(["sft", "--model.policy", "run/policy", *sft, *common]) == 0
    ppo = ["--data.prompts", "prompts.txt", "--data.eval-count", "2", "--rollout.max-new-tokens", "6"]
    ppo += [
        "--reward.use",
        "length",
        "--reward.args",
        "{target = 4}",
        "--ppo.steps",
        "2",
        "--ppo.batch-size",
        "4",
    ]
    assert main(["ppo", "--model.policy", "sft/policy", *ppo, "--run.folder", "ppo", *common]) == 0
    assert main(["ppo", "--model.policy", "sft/policy", *ppo, "--run.folder", "ppo", *common, "--ppo.steps", "3",
                 "--resume"]) == 0  # fmt: skip
    command = [sys.executable, "-m", "proxlm", "generate", "ppo", "--prompt", "The cat"]
    here = os.environ | {"PYTHONPATH": str(Path(proxlm.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=here)
    assert "proxlm_lstm" not in done.stderr
    assert len(done.stdout) > 3


def test_the_last_to_leave_switches_kernels_back_also_after_an_error():
    seen = []

    def state():
        return bool(torch.backends.mkldnn.enabled), bool(torch.backends.cudnn.enabled)

    def fails_inside():
        with plain_kernels():
            seen.append(state())
            raise ValueError

    before = state()
    assert any(before)
    with plain_kernels():
        with pytest.raises(ValueError):
            fails_inside()
        seen.append(state())
    assert seen == [(False, False)] * 2
    assert state() == before
    with pytest.raises(ValueError):
        fails_inside()
    assert state() == before
