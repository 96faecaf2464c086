"""Items 31–37 of the checklist: sampling, layouts, temperature, filters, dropout, the optimiser, the reference."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, trainer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from proxlm.config import (
    LoraConfig,
    ModelConfig,
    OptimiserConfig,
    OptimisersConfig,
    PPOConfig,
    RolloutConfig,
)
from proxlm.errors import ModelError
from proxlm.models import forward
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.forward import check_packing, token_outputs
from proxlm.models.load import add_lora, load_language_model, wrap
from proxlm.models.save import save_language_model
from proxlm.rl.moments import Moments
from proxlm.rollout import native
from proxlm.rollout.native import generate
from proxlm.train import update as update_module
from proxlm.train.algorithms import build_algorithm
from proxlm.train.optimiser import Optimiser
from proxlm.train.prepare import StepNumbers, prepare
from proxlm.train.schedules import learning_rate
from proxlm.types import Prompt, Scores, Sequences
from small_models import WORDS, tiny_model

FAMILIES = ["llama", "qwen3", "gpt2"]
NEVER = -1


def prompts(tokenizer, count=6):
    return [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate((WORDS * 11)[:count])]


def sampled(model, count=6, seed=3, **settings):
    config = RolloutConfig(**{"max_new_tokens": 12, **settings})
    return generate(model, prompts(model.tokenizer, count), config, seed=seed, step=0)


def prepared(models, rollout, config, temperature=1.0):
    now = StepNumbers(temperature=temperature, kl_coef=0.05, moments=Moments(), warmup=False)
    scores = Scores(torch.linspace(-1.0, 1.0, len(rollout)))
    layout = [torch.arange(len(rollout))]
    return prepare(models, rollout, scores, config, build_algorithm(config.ppo), now, layout)


def own_logits(model, sequences, network=None):
    """The network's own logits before each response token, row by row without padding: [R, V]."""
    found = []
    with torch.no_grad():
        for b in range(len(sequences)):
            first, last = sequences.offsets[b : b + 2].tolist()
            row, start = sequences.tokens[first:last], int(sequences.prompt_lengths[b])
            logits = (network or model.network)(input_ids=row[None]).logits[0]
            found.append(logits[start - 1 : len(row) - 1])
    return torch.cat(found)


def rows_of(flat, sequences):
    return torch.split(flat, sequences.response_lengths.tolist())


def with_noise(models, scale=0.3):
    """The policy moves away from its reference."""
    torch.manual_seed(5)
    with torch.no_grad():
        for _, p in models.policy_parameters():
            p.add_(scale * p.std() * torch.randn_like(p) if p.numel() > 1 else 0.0)
    return models


# 31: the first EOS


def force_tokens(monkeypatch, script):
    """Row b (in the order of the prompts) gets script[b][t]; its log-prob is the model's."""

    def places(seed, stream, step, ids, samples, count):
        return (torch.arange(len(ids))[:, None] * 1000 + torch.arange(count)).double()

    def forced(logits, place, config):
        where = [divmod(int(x), 1000) for x in place.tolist()]
        tokens = torch.tensor([script[b][t] for b, t in where])
        return tokens, torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None]).squeeze(-1)

    monkeypatch.setattr(native, "uniforms", places)
    monkeypatch.setattr(native, "sample", forced)


def scripts(eos, places, limit):
    """Ordinary tokens, EOS first at each of the places, and, after it, more EOS and ordinary tokens."""
    rows = []
    for b, place in enumerate(places):
        row = [20 + (5 * b + t) % 40 for t in range(limit)]
        if place != NEVER:
            row[place:] = [eos if (t - place) % 2 == 0 else row[t] for t in range(place, limit)]
        rows.append(row)
    return rows


