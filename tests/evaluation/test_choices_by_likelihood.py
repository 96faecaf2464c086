"""Multiple choice: log-probs are transformers' own, whatever the batch and the order of the choices."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import proxlm
from proxlm.config import load_config
from proxlm.data.choices import Choices, Question, question_of
from proxlm.data.tokenizer import encode_prompt, encode_source, encode_target, train_tokenizer
from proxlm.engine.forced import forced_logprobs
from proxlm.errors import BadRecordError, DataError
from proxlm.evaluation.choices import choice_logprobs, evaluate_choices
from proxlm.evaluation.intervals import wilson_interval
from proxlm.models.language_model import LanguageModel
from proxlm.types import Prompt
from small_models import TEXTS, WORDS, tiny_model

TYPES = ["llama", "gpt2", "lstm", "gemma2", "t5", "bart"]
PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


def model_of(type: str) -> LanguageModel:
    seq2seq = type in ("t5", "bart")
    return tiny_model(train_tokenizer(TEXTS * 20, 320, 128, encoder_decoder=seq2seq), type)


def questions_for(model: LanguageModel, count: int = 8) -> list[Question]:
    draw = random.Random(0)
    made = []
    for i in range(count):
        text = f"{WORDS[i % len(WORDS)]} {i}:"
        texts = tuple(
            draw.sample(["a red ball", "moon", "the mat in the park", "处处", "x", "One day"], 2 + i % 4)
        )
        encode = encode_source if model.encoder_decoder else encode_prompt
        prompt = Prompt(i, tuple(encode(model.tokenizer, text)), text)
        choices = Choices(texts, i % len(texts))
        made.append(question_of(model.tokenizer, prompt, choices, " ", model.encoder_decoder))
    return made


def by_transformers(model: LanguageModel, text: str, choice: str) -> float:
    """log p(choice | text) by the network's own forward, one text at a time, in float64."""
    network = model.network
    if model.encoder_decoder:
        source = torch.tensor([encode_source(model.tokenizer, text)])
        target = torch.tensor([encode_target(model.tokenizer, choice)[:-1]])
        shifted = torch.cat([torch.tensor([[model.start_id]]), target[:, :-1]], 1)
        logits = network(input_ids=source, decoder_input_ids=shifted, use_cache=False).logits
    else:
        before = model.tokenizer(text)["input_ids"]
        whole = torch.tensor([model.tokenizer(f"{text} {choice}")["input_ids"]])
        assert whole[0, : len(before)].tolist() == before
        logits = network(input_ids=whole, use_cache=False).logits[:, len(before) - 1 : -1]
        target = whole[:, len(before) :]
    logprobs = logits.double().log_softmax(-1)
    return float(logprobs.gather(-1, target[..., None]).sum())


@pytest.mark.parametrize("type", TYPES)
def test_log_probs_are_those_of_transformers(type: str) -> None:
    model = model_of(type)
    questions = questions_for(model)
    found = choice_logprobs(model, questions, 4096)
    with torch.no_grad():
        wanted = [
            [by_transformers(model, q.prompt.text, text) for text in q.choices.texts] for q in questions
        ]
    differences = [abs(a - b) for f, w in zip(found, wanted, strict=True) for a, b in zip(f, w, strict=True)]
    assert max(differences) < 1e-5 * max(len(a) for q in questions for a in q.answers)
    assert sum(map(len, found)) == 28


@pytest.mark.parametrize("type", ["llama", "gemma2", "t5", "lstm"])
@pytest.mark.parametrize("budget", [1, 64, 300])
def test_neither_the_batch_nor_the_order_of_the_choices_matters(type: str, budget: int) -> None:
    model = model_of(type)
    questions = questions_for(model)
    together = choice_logprobs(model, questions, 10**6)
    alone = choice_logprobs(model, questions, budget)
    turned = [
        replace(
            q,
            answers=q.answers[::-1],
            choices=Choices(q.choices.texts[::-1], len(q.answers) - 1 - q.choices.right),
        )
        for q in questions[::-1]
    ]
    backwards = choice_logprobs(model, turned, 10**6)
    for first, second, third in zip(together, alone, backwards[::-1], strict=True):
        assert first == pytest.approx(second, abs=1e-5)
        assert first == pytest.approx(third[::-1], abs=1e-5)
    one, other = evaluate_choices("m", model, questions), evaluate_choices("m", model, turned)
    for name, estimate in one.metrics.items():
        assert estimate.mean == pytest.approx(other.metrics[name].mean, abs=1e-5), name


@pytest.mark.parametrize("type", ["llama", "gemma2", "t5", "lstm"])
def test_a_shared_prompt_is_read_once(type: str) -> None:
    model = model_of(type)
    reader = model.network.get_encoder() if model.encoder_decoder else model.network.get_input_embeddings()
    read: list[int] = []
    sees = lambda _m, args, kwargs: read.append((args[0] if args else kwargs["input_ids"]).numel())  # noqa: E731
    reader.register_forward_pre_hook(sees, with_kwargs=True)
    prompt, answers = list(range(5, 25)), [[5, 6], [7], [8, 9, 10]]
    forced_logprobs(model, [prompt] * 3, answers)
    # The last token of an answer is predicted and not read: 1 + 0 + 2 of the answers.
    assert sum(read) == 20 + (0 if model.encoder_decoder else 3)


