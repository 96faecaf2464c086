"""Samples of supervised runs: what the model makes of held-out examples."""

import pytest
import torch
from helpers import SilentLog

from proxlm.config import RunSettings, SFTConfig, SupervisedSettings
from proxlm.data.supervised import SFTExample, pretrain_blocks
from proxlm.train.supervised.continuations import LONGEST, continuations
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.loop import SupervisedLoop
from proxlm.train.supervised.objective import LanguageModelObjective
from small_models import TEXTS, tiny_model


def pairs(tokenizer, count=4):
    def example(i):
        text = TEXTS[i % 4]
        prompt = tokenizer(text[:12]).input_ids
        response = tokenizer(text[12:], add_special_tokens=False).input_ids
        return SFTExample(tuple(prompt), tuple(response), (True,) * len(response))

    return Examples.from_rows(example(i) for i in range(count))


def test_they_are_the_greedy_responses_beside_those_of_the_data(tokenizer):
    model, examples = tiny_model(tokenizer), pairs(tokenizer)
    rows = continuations(model, examples, 3)
    assert [row["prompt_id"] for row in rows] == [0, 1, 2]
    for row, text in zip(rows, TEXTS, strict=False):
        assert (row["prompt"], row["expected"]) == ("<|bos|>" + text[:12], text[12:])
        ids = torch.tensor([tokenizer(text[:12]).input_ids])
        greedy = model.network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST
        )[0, ids.shape[1] :]
        assert row["response"] == tokenizer.decode(greedy, skip_special_tokens=True)


def test_plain_text_is_continued_from_the_first_half_of_a_row(tokenizer):
    examples = Examples.from_blocks(pretrain_blocks(tokenizer, TEXTS * 4, 32))
    row, *_ = continuations(tiny_model(tokenizer), examples, 1)
    block = examples.tokens[:32].tolist()
    assert (row["prompt"], row["expected"]) == (tokenizer.decode(block[:16]), tokenizer.decode(block[16:]))


def test_an_example_without_room_for_a_response_is_left_out(tokenizer):
    rows = [SFTExample((20,) * length, (21,), (True,)) for length in (120, 127, 5)]
    found = continuations(tiny_model(tokenizer), Examples.from_rows(rows), 3)  # context: 128
    assert [row["prompt_id"] for row in found] == [0, 2]
    assert continuations(tiny_model(tokenizer), Examples.from_rows(rows[1:2]), 1) == []


@pytest.mark.parametrize("type", ["llama", "t5", "lstm"])
def test_a_run_learns_the_same_with_and_without_them(tokenizer, tmp_path, type):
    def weights(count):
        model, examples = tiny_model(tokenizer, type), pairs(tokenizer)
        settings = SupervisedSettings(steps=4, batch_tokens=64, validate_every=2)
        run = RunSettings(seed=0, save_every=0, log_samples=count)
        made = SupervisedLoop(
            LanguageModelObjective(model, examples, examples),
            SFTConfig(train=settings, run=run),
            tmp_path / f"{type}-{count}",
        )
        torch.manual_seed(7)
        made.train(SilentLog())
        return {name: p.detach().clone() for name, p in made.weights().items()}

    with_samples, without = weights(4), weights(0)
    assert all(torch.equal(p, without[name]) for name, p in with_samples.items())