@pytest.mark.checklist(31)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_is_cut_after_its_first_eos(tokenizer, monkeypatch, family, pad_is_eos, batch_size):
    if pad_is_eos:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
    else:
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
    eos, limit = tokenizer.eos_token_id, 8
    places = [0, 3, limit - 1, NEVER, 0, 1]
    script = scripts(eos, places, limit)
    force_tokens(monkeypatch, script)
    config = job("shared", lam=1.0, whiten_advantages="never")
    config = replace(config, rollout=RolloutConfig(max_new_tokens=limit, batch_size=batch_size))
    models = actors(tokenizer, config, family=family)
    asked = prompts(tokenizer)
    rollout = generate(models.policy, asked, config.rollout, seed=0, step=0)

    wanted = [row if place == NEVER else row[: place + 1] for row, place in zip(script, places, strict=True)]
    got = [row.tolist() for row in rows_of(rollout.sequences.response_tokens, rollout.sequences)]
    assert got == wanted
    assert rollout.finish == ["length" if place == NEVER else "eos" for place in places]
    assert rollout.action_mask.all()
    assert len(rollout.action_mask) == len(rollout.logprobs) == sum(map(len, wanted))
    # The log-prob of each token, the EOS among them, is the model's own.
    own = torch.log_softmax(own_logits(models.policy, rollout.sequences), -1)
    own = own.gather(-1, rollout.sequences.response_tokens[:, None]).squeeze(-1)
    assert torch.allclose(rollout.logprobs, own, atol=1e-5, rtol=0)
    is_eos = rollout.sequences.response_tokens == eos
    assert int(is_eos.sum()) == 5
    assert (rollout.logprobs[is_eos] < 0).all()

    # The EOS is an action to the update, too: it has the reward, and every action weighs the same.
    experience, metrics = prepared(models, rollout, config)
    assert torch.equal(experience.action_mask, rollout.action_mask)
    assert torch.allclose(experience.old_logprobs, own, atol=1e-5, rtol=0)
    for reward, length in zip(
        rows_of(experience.rewards, rollout.sequences), rollout.sequences.response_lengths, strict=True
    ):
        assert (reward[: length - 1] == 0).all()
    assert (experience.advantages[is_eos] != 0).all()
    assert metrics["response_length"] == pytest.approx(sum(map(len, wanted)) / 6)


@pytest.mark.checklist(31)
def test_pad_equal_to_eos_changes_nothing_in_a_ppo_step(tokenizer, tmp_path):
    """Weights, sampling and update are the same whatever the tokenizer calls padding."""
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    start = tiny_model(tokenizer).network.state_dict()
    made = []
    for which in (tokenizer, same):
        one = trainer(which, job(steps=2), tmp_path)
        for model in (one.models.policy, one.models.reference):
            # transformers starts the padding token's embedding at 0 and keeps it: here all begin alike.
            model.network.load_state_dict(start)
            for module in model.network.modules():
                if isinstance(module, nn.Embedding):
                    module.padding_idx = None
        log = SilentLog()
        one.train(log)
        made.append((parameters(one), log.rows))
    (a, rows_a), (b, rows_b) = made
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert [r["reward"] for r in rows_a] == [r["reward"] for r in rows_b]


# 32: layouts


def mixed(tokenizer):
    """Rows of very unlike lengths; the padding token and the EOS also stand inside."""
    generator = torch.Generator().manual_seed(0)
    size, lengths = len(tokenizer), [(1, 1), (2, 9), (30, 3), (5, 40), (3, 1), (11, 6)]
    rows = [torch.randint(0, size, (a + b,), generator=generator).tolist() for a, b in lengths]
    rows[1][3], rows[3][8], rows[5][2] = tokenizer.pad_token_id, tokenizer.eos_token_id, 0
    return Sequences.from_lists(
        [row[:a] for row, (a, _) in zip(rows, lengths, strict=True)],
        [row[a:] for row, (a, _) in zip(rows, lengths, strict=True)],
    )


@pytest.mark.checklist(32)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_do_not_depend_on_padding_packing_batch_size_or_order(tokenizer, family, temperature):
    sequences = mixed(tokenizer)
    padded, packed = tiny_model(tokenizer, family), tiny_model(tokenizer, family, packed=True)
    assert packed.packed
    assert not padded.packed
    own = torch.log_softmax(own_logits(padded, sequences) / temperature, -1)
    wanted = own.gather(-1, sequences.response_tokens[:, None]).squeeze(-1)
    entropy = -(own.exp() * own).sum(-1)
    orders = [[0], [1], [3], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0], [2, 5, 1], [4, 3, 2]]
    for model in (padded, packed):
        for order in orders:
            rows = torch.tensor(order)
            with torch.no_grad():
                got = token_outputs(model, sequences.select(rows), temperature, entropy=True)
            for flat, mine in ((wanted, got.logprobs), (entropy, got.entropy)):
                expected = torch.cat([rows_of(flat, sequences)[b] for b in order])
                assert float((mine - expected).abs().max()) <= 1e-5, (model.packed, order)


