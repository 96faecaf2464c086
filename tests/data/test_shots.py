"""Solved examples before a prompt: how they read, which they are, and what happens where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.config import DataSettings, load_config
from proxlm.data.prompts import LoadedPrompts, load_prompts
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import BadRecordError, ConfigError, DataError
from small_models import TEXTS

Write = Callable[..., str]
SUMS = [{"prompt": f"{a} + {b} =", "response": str(a + b)} for a in range(6) for b in range(6)]
PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def load(
    tokenizer: Any, which: Any = "train", limit: int = 10_000, seed: int = 0, **data: Any
) -> LoadedPrompts:
    return load_prompts(DataSettings(**{"eval_count": 0} | data), tokenizer, limit, which, seed)


@pytest.fixture
def sums(write: Write) -> str:
    return write("sums.jsonl", SUMS)


def shown(text: str) -> list[str]:
    """The prompts of the examples in a text, and the prompt itself."""
    return [part.partition("=")[0] + "=" for part in text.split("\n\n")]


def test_an_example_reads_as_prompt_separator_answer(write: Write, tokenizer: Any) -> None:
    examples = write("e.jsonl", [{"q": "Who?", "a": "Me."}, {"q": "Why?\n", "a": "So."}])
    asked = write("p.jsonl", [{"q": "Where?"}])
    common: dict[str, Any] = {
        "prompts": asked,
        "examples": examples,
        "shots": 2,
        "shots_from": "first",
        "response_field": "a",
    }
    (prompt,) = load(tokenizer, prompt_field="q", **common).prompts
    assert prompt.text == "Who? Me.\n\nWhy?\nSo.\n\nWhere?"
    assert prompt.input_ids == tuple(encode_prompt(tokenizer, prompt.text))
    assert prompt.fields == {"q": "Where?"}
    (prompt,) = load(
        tokenizer, template="Q: {q}\nA:", answer_separator="→", example_separator="|", **common
    ).prompts
    assert prompt.text == "Q: Who?\nA:→Me.|Q: Why?\n\nA:→So.|Q: Where?\nA:"
    assert load(tokenizer, template="{q}!", prompts=asked).prompts[0].text == "Where?!"


def test_a_template_names_fields_that_exist_and_runs_nothing(write: Write, tokenizer: Any) -> None:
    asked = write("p.jsonl", [{"q": {"text": "Where?", "n": 3}, "list": []}])
    assert load(tokenizer, template="{q.n}) {q.text}", prompts=asked).prompts[0].text == "3) Where?"
    lines = write("lines.txt", "one\ntwo\n")
    assert [p.text for p in load(tokenizer, template="[{text}]", prompts=lines).prompts] == ["[one]", "[two]"]
    for template, wanted in (
        ("{r}", "data.template"),
        ("{q.text.__class__}", "no field"),
        ("{list}", "a text"),
    ):
        with pytest.raises(BadRecordError, match=wanted):
            load(tokenizer, template=template, prompts=asked)


@pytest.mark.parametrize("shots_from", ["drawn", "first"])
@pytest.mark.parametrize("copies", [1, 3])
def test_no_prompt_has_itself_among_its_examples(
    write: Write, tokenizer: Any, shots_from: str, copies: int
) -> None:
    path = write("twice.jsonl", SUMS * copies)
    for prompt in load(tokenizer, prompts=path, examples=path, shots=5, shots_from=shots_from).prompts:
        *examples, own = shown(prompt.text)
        assert own == prompt.fields["prompt"]
        assert len(examples) == 5
        assert own not in examples
        assert all(
            f"{r['prompt']} {r['response']}\n" in f"{prompt.text}\n" for r in SUMS if r["prompt"] in examples
        )


@pytest.mark.parametrize("held_out", ["set aside", "another file"])
def test_a_held_out_prompt_is_no_example_of_training(
    write: Write, tokenizer: Any, sums: str, held_out: str
) -> None:
    data: dict[str, Any] = {"prompts": sums, "examples": sums, "shots": 3, "eval_count": 12}
    if held_out == "another file":
        data["eval_prompts"] = write("held.jsonl", SUMS[::3])
    hidden = {p.fields["prompt"] for p in load(tokenizer, "eval", **data).prompts}
    assert len(hidden) == 12
    training = load(tokenizer, **data).prompts
    assert len(training) == 24
    assert all(not hidden & set(shown(prompt.text)) for prompt in training)


def test_examples_follow_the_seed_and_the_prompt(tokenizer: Any, sums: str) -> None:
    def texts(**more: Any) -> list[str]:
        return [p.text for p in load(tokenizer, prompts=sums, examples=sums, shots=3, **more).prompts]

    drawn = texts()
    assert drawn == texts()
    assert sum(a != b for a, b in zip(drawn, texts(seed=1), strict=True)) > 30
    assert len({tuple(shown(text)[:-1]) for text in drawn}) > 30
    assert (
        len({tuple(shown(text)[:-1]) for text in texts(shots_from="first")}) == 4
    )  # the first three, or one more


def test_in_chat_examples_are_turns_behind_the_system_message(
    write: Write, tokenizer: Any, tmp_path: Path
) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text(PLAIN)
    examples = write("e.jsonl", [*SUMS[:1], {"messages": talk("hi", "yes?", "1 + 1", "2")}])
    prompts = write("p.jsonl", [{"prompt": "5 + 5 ="}, {"prompt": talk("hi", "yes?", "1 + 1")}])
    common: dict[str, Any] = {
        "chat_template": str(template),
        "prompts": prompts,
        "examples": examples,
        "shots_from": "first",
    }
    first, *_ = load(tokenizer, chat=True, system="Add.", shots=1, **common).prompts
    wanted = "<system>Add.\n<user>0 + 0 =\n<assistant>0\n<user>5 + 5 =\n<assistant>"
    assert first.text == wanted
    assert [m["role"] for m in first.messages] == ["system", "user", "assistant", "user"]
    with pytest.raises(DataError, match="1 examples that are not the prompt"):
        load(tokenizer, chat=True, shots=2, **common)
    with pytest.raises(BadRecordError, match=r"set data.chat"):
        load(tokenizer, shots=1, **common)


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def test_a_prompt_that_is_too_long_names_the_numbers_or_gets_fewer(
    tokenizer: Any, sums: str, caplog: Any
) -> None:
    one = load(tokenizer, prompts=sums, examples=sums, shots=1).prompts
    limit = max(len(p.input_ids) for p in one)
    data: dict[str, Any] = {"prompts": sums, "examples": sums, "shots": 4}
    with pytest.raises(DataError, match=rf"tokens with 4 examples, the limit is {limit}; .*fewer_shots"):
        load(tokenizer, limit=limit, **data)
    found = load(tokenizer, limit=limit, on_long_prompt="fewer_shots", **data)
    assert found.fewer_shots == len(found.prompts) == 36
    assert {len(shown(p.text)) for p in found.prompts} == {2}
    assert "36 of 36 prompts have fewer than 4 examples" in caplog.text
    with pytest.raises(DataError, match=r"the prompt has .* tokens, the limit is 2"):
        load(tokenizer, limit=2, on_long_prompt="fewer_shots", **data)


def test_too_few_examples_and_examples_that_are_none(write: Write, tokenizer: Any, sums: str) -> None:
    few = write("few.jsonl", SUMS[:3])
    with pytest.raises(DataError, match=r"data.shots = 3: .*few.jsonl has 2 examples"):
        load(tokenizer, prompts=sums, examples=few, shots=3)
    with pytest.raises(BadRecordError, match='no field "response"'):
        load(tokenizer, prompts=sums, examples=write("bare.jsonl", [{"prompt": "x"}]), shots=1)
    with pytest.raises(DataError, match="each one solves a held-out prompt"):
        load(tokenizer, prompts=sums, eval_prompts=few, eval_count=3, examples=few, shots=1)


def test_settings_without_examples_or_with_an_environment_are_refused() -> None:
    def settings(*arguments: str) -> Any:
        return load_config("ppo", arguments=["--model.policy", "m", "--data.prompts", "p", *arguments])

    for arguments, wanted in (
        (("--data.shots", "2"), "data.shots"),
        (("--data.examples", "e"), "data.examples"),
        (("--data.example-separator", "x"), "data.example_separator"),
        (
            ("--data.examples", "e", "--data.shots", "2", "--environment.use", "number_game"),
            "environment.use",
        ),
    ):
        with pytest.raises(ConfigError, match=wanted):
            settings(*arguments)
    assert settings("--data.examples", "e", "--data.shots", "2").data.shots == 2


def test_generation_and_evaluation_read_the_same_few_shot_prompts(sums: str) -> None:
    model = proxlm.new_model(TEXTS, proxlm.NewModelSettings(hidden=8, heads=2, layers=1, context=256))
    data = DataSettings(examples=sums, shots=2)
    rollout = proxlm.RolloutSettings(max_new_tokens=4)
    asked: Sequence[Any] = [SUMS[7], SUMS[20]]
    written = [c.prompt for c in proxlm.generate(model, asked, rollout, data=data)]
    config = proxlm.EvaluateConfig(data=data, rollout=rollout, greedy=False)
    (evaluation,) = proxlm.evaluate([model], asked, config=config)
    assert [row["read"] for row in evaluation.responses] == written
    assert [row["prompt"] for row in evaluation.responses] == [row["prompt"] for row in asked]
    assert [shown(text)[-1] for text in written] == [row["prompt"] for row in asked]
    assert all(len(shown(text)) == 3 for text in written)
    assert json.dumps(written) != json.dumps([row["prompt"] for row in asked])


def test_one_prompt_on_the_command_line_is_a_record_too(sums: str, tmp_path: Path, capsys: Any) -> None:
    model = proxlm.new_model(TEXTS, proxlm.NewModelSettings(hidden=8, heads=2, layers=1, context=256))
    proxlm.save(model, tmp_path / "model")
    data = DataSettings(examples=sums, shots=2, template="<{prompt}>")
    rollout = proxlm.RolloutSettings(max_new_tokens=4)
    (wanted,) = proxlm.generate(model, ["9 + 9 ="], rollout, data=data)
    assert wanted.prompt.endswith("\n\n<9 + 9 =>")
    settings = ["--model.policy", str(tmp_path / "model"), "--rollout.max-new-tokens", "4"]
    settings += ["--data.examples", sums, "--data.shots", "2", "--data.template", "<{prompt}>"]
    assert main(["generate", *settings, "--prompt", "9 + 9 ="]) == 0
    assert capsys.readouterr().out == wanted.text + "\n"