class Table:
    """A question whose choices have given log-probs."""

    def __init__(self, monkeypatch: Any, scores: list[list[float]], rights: list[int]) -> None:
        monkeypatch.setattr("proxlm.evaluation.choices.choice_logprobs", lambda *_: scores)
        texts = ("a", "bb", "cccc")
        self.questions = [
            Question(Prompt(i, (1,), "p"), Choices(texts[: len(row)], right), (1,), ((2,),) * len(row))
            for i, (row, right) in enumerate(zip(scores, rights, strict=True))
        ]


def test_the_numbers_by_hand(monkeypatch: Any) -> None:
    scores = [[math.log(0.4), math.log(0.1)], [math.log(0.01), math.log(0.02), math.log(0.02)], [-3.0, -4.0]]
    table = Table(monkeypatch, scores, [0, 1, 1])
    model = tiny_model(train_tokenizer(TEXTS, 300, 64))
    found = evaluate_choices("m", model, table.questions)
    means = found.means()
    # Right; one of two that tie; wrong. By bytes: −0.9 > −1.15; the longest of the three; −2 > −3.
    assert means["choice/accuracy"] == pytest.approx(0.5)
    assert means["choice/accuracy_per_byte"] == pytest.approx(2 / 3)
    last = 1 / (1 + math.e)
    assert means["choice/probability"] == pytest.approx((0.8 + 0.4 + last) / 3)
    assert means["choice/mass"] == pytest.approx((0.5 + 0.05 + math.exp(-3) + math.exp(-4)) / 3)
    # Confidences 0.8, 0.4, 0.731 in three bins of ten: (|1 − 0.8| + |0.5 − 0.4| + |0 − 0.731|) / 3.
    assert means["choice/calibration_error"] == pytest.approx((0.2 + 0.1 + 1 - last) / 3)
    assert found.responses[0]["picked"] == "a"
    assert found.metrics["choice/accuracy_per_byte"] == wilson_interval(2, 3)


QUESTIONS = [
    {"prompt": f"{a} + {b} =", "choices": [str(a + b), str(a + b + 1), "one day"], "answer": (a * b) % 3}
    for a in range(3)
    for b in range(4)
]


def evaluated(models: Any, questions: Any, **more: Any) -> list[proxlm.Evaluation]:
    settings = {"choices.field": "choices", "data.eval_prompts": "unused", **more}
    return proxlm.evaluate(
        models, questions, config=load_config("evaluate", overrides={"model.policy": "m"} | settings)
    )


def test_models_with_other_tokenizers_and_solved_examples_in_chat(tmp_path: Path) -> None:
    file, template = tmp_path / "q.jsonl", tmp_path / "plain.jinja"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    template.write_text(PLAIN)
    models = [tiny_model(train_tokenizer(TEXTS * 20, size, 128)) for size in (300, 320)]
    for chat in (False, True):
        more = {"data.chat": chat, "data.chat_template": str(template)} if chat else {}
        shots = {"data.examples": str(file), "data.shots": 2}
        found = evaluated(models, QUESTIONS, **shots, **more)
        assert [e.prompts for e in found] == [12, 12]
        rows = found[0].responses
        assert [row["read"] for row in rows] == [row["read"] for row in found[1].responses]
        for row, record in zip(rows, QUESTIONS, strict=True):
            assert row["prompt"] == record["prompt"]
            others = [q for q in QUESTIONS if q["prompt"] in row["read"] and q is not record]
            assert len(others) == 2
            start = "<user>" if chat else ""
            first = next(q for q in others if row["read"].startswith(f"{start}{q['prompt']}"))
            text = row["read"].partition("=")
            solution = first["choices"][first["answer"]]  # type: ignore[index]
            assert text[2].startswith(f"\n<assistant>{solution}\n" if chat else f" {solution}\n\n")


def test_what_is_about_responses_is_said_to_do_nothing(capsys: Any) -> None:
    model = tiny_model(train_tokenizer(TEXTS * 20, 300, 128))
    evaluated([model], QUESTIONS)
    assert "not used" not in capsys.readouterr().err
    evaluated(
        [model],
        QUESTIONS,
        **{"reward.use": "length", "reward.args": {"target": 3}},
    )
    assert "no responses are sampled: reward: not used" in capsys.readouterr().err


def test_questions_that_cannot_be_used_are_named_or_skipped(tmp_path: Path) -> None:
    model = tiny_model(train_tokenizer(TEXTS * 20, 300, 128))
    bad = [*QUESTIONS[:2], {"prompt": "x", "choices": ["a", "b"], "answer": "c"}, QUESTIONS[3]]
    with pytest.raises(BadRecordError, match=r"prompts:3: .*no index, letter or text of the 2"):
        evaluated([model], bad)
    (found,) = evaluated([model], bad, **{"data.on_bad_record": "skip"})
    assert found.prompts == 3
    with pytest.raises(DataError, match=r"a choice of .* leaves no room for a prompt in the context of 128"):
        evaluated([model], [{"prompt": "x", "choices": ["long " * 200, "b"], "answer": 0}])
    with pytest.raises(DataError, match=r"the prompt has .* tokens, the limit is 1"):
        evaluated([model], [{"prompt": "long " * 200, "choices": ["a", "b"], "answer": 0}])