@pytest.mark.checklist(32)
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_final_states_do_not_depend_on_the_layout(tokenizer, family, critic):
    sequences, found = mixed(tokenizer), []
    for packed in (False, True):
        models = make_actor_critic(tiny_model(tokenizer, family, packed=packed), critic)
        torch.manual_seed(2)
        nn.init.normal_(models.value_head.linear.weight, std=0.2)
        with torch.no_grad():
            states, final = models.critic_states(sequences)
            alone = [models.critic_states(sequences.select(torch.tensor([b]))) for b in range(6)]
        found.append((models.value_of(states), models.value_of(final)))
        found.append(
            (
                models.value_of(torch.cat([s for s, _ in alone])),
                models.value_of(torch.cat([f for _, f in alone])),
            )
        )
    assert float(found[0][0].detach().std()) > 0.1
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert float((a - b).detach().abs().max()) <= 1e-5


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_padding_holds_and_how_much_of_it_there_is_does_not_matter(tokenizer, monkeypatch, family):
    sequences, model = mixed(tokenizer), tiny_model(tokenizer, family)
    with torch.no_grad():
        plain = token_outputs(model, sequences).logprobs
    original = forward.pad_right

    def more(sequences, extra, token):
        padded, place = original(sequences)
        count, longest = padded.shape
        row, position = place // longest, place % longest
        wider = torch.full((count, longest + extra), token)
        place = row * (longest + extra) + position
        wider.view(-1)[place] = sequences.tokens
        return wider, place

    for extra, token in ((0, 33), (17, tokenizer.eos_token_id), (50, 33)):
        monkeypatch.setattr(forward, "pad_right", lambda s, e=extra, t=token: more(s, e, t))
        with torch.no_grad():
            got = token_outputs(model, sequences).logprobs
        assert float((got - plain).abs().max()) <= (0.0 if extra == 0 else 1e-5)


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_count_the_real_tokens_of_a_row(tokenizer, family):
    """Of the positions given to a packed model, each row has 0, 1, …; a padded one gets none and counts itself."""
    seen = []
    for packed in (False, True):
        model = tiny_model(tokenizer, family, packed=packed)
        model.trunk.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
        with torch.no_grad():
            token_outputs(model, mixed(tokenizer))
    assert "position_ids" not in seen[0]
    assert "attention_mask" not in seen[0]
    lengths = mixed(tokenizer).lengths.tolist()
    assert seen[1]["position_ids"].tolist() == [[t for n in lengths for t in range(n)]]
    assert seen[1]["input_ids"].tolist() == [mixed(tokenizer).tokens.tolist()]


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral"])
def test_packing_is_found_sound(tokenizer, family):
    check_packing(tiny_model(tokenizer, family))
    check_packing(tiny_model(tokenizer, family, packed=True))


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_packing_is_refused_where_rows_would_see_each_other(tokenizer, tmp_path, family):
    """Bloom takes no positions; a recurrent model carries its state from row to row."""
    with pytest.raises(ModelError, match=r"model\.packed = false"):
        check_packing(tiny_model(tokenizer, family))
    save_language_model(tiny_model(tokenizer, family), tmp_path)
    load_language_model(ModelConfig(policy=str(tmp_path), device="cpu"))
    with pytest.raises(ModelError, match=r"model\.packed = false"):
        load_language_model(ModelConfig(policy=str(tmp_path), device="cpu", packed=True))


@pytest.mark.checklist(32)
def test_packing_is_refused_for_a_model_that_leaks(tokenizer, monkeypatch):
    """A llama that does not hear of the positions takes all rows for one text."""
    model = tiny_model(tokenizer)

    def deaf(module, args, kwargs):
        return args, {k: v for k, v in kwargs.items() if k != "position_ids"}

    model.trunk.register_forward_pre_hook(deaf, with_kwargs=True)
    with pytest.raises(ModelError, match="looks from one sequence into another"):
        check_packing(model)


# 33: temperature


