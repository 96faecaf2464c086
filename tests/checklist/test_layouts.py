"""Section 4, item 32: log-probs and values do not depend on the layout."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import ENCODER_DECODERS, FAMILIES, mixed, own_logits, rows_of
from torch import nn

from proxlm.config import (
    ModelSettings,
)
from proxlm.errors import ModelError
from proxlm.models import forward
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.forward import check_packing, token_outputs
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from small_models import tiny_model


@pytest.mark.checklist(32)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_do_not_depend_on_padding_packing_batch_size_or_order(tokenizer, family, temperature):
    sequences = mixed(tokenizer)
    padded = tiny_model(tokenizer, family)
    assert not padded.packed
    models = [padded]
    if family not in ENCODER_DECODERS:
        models.append(tiny_model(tokenizer, family, packed=True))
        assert models[1].packed
    own = torch.log_softmax(own_logits(padded, sequences) / temperature, -1)
    wanted = own.gather(-1, sequences.response_tokens[:, None]).squeeze(-1)
    entropy = -(own.exp() * own).sum(-1)
    orders = [[0], [1], [3], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0], [2, 5, 1], [4, 3, 2]]
    for model in models:
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
    for packed in (False,) if family in ENCODER_DECODERS else (False, True):
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
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ENCODER_DECODERS])
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
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_sees_the_real_tokens_of_its_prompt_alone(tokenizer, family):
    """Prompts and responses are padded apart; the encoder gets a mask; a start token stands before a response."""
    model, sequences, seen = tiny_model(tokenizer, family), mixed(tokenizer), []
    for half in (model.trunk.encoder, model.trunk.decoder):
        half.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    with torch.no_grad():
        token_outputs(model, sequences)
    read, written = seen
    prompts, responses = sequences.prompt_lengths, sequences.response_lengths
    assert read["input_ids"].shape == (6, int(prompts.max()))
    assert written["input_ids"].shape == (6, int(responses.max()) + 1)
    assert read["attention_mask"].sum(-1).tolist() == prompts.tolist()
    assert torch.equal(written["encoder_attention_mask"], read["attention_mask"])
    assert (written["input_ids"][:, 0] == model.start_id).all()
    for b, n in enumerate(prompts.tolist()):
        row = sequences.select(torch.tensor([b])).tokens
        assert read["input_ids"][b, :n].tolist() == row[:n].tolist()
        assert written["input_ids"][b, 1 : 1 + len(row) - n].tolist() == row[n:].tolist()


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_without_the_mask_padding_would_matter(tokenizer, monkeypatch, family):
    """So the tests above can fail."""
    model, sequences = tiny_model(tokenizer, family), mixed(tokenizer)
    with torch.no_grad():
        right = token_outputs(model, sequences).logprobs
        blind = forward.pad_with_mask
        monkeypatch.setattr(forward, "pad_with_mask", lambda s: (blind(s)[0], torch.ones_like(blind(s)[1])))
        wrong = token_outputs(model, sequences).logprobs
    assert float((right - wrong).abs().max()) > 0.1


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral", "lstm"])
def test_packing_is_found_sound(tokenizer, family):
    check_packing(tiny_model(tokenizer, family))
    check_packing(tiny_model(tokenizer, family, packed=True))


@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ["bloom", "mamba", *ENCODER_DECODERS])
def test_packing_is_refused_where_rows_would_see_each_other(tokenizer, tmp_path, family):
    """Bloom takes no positions; a recurrent model carries its state from row to row; an encoder looks both ways."""
    with pytest.raises(ModelError, match=r"model\.packed = false"):
        check_packing(tiny_model(tokenizer, family))
    save_language_model(tiny_model(tokenizer, family), tmp_path)
    load_language_model(ModelSettings(policy=str(tmp_path), device="cpu"))
    with pytest.raises(ModelError, match=r"model\.packed = false"):
        load_language_model(ModelSettings(policy=str(tmp_path), device="cpu", packed=True))


@pytest.mark.checklist(32)
def test_packing_is_refused_for_a_model_that_leaks(tokenizer, monkeypatch):
    """A llama that does not hear of the positions takes all rows for one text."""
    model = tiny_model(tokenizer)

    def deaf(module, args, kwargs):
        return args, {k: v for k, v in kwargs.items() if k != "position_ids"}

    model.trunk.register_forward_pre_hook(deaf, with_kwargs=True)
    with pytest.raises(ModelError, match="looks from one sequence into another"):
        check_packing(model)
