"""The gradient of a distillation against a plain one in transformers and autograd, and what it allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from wide_tensors import WideTensors

from proxlm.config import DistillSettings
from proxlm.data.supervised import SFTExample
from proxlm.engine.agreement import check_engine
from proxlm.models import forward
from proxlm.models.language_model import LanguageModel
from proxlm.train.supervised.distill_objective import DistillObjective
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.teacher_reading import KeptReading, Teacher
from small_models import tiny_model

# Of different lengths, so that there is padding; in the second row two tokens of the response do not count.
ROWS = [
    SFTExample((5, 9, 12), (7, 30, 41, 8, 1), (True,) * 5),
    SFTExample((5, 6), (20, 21, 22, 23, 24, 25, 26, 1), (True, False, False, True, True, True, True, True)),
    SFTExample((9, 9, 9, 9, 9, 9), (3, 1), (True, True)),
]


def objective(tokenizer: Any, kept: bool = False, **settings: Any) -> DistillObjective:
    student, teacher_model = tiny_model(tokenizer, seed=1), tiny_model(tokenizer, seed=2)
    made = DistillSettings(**settings)
    vocabulary = len(student.network.get_output_embeddings().weight)
    teacher = Teacher(teacher_model, vocabulary, made.temperature, made.top_k)
    examples = Examples.from_rows(ROWS)
    reading = KeptReading(teacher, examples, 12) if kept else None
    return DistillObjective(student, teacher, examples, examples, made, 6, 0, (reading, None))


def gradients(model: LanguageModel) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for _, p in model.trainable()]


def by_hand(made: DistillObjective) -> tuple[float, list[torch.Tensor]]:
    """A row at a time through transformers' own forward, with whole logits, and autograd for the rest."""
    student, teacher, s = made.model.network, made.teacher.model.network, made.settings
    total, loss = sum(sum(row.loss_mask) for row in ROWS), torch.zeros(())
    for row in ROWS:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        places = slice(len(row.prompt_ids) - 1, -1)
        counted = torch.tensor(row.loss_mask)
        z = student(ids).logits[0, places][counted]
        with torch.no_grad():
            p = (teacher(ids).logits[0, places][counted] / s.temperature).softmax(-1)
        q = (z / s.temperature).softmax(-1)
        if s.top_k:
            chosen = p.topk(s.top_k).indices
            p, q = (
                torch.cat([x.gather(1, chosen), 1 - x.gather(1, chosen).sum(1, keepdim=True)], 1)
                for x in (p, q)
            )
        m = s.beta * p + (1 - s.beta) * q
        divergence = {
            "forward_kl": (p * (p / q).log()).sum(-1),
            "reverse_kl": (q * (q / p).log()).sum(-1),
            "jsd": s.beta * (p * (p / m).log()).sum(-1) + (1 - s.beta) * (q * (q / m).log()).sum(-1),
        }[s.divergence]
        tokens = torch.tensor(row.response_ids)[counted]
        plain = torch.nn.functional.cross_entropy(z, tokens, reduction="none")
        losses = (1 - s.cross_entropy) * s.temperature**2 * divergence + s.cross_entropy * plain
        loss = loss + losses.sum() / total
    loss.backward()
    return float(loss.detach()), [p.grad for _, p in made.model.trainable()]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"divergence": "forward_kl"},
        {"divergence": "reverse_kl", "temperature": 2.0},
        {"divergence": "jsd", "beta": 0.3, "cross_entropy": 0.4},
        {"divergence": "forward_kl", "top_k": 4, "temperature": 1.5, "cross_entropy": 0.2},
        {"divergence": "reverse_kl", "top_k": 4},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_gradient_is_that_of_whole_logits(tokenizer, settings, kept):
    made, plain = objective(tokenizer, kept, **settings), objective(tokenizer, **settings)
    loss, tokens = made.gradient([0, 1, 2], 12)
    expected, of_weights = by_hand(plain)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert tokens == 26
    for found, wanted in zip(gradients(made.model), of_weights, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-6)


def test_no_tensor_holds_the_logits_of_all_tokens(tokenizer, monkeypatch):
    """At most four tokens' logits, of teacher and student, training and validation; there are 13 that count."""
    width, hidden = tiny_model(tokenizer).network.get_output_embeddings().weight.shape
    monkeypatch.setattr(forward, "LOGIT_BUDGET", 8 * width)
    for mode, kept in (("logits", False), ("logits", True), ("on_policy", False)):
        made = objective(tokenizer, kept, mode=mode, eval_samples=3)
        check_engine(made.model)  # whose few rows are compared whole
        with WideTensors(width, hidden) as watched:
            made.gradient([0, 1, 2], 4096)
            made.validate(4096)
        assert watched.seen > 20
        assert watched.rows <= 4, mode


def test_a_step_samples_once_and_another_step_otherwise(tokenizer):
    made = objective(tokenizer, mode="on_policy", student_share=1.0)
    losses = []
    for step in (4, 4, 5):  # the second time as after running out of memory
        made.begin_step(step)
        losses.append(made.gradient([0, 1, 2], 4096))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