@pytest.mark.checklist(33)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_temperature_is_the_same_in_rollout_old_new_and_reference(tokenizer, family, temperature, packed):
    config = replace(
        job("separate", packed=packed), rollout=RolloutConfig(max_new_tokens=12, temperature=temperature)
    )
    models = with_noise(actors(tokenizer, config, family=family))
    rollout = sampled(models.policy, temperature=temperature)
    experience, _ = prepared(models, rollout, config, temperature)
    tokens = rollout.sequences.response_tokens[:, None]
    found = {}
    for name, network in (("policy", models.policy.network), ("reference", models.reference.network)):
        logits = own_logits(models.policy, rollout.sequences, network)
        found[name] = torch.log_softmax(logits / temperature, -1).gather(-1, tokens).squeeze(-1)
        plain = torch.log_softmax(logits, -1).gather(-1, tokens).squeeze(-1)
        assert float((found[name] - plain).abs().max()) > 0.05
    assert float((found["policy"] - found["reference"]).abs().max()) > 0.05
    with torch.no_grad():
        new = models.policy_outputs(rollout.sequences, temperature).logprobs
    for got in (rollout.logprobs, experience.old_logprobs, new):
        assert float((got - found["policy"]).abs().max()) <= 1e-5
    for got in (experience.ref_logprobs, models.reference_logprobs(rollout.sequences, temperature)):
        assert float((got - found["reference"]).abs().max()) <= 1e-5


@pytest.mark.checklist(33)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_reference_of_lora_has_the_temperature_too(tokenizer, temperature):
    config = job("shared")
    models = with_noise(actors(tokenizer, config, lora=4))
    rollout = sampled(models.policy, temperature=temperature)
    base = tiny_model(tokenizer)
    with torch.no_grad():
        wanted = token_outputs(base, rollout.sequences, temperature).logprobs
    assert torch.equal(models.reference_logprobs(rollout.sequences, temperature), wanted)


@pytest.mark.checklist(33)
@pytest.mark.parametrize(("start", "end"), [(0.7, 0.0), (1.3, 0.0), (0.7, 1.3)])
def test_a_whole_run_at_a_temperature_begins_each_step_at_ratio_1(tokenizer, tmp_path, start, end):
    config = job(steps=3)
    sampling = RolloutConfig(max_new_tokens=12, temperature=start, final_temperature=end)
    log = SilentLog()
    trainer(tokenizer, replace(config, rollout=sampling), tmp_path).train(log)
    wanted = [start + (end - start) * i / 2 if end else start for i in range(3)]
    assert [row["temperature"] for row in log.rows] == pytest.approx(wanted)
    for row in log.rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["rollout_gap"] < 1e-5
    assert log.rows[0]["kl"] == 0.0


# 34: filters


def kept_by_hand(p, top_k, top_p, min_p):
    """The kept tokens of one distribution (a list), in plain Python."""
    kept = sorted(range(len(p)), key=lambda i: -p[i])
    kept = [i for i in kept if p[i] >= min_p * max(p)]
    kept = kept[:top_k] if top_k else kept
    total, reached, chosen = sum(p[i] for i in kept), 0.0, []
    for i in kept:
        if chosen and reached >= top_p * total:
            break
        chosen.append(i)
        reached += p[i]
    return chosen


@pytest.mark.checklist(34)
@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 5, "top_p": 0.7},
        {"top_k": 4, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
        {"top_p": 0.9, "temperature": 0.7},
        {"top_k": 1},
    ],
    ids=str,
)
def test_the_stored_logprob_is_the_filtered_one_enumerated(tokenizer, filters):
    model = tiny_model(tokenizer)
    temperature = filters.get("temperature", 1.0)
    rollout = sampled(model, count=12, **filters)
    logits = own_logits(model, rollout.sequences).double() / temperature
    dropped = 0
    for p, token, logprob in zip(
        torch.softmax(logits, -1).tolist(),
        rollout.sequences.response_tokens.tolist(),
        rollout.logprobs.tolist(),
        strict=True,
    ):
        kept = kept_by_hand(p, filters.get("top_k", 0), filters.get("top_p", 1.0), filters.get("min_p", 0.0))
        assert token in kept
        assert logprob == pytest.approx(math.log(p[token] / sum(p[i] for i in kept)), abs=1e-5)
        dropped += len(p) - len(kept)
    assert dropped > 0


