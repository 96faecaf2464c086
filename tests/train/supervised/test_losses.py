"""Losses by name in training: their values and gradients are those of the plain formula on the model's own logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from proxlm.config import LossSettings
from proxlm.data.supervised import SFTExample
from proxlm.models import forward
from proxlm.train.supervised.criteria import Classes
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.objective import LanguageModelObjective
from small_models import TEXTS, tiny_model


def _examples(tokenizer):
    rows = []
    for text in TEXTS:
        ids = tuple(tokenizer(text)["input_ids"])
        rows.append(SFTExample(ids[:3], ids[3:], tuple(i % 4 != 1 for i in range(len(ids) - 3))))
    return Examples.from_rows(rows)


def _plain(model, examples, settings):
    """The loss and the gradient by the formula, row by row on transformers' logits."""
    total, count = 0.0, 0
    for row in range(len(examples)):
        sequence, mask = examples.batch([row])
        logits = model.network(input_ids=sequence.tokens[None]).logits[0]
        first = int(sequence.prompt_lengths[0])
        logits, tokens = logits[first - 1 : -1], sequence.tokens[first:]
        if settings.kind == "label-smoothing":
            losses = cross_entropy(logits, tokens, reduction="none", label_smoothing=settings.smoothing)
        else:
            logprobs = log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
            losses = -((1 - logprobs.exp()) ** settings.gamma) * logprobs
        total, count = total + losses[mask].sum(), count + int(mask.sum())
    (total / count).backward()
    return float(total.detach() / count)


@pytest.mark.parametrize("kind", ["label-smoothing", "focal"])
@pytest.mark.parametrize("type", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [24, 4096])
def test_loss_and_gradient_are_those_of_the_formula(tokenizer, kind, type, budget, monkeypatch):
    monkeypatch.setattr(forward, "LOGIT_BUDGET", 2000)  # three tokens' logits at a time
    settings = LossSettings(kind=kind, smoothing=0.15, gamma=1.5)
    examples = _examples(tokenizer)
    model, plain = (tiny_model(tokenizer, type) for _ in range(2))
    objective = LanguageModelObjective(model, examples, examples, settings)
    loss, tokens = objective.gradient(range(len(examples)), budget)
    assert loss == pytest.approx(_plain(plain, examples, settings), abs=2e-6)
    assert tokens == int(examples.lengths.sum())
    for (name, p), (_, q) in zip(model.trainable(), plain.trainable(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=2e-5), name
    with torch.no_grad():
        cross = _plain_validation(plain, examples)
    assert objective.validate(budget)["validation_loss"] == pytest.approx(cross, abs=2e-6)


def _plain_validation(model, examples):
    total, count = 0.0, 0
    for row in range(len(examples)):
        sequence, mask = examples.batch([row])
        first = int(sequence.prompt_lengths[0])
        logits = model.network(input_ids=sequence.tokens[None]).logits[0, first - 1 : -1]
        losses = cross_entropy(logits, sequence.tokens[first:], reduction="none")
        total, count = total + float(losses[mask].sum()), count + int(mask.sum())
    return total / count


def test_classes_learn_the_same_losses_and_report_cross_entropy():
    outputs = torch.tensor([[[2.0, -1.0, 0.5]], [[0.0, 0.0, 3.0]]])
    targets, classes = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    plain = cross_entropy(outputs[:, 0], classes, reduction="none")
    smoothed = Classes(list("abc"), LossSettings(kind="label-smoothing", smoothing=0.2))
    wanted = cross_entropy(outputs[:, 0], classes, reduction="none", label_smoothing=0.2)
    assert smoothed.training_losses(outputs, targets).tolist() == pytest.approx(wanted.tolist())
    focal = Classes(list("abc"), LossSettings(kind="focal", gamma=2.0))
    weights = (1 - (-plain).exp()) ** 2
    assert focal.training_losses(outputs, targets).tolist() == pytest.approx((weights * plain).tolist())
    for criterion in (smoothed, focal, Classes(list("abc"))):
        assert criterion.losses(outputs, targets).tolist() == pytest.approx(plain.tolist())