@pytest.mark.checklist(34)
def test_filters_are_off_by_default_and_then_nothing_is_dropped(tokenizer):
    assert (RolloutConfig().top_k, RolloutConfig().top_p, RolloutConfig().min_p) == (0, 1.0, 0.0)
    model = tiny_model(tokenizer)
    rollout = sampled(model)
    with torch.no_grad():
        assert torch.allclose(token_outputs(model, rollout.sequences).logprobs, rollout.logprobs, atol=1e-5)


@pytest.mark.checklist(34)
def test_with_filters_the_correction_is_the_ratio_to_the_filtered_policy(tokenizer):
    config = job()
    full = replace(config.ppo.correction, mode="full")
    config = replace(config, ppo=replace(config.ppo, correction=full))
    models = actors(tokenizer, config)
    rollout = sampled(models.policy, top_k=3)
    experience, metrics = prepared(models, rollout, config)
    wanted = (experience.old_logprobs - rollout.logprobs).exp()
    assert torch.allclose(experience.correction, wanted, rtol=1e-5)
    assert float(wanted.min()) < 0.95  # the filters raised these tokens' probability
    assert metrics["rollout_gap"] > 1e-3


# 35: dropout


def model_with_dropout(tokenizer, p=0.5):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128,
        attn_pdrop=p, resid_pdrop=p, embd_pdrop=p,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).train()
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(8.0)
    return wrap(network, tokenizer, ModelConfig(policy="dropout", device="cpu"))


@pytest.mark.checklist(35)
def test_dropout_is_off_in_the_rollout(tokenizer):
    model = model_with_dropout(tokenizer)
    one, other = sampled(model), sampled(model)
    assert torch.equal(one.sequences.tokens, other.sequences.tokens)
    assert torch.equal(one.logprobs, other.logprobs)
    with torch.no_grad():
        again = [token_outputs(model, one.sequences).logprobs for _ in range(2)]
    assert torch.equal(*again)
    assert torch.allclose(again[0], one.logprobs, atol=1e-5)
    # It would show: with dropout on, two forwards differ.
    model.network.train()
    with torch.no_grad():
        noisy = [token_outputs(model, one.sequences).logprobs for _ in range(2)]
    assert float((noisy[0] - noisy[1]).abs().max()) > 0.1


@pytest.mark.checklist(35)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_dropout_is_off_in_the_update(tokenizer, tmp_path, critic):
    """Whatever the state of torch's generator: the update is the same, and no dropout layer is in training mode."""
    results = []
    for seed in (0, 1):
        made = trainer(tokenizer, job(critic, steps=2), tmp_path)
        made = type(made)(
            made.config,
            make_actor_critic(model_with_dropout(tokenizer), critic),
            made.prompts,
            made.reward,
            tmp_path,
        )
        networks = [made.models.policy.network, made.models.reference.network, made.models.critic_trunk]
        dropouts = [m for n in networks if n is not None for m in n.modules() if isinstance(m, nn.Dropout)]
        assert dropouts
        assert all(m.p == 0.5 for m in dropouts)
        modes: list[bool] = []
        for module in dropouts:
            module.register_forward_hook(lambda m, a, o, seen=modes: seen.append(m.training))
        torch.manual_seed(seed)
        log = SilentLog()
        made.train(log)
        assert modes
        assert not any(modes)
        assert [row["first_minibatch/ratio_error"] for row in log.rows] == [0.0, 0.0]
        results.append(parameters(made))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.checklist(35)
def test_two_forwards_with_gradient_are_equal(tokenizer):
    models = make_actor_critic(model_with_dropout(tokenizer), "separate")
    rollout = sampled(models.policy)
    one, other = (models.policy_outputs(rollout.sequences, 0.7, entropy=True) for _ in range(2))
    assert one.logprobs.requires_grad
    assert torch.equal(one.logprobs, other.logprobs)
    assert torch.equal(one.entropy, other.entropy)
    assert torch.equal(models.critic_states(rollout.sequences)[0], models.critic_states(rollout.sequences)[0])
    assert torch.equal(models.reference_logprobs(rollout.sequences, 0.7), one.logprobs.detach())


# 36: the optimiser


@pytest.mark.checklist(36)
def test_defaults_of_the_optimisers():
    optim, ppo = OptimisersConfig(), PPOConfig()
    for config in (optim.policy, optim.critic):
        assert config.eps == 1e-5
        assert config.max_grad_norm == 1.0
        assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.999, 0.0)
    assert 1e-6 <= optim.policy.lr <= 3e-6
    assert 5e-6 <= optim.critic.lr <= 1e-5
    assert ppo.epochs == 4
    for schedule in ("linear", "cosine"):
        rates = [learning_rate(OptimiserConfig(lr=1e-3, schedule=schedule), t, 20) for t in range(20)]
        assert rates[0] == 1e-3
        assert rates[-1] == pytest.approx(0.0, abs=1e-12)
        assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.checklist(36)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_settings_reach_adamw_and_each_network_has_its_own_rate(tokenizer, tmp_path, critic):
    config = replace(job(critic, steps=1), optim=OptimisersConfig())
    made = trainer(tokenizer, config, tmp_path)
    policy, value = made.optimisers.policy, made.optimisers.critic
    for optimiser, lr in ((policy, config.optim.policy.lr), (value, config.optim.critic.lr)):
        assert isinstance(optimiser.adamw, torch.optim.AdamW)
        for group in optimiser.adamw.param_groups:
            assert (group["lr"], group["eps"], group["betas"]) == (lr, 1e-5, (0.9, 0.999))
    covered = [{id(p) for g in o.adamw.param_groups for p in g["params"]} for o in (policy, value)]
    assert covered[0] == {id(p) for _, p in made.models.policy_parameters()}
    assert covered[1] == {id(p) for _, p in made.models.critic_parameters()}
    assert not covered[0] & covered[1]
    assert policy.config.lr != value.config.lr
    before = parameters(made)
    log = SilentLog()
    made.train(log)
    after = parameters(made)
    # An AdamW step moves a parameter by about the learning rate; 6 of them by at most 6 times that.
    moved = {
        side: max(
            float((after[n] - before[n]).abs().max()) for n in before if n.startswith("critic.") == side
        )
        for side in (False, True)
    }
    assert 0.5 * 3e-6 < moved[False] <= 6.6 * 3e-6
    assert 0.5 * 1e-5 < moved[True] <= 6.6 * 1e-5
    assert log.rows[0]["lr/policy"] == pytest.approx(3e-6)
    assert log.rows[0]["lr/critic"] == pytest.approx(1e-5)


@pytest.mark.checklist(36)
@pytest.mark.parametrize(("size", "wanted"), [(10.0, 1.0), (0.5, 0.5)])
def test_gradients_are_clipped_to_norm_1_before_adamw_sees_them(monkeypatch, size, wanted):
    p, q = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))
    optimiser = Optimiser([("p", p), ("q", q)], OptimiserConfig(lr=1e-3))
    seen = []
    monkeypatch.setattr(
        optimiser.adamw, "step", lambda: seen.append(float(torch.cat([p.grad.flatten(), q.grad]).norm()))
    )
    torch.manual_seed(0)
    p.grad, q.grad = torch.randn(3, 4), torch.randn(5)
    scale = size / float(torch.cat([p.grad.flatten(), q.grad]).norm())
    p.grad.mul_(scale)
    q.grad.mul_(scale)
    norm, _ = optimiser.step(0, 10)
    assert norm == pytest.approx(size, rel=1e-5)
    assert seen == pytest.approx([wanted], rel=1e-4)


@pytest.mark.checklist(36)
def test_one_adamw_step_by_hand():
    """eps stands beside the root of the second moment: lr · g / (|g| + eps) at the first step."""
    p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimiser = Optimiser([("p", p)], OptimiserConfig(lr=1e-2))
    gradient = torch.tensor([0.3, -1e-5, 1e-8])
    p.grad = gradient.clone()
    optimiser.step(0, 10)
    wanted = 1.0 - 1e-2 * gradient / (gradient.abs() + 1e-5)
    assert torch.allclose(p.detach(), wanted, atol=1e-7, rtol=0)


@pytest.mark.checklist(36)
def test_four_passes_each_in_its_own_order(tokenizer, tmp_path, monkeypatch):
    passes = []
    original = update_module.plan_pass

    def recording(*arguments, **named):
        plan = original(*arguments, **named)
        passes.append([row for minibatch in plan for row in torch.cat(minibatch).tolist()])
        return plan

    monkeypatch.setattr(update_module, "plan_pass", recording)
    config = job(steps=2, epochs=PPOConfig().epochs, minibatches=4, micro_batch_tokens=1)
    log = SilentLog()
    trainer(tokenizer, config, tmp_path).train(log)
    assert [row["optimiser_steps"] for row in log.rows] == [16, 16]
    assert len(passes) == 8
    assert all(sorted(rows) == list(range(12)) for rows in passes)
    # Which rows share a minibatch also changes from pass to pass.
    groups = [tuple(frozenset(rows[3 * i : 3 * i + 3]) for i in range(4)) for rows in passes]
    assert len(set(map(tuple, passes))) == len(set(groups)) == 8


# 37: the reference


# PEFT says that it takes GPT-2's transposed layers for what they are.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.checklist(37)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_lora_is_the_reference_bit_for_bit(tokenizer, family, packed):
    models = make_actor_critic(
        add_lora(tiny_model(tokenizer, family, packed=packed), LoraConfig(rank=4)), "shared"
    )
    assert models.reference is None
    named = dict(models.policy_parameters())
    assert named
    assert all("lora_" in name for name in named)
    assert all((p == 0).all() for name, p in named.items() if "lora_B" in name)
    assert all((p != 0).any() for name, p in named.items() if "lora_A" in name)
    sequences = mixed(tokenizer)
    with torch.no_grad():
        policy = models.policy_outputs(sequences, 0.9).logprobs
    assert torch.equal(policy, models.reference_logprobs(sequences, 0.9))


@pytest.mark.checklist(37)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_lora_leaves_the_base_without_gradients_and_the_reference_as_it_was(
    tokenizer, tmp_path, monkeypatch, critic
):
    made = trainer(tokenizer, job(critic, steps=2, lr=1e-2), tmp_path, lora=4)
    network, sequences = made.models.policy.network, mixed(tokenizer)
    base = {n: p for n, p in network.named_parameters() if "lora_" not in n}
    start = {n: p.detach().clone() for n, p in base.items()}
    reference = made.models.reference_logprobs(sequences, 1.0)
    original, steps = made.optimisers.policy.step, []

    def looking(*arguments):
        assert all(p.grad is None and not p.requires_grad for p in base.values())
        assert any(p.grad is not None for _, p in made.models.policy_parameters())
        steps.append(1)
        return original(*arguments)

    monkeypatch.setattr(made.optimisers.policy, "step", looking)
    log = SilentLog()
    made.train(log)
    assert len(steps) == 12
    assert all(p.grad is None and torch.equal(p, start[n]) for n, p in base.items())
    assert torch.equal(made.models.reference_logprobs(sequences, 1.0), reference)
    with torch.no_grad():
        now = made.models.policy_outputs(sequences, 1.0).logprobs
    assert float((now - reference).abs().max()) > 1e-2
    assert log.rows[0]["kl"] == 0.0 != log.rows[1]["kl"]
    assert {n for n in parameters(made) if n.startswith("critic.")} == {
        f"critic.{n}" for n, _ in made.models.critic_parameters()
    }


@pytest.mark.checklist(37)
@pytest.mark.parametrize("settings", [{}, {"loss": "trpo"}, {"advantage": "reinforce++"}], ids=str)
def test_a_frozen_copy_does_not_change(tokenizer, tmp_path, settings):
    made = trainer(tokenizer, job("separate", steps=2, lr=1e-2, **settings), tmp_path)
    reference = dict(made.models.reference.network.named_parameters())
    policy = dict(made.models.policy.network.named_parameters())
    start = {n: p.detach().clone() for n, p in reference.items()}
    assert all(torch.equal(p, policy[n]) for n, p in reference.items())
    assert not {p.data_ptr() for p in reference.values()} & {p.data_ptr() for p in policy.values()}
    sequences = mixed(tokenizer)
    before = made.models.reference_logprobs(sequences, 1.0)
    made.train(SilentLog())
    assert all(torch.equal(p, start[n]) for n, p in reference.items())
    assert all(p.grad is None and not p.requires_grad for p in reference.values())
    assert torch.equal(made.models.reference_logprobs(sequences, 1.0), before)
    assert any(not torch.equal(p, start[n]) for n, p in policy.items())
