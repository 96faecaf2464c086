from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.config import DataSettings
from proxlm.data.prompts import LoadedPrompts, PromptStream, load_prompts
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import ConfigError, DataError
from proxlm.types import Prompt
from story_model import ARITHMETIC, SHARED_DATA, beside_the_checkout

Write = Callable[..., str]


def load(
    tokenizer: Any, which: Any = "train", limit: int = 100, seed: int = 0, **fields: Any
) -> LoadedPrompts:
    return load_prompts(DataSettings(**{"eval_count": 0} | fields), tokenizer, limit, which, seed)


def test_plain_prompts_keep_row_ids_tokens_and_fields(write: Write, tokenizer: Any) -> None:
    path = write("p.jsonl", [{"q": "2 + 3?", "answer": 5}, {"q": " 1?\n", "answer": 1}])
    first, second = load(tokenizer, prompts=path, prompt_field="q").prompts
    assert (first.id, first.text, first.fields["answer"]) == (0, "2 + 3?", 5)
    assert (second.id, second.text, second.fields["answer"]) == (1, " 1?\n", 1)
    assert first.input_ids == tuple(encode_prompt(tokenizer, "2 + 3?"))
    assert first.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(second.input_ids[1:]) == " 1?\n"


@pytest.mark.parametrize("name", ["p.txt", "p.TXT"])
def test_lines_of_a_text_file_are_the_prompts(write: Write, tokenizer: Any, name: str) -> None:
    prompts = load(tokenizer, prompts=write(name, "one\n\ntwo \n")).prompts
    assert [(p.id, p.text) for p in prompts] == [(0, "one"), (1, "two ")]


def test_held_out_prompts_are_drawn_by_seed_and_never_trained_on(write: Write, tokenizer: Any) -> None:
    path = write("p.txt", "".join(f"prompt {i}\n" for i in range(40)))
    drawn = set()
    for seed in range(5):
        train = load(tokenizer, "train", seed=seed, prompts=path, eval_count=7).prompts
        held = load(tokenizer, "eval", seed=seed, prompts=path, eval_count=7).prompts
        assert len(held) == 7
        assert sorted(p.id for p in train + held) == list(range(40))
        assert all(p.text == f"prompt {p.id}" for p in train + held)
        assert held == load(tokenizer, "eval", seed=seed, prompts=path, eval_count=7).prompts
        drawn.add(tuple(p.id for p in held))
    assert len(drawn) == 5


def test_a_prompt_that_stands_twice_is_never_in_both(write: Write, tokenizer: Any) -> None:
    path = write("p.txt", "".join(f"prompt {i % 10}\n" for i in range(30)))
    train = load(tokenizer, "train", prompts=path, eval_count=4)
    held = load(tokenizer, "eval", prompts=path, eval_count=4)
    assert (len(train.prompts), train.repeated) == (18, 8)
    assert (len(held.prompts), held.repeated) == (4, 0)
    assert all(p.id < 10 for p in held.prompts)  # the first row of each
    assert not {p.text for p in train.prompts} & {p.text for p in held.prompts}
    with pytest.raises(DataError, match=r"10 different prompts, but data\.eval_count = 10"):
        load(tokenizer, "train", prompts=path, eval_count=10)


def test_a_held_out_file_leaves_the_other_whole(write: Write, tokenizer: Any) -> None:
    path, other = write("p.txt", "a\nb\nc\n"), write("e.txt", "d\ne\nf\ng\n")
    train = load(tokenizer, "train", prompts=path, eval_prompts=other, eval_count=3)
    held = load(tokenizer, "eval", prompts=path, eval_prompts=other, eval_count=3)
    assert [p.text for p in train.prompts] == ["a", "b", "c"]
    assert (len(held.prompts), held.unused) == (3, 1)
    assert all(p.text == "defg"[p.id] for p in held.prompts)
    every = load(tokenizer, "eval", eval_prompts=other, eval_count=64)
    assert [p.id for p in every.prompts] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"data\.prompts: required"):
        load(tokenizer, "train", eval_prompts=other)


def test_prompts_of_a_held_out_file_are_never_trained_on(write: Write, tokenizer: Any) -> None:
    path, other = write("p.txt", "a\nb\nc\nb\n"), write("e.jsonl", [{"prompt": "x"}, {"prompt": "b"}])
    train = load(tokenizer, "train", prompts=path, eval_prompts=other, eval_count=1)
    assert [(p.id, p.text) for p in train.prompts] == [(0, "a"), (2, "c")]
    assert train.repeated == 2
    with pytest.raises(DataError, match=r"every prompt is also in data\.eval_prompts = .*p\.txt"):
        load(tokenizer, "train", prompts=path, eval_prompts=path)


def test_long_prompts_fail_or_are_left_out_and_counted(write: Write, tokenizer: Any) -> None:
    rows = [{"prompt": "z" * n} for n in (4, 9, 5, 20)]  # n tokens and BOS
    path = write("p.jsonl", rows)
    with pytest.raises(DataError, match=r"p\.jsonl:2: the prompt has 10 tokens, the limit is 9;"):
        load(tokenizer, limit=9, prompts=path)
    loaded = load(tokenizer, limit=9, prompts=path, on_long_prompt="skip")
    assert ([p.id for p in loaded.prompts], loaded.skipped) == ([0, 2], 2)
    assert load(tokenizer, limit=10, prompts=path, on_long_prompt="skip").skipped == 1
    with pytest.raises(DataError, match="every prompt has more than 4 tokens"):
        load(tokenizer, limit=4, prompts=path, on_long_prompt="skip")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"promt": "x"},
            r'2: no field "prompt"; did you mean promt\? fields here: promt \(set data\.prompt_field\)',
        ),
        ({"xyz": "x", "b": 1}, r'2: no field "prompt"; fields here: xyz, b '),
        ({"prompt": " \n"}, '2: field "prompt": the prompt is empty'),
        ({"prompt": None, "a": 1}, r'no field "prompt"; fields here: a '),
        ({"prompt": 3}, "must be a text or a list of messages, not int"),
        ({"prompt": []}, "must be a list of messages, each with role and content"),
        ({"prompt": ["x"]}, 'message 1 is not an object with "role" and "content"'),
        ({"prompt": [{"role": "user"}]}, 'message 1 needs a text "content"'),
        ({"prompt": [{"role": "user", "content": "a"}, {"content": "b"}]}, 'message 2 needs a text "role"'),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "the last message is the assistant's",
        ),
    ],
)
def test_bad_prompts_name_file_line_and_field(write: Write, tokenizer: Any, row: Any, said: str) -> None:
    path = write("p.jsonl", [{"prompt": "good"}, row])
    with pytest.raises(DataError, match=said) as caught:
        load(tokenizer, prompts=path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_chat_wraps_texts_and_renders_messages(write: Write, chatml: Any, llama3: Any) -> None:
    talk = [{"role": m, "content": c} for m, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "d"}]
    path = write("p.jsonl", [{"prompt": "hi"}, {"prompt": talk}, {"prompt": own}])
    texts = [p.text for p in load(chatml, prompts=path, chat=True, system="S").prompts]
    system, ask = "<|im_start|>system\nS<|im_end|>\n", "<|im_start|>assistant\n"
    assert texts == [
        f"{system}<|im_start|>user\nhi<|im_end|>\n{ask}",
        f"{system}<|im_start|>user\na<|im_end|>\n{ask}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n{ask}",
        f"<|im_start|>system\nown<|im_end|>\n<|im_start|>user\nd<|im_end|>\n{ask}",
    ]
    plain = load(chatml, prompts=path).prompts
    assert plain[0].input_ids == tuple(encode_prompt(chatml, "hi"))  # only chat = true wraps texts
    assert plain[1].text == texts[1].removeprefix(system)
    (prompt, *_) = load(llama3, prompts=path, chat=True).prompts
    assert prompt.input_ids.count(llama3.bos_token_id) == 1  # the template's, and no other
    assert llama3.decode(prompt.input_ids) == prompt.text
    assert prompt.text.endswith("hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_template_file(write: Write, tokenizer: Any, chatml: Any) -> None:
    path = write("p.txt", "hi\n")
    with pytest.raises(DataError, match=r'p\.txt:1: field "text": the tokenizer has no chat template'):
        load(tokenizer, prompts=path, chat=True)
    template = write("t.jinja", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[me]")
    for which in (tokenizer, chatml):  # a file that was named goes before the tokenizer's own
        loaded = load(which, prompts=path, chat=True, chat_template=template)
        assert loaded.prompts[0].text == "[user] hi\n[me]"
        assert loaded.prompts[0].fields == {"text": "hi"}
    for text, said in [
        ("{% for m in", "the chat template refuses these messages"),
        ("{{ raise_exception('no users') }}", "refuses these messages: no users"),
        ("{{ '' }}", "the prompt has no tokens"),
        (" \n", "the chat template is empty"),
    ]:
        with pytest.raises(DataError, match=said):
            load(tokenizer, prompts=path, chat=True, chat_template=write("bad.jinja", text))


def test_system_without_chat_is_not_dropped_in_silence(write: Write, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.system: needs data\.chat = true"):
        load(tokenizer, prompts=write("p.txt", "hi\n"), system="S")


@pytest.mark.parametrize(
    "file", [ARITHMETIC, *beside_the_checkout(SHARED_DATA / "gsm8k" / "test.jsonl")], ids=str
)
def test_word_problems(file: Path, stories: Any, write: Write) -> None:
    template = write("t.jinja", "{% for m in messages %}{{ m.content }}\n{% endfor %}Answer:")
    settings = {"prompt_field": "question", "chat": True, "chat_template": template, "on_long_prompt": "skip"}
    loaded = load(stories, "eval", limit=256, eval_prompts=str(file), eval_count=50, **settings)
    assert len(loaded.prompts) + loaded.skipped == 50
    assert loaded.unused == len(file.read_text(encoding="utf-8").splitlines()) - 50
    assert len(loaded.prompts) > 25
    assert all(len(p.input_ids) <= 256 and p.text.endswith("\nAnswer:") for p in loaded.prompts)
    assert all("#### " in p.fields["answer"] for p in loaded.prompts)


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(i, (i,), str(i)) for i in range(count)]


@given(st.integers(1, 30), st.integers(1, 17), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(size: int, batch_size: int, seed: int) -> None:
    stream = PromptStream(prompts_of(size), batch_size, seed)
    steps = -(-3 * size // batch_size)
    dealt = [p.id for step in range(steps) for p in stream.batch(step)]
    assert len(dealt) == steps * batch_size
    for epoch in range(3):
        assert sorted(dealt[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_batch_is_a_function_of_seed_and_step_alone(steps: list[int]) -> None:
    one, other = PromptStream(prompts_of(11), 4, 3), PromptStream(prompts_of(11), 4, 3)
    forwards = {step: one.batch(step) for step in steps}
    assert {step: other.batch(step) for step in reversed(steps)} == forwards
    assert all(len(batch) == 4 for batch in forwards.values())


def test_orders_differ_by_epoch_and_seed_and_reach_every_place() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(p.id for p in PromptStream(prompts_of(20), 20, seed).batch(epoch))

    assert len({order(seed, epoch) for seed in range(10) for epoch in range(10)}) == 100
    firsts = Counter(order(7, epoch)[0] for epoch in range(400))
    assert len(firsts) == 20  # each of 20 comes first 20 ± 4.4 times
    assert max(firsts.values()) < 45


def test_a_stream_needs_prompts() -> None:
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], 4, 0)


def test_variables_of_the_chat_template_from_settings_and_record(write: Write, chatml: Any) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if tools %}{{ tools[0].function.name }} {% endif %}{{ style | default('none') }} {{ n | default(0) }}"
    )
    tools = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}]
    rows = [
        {"prompt": "a"},
        {"prompt": "b", "chat_template_kwargs": {"style": "long"}, "tools": tools},
        {"prompt": "c", "chat_template_kwargs": None},
    ]
    settings = DataSettings(
        prompts=write("p.jsonl", rows),
        chat=True,
        chat_template=write("t.jinja", template),
        chat_template_kwargs={"style": "short", "n": 2},
        eval_count=0,
    )
    loaded = load_prompts(settings, chatml, 100, "train", 0).prompts
    assert [p.text for p in loaded] == ["user: a\nshort 2", "user: b\nlook long 2", "user: c\nshort 2"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (3, 'field "chat_template_kwargs" must be an object, not int'),
        ({"tokenize": True}, '"tokenize" is not a variable of a template'),
    ],
)
def test_wrong_variables_of_a_record(variables: Any, message: str, write: Write, chatml: Any) -> None:
    rows = [{"prompt": "a", "chat_template_kwargs": variables}]
    settings = DataSettings(prompts=write("p.jsonl", rows), chat=True, eval_count=0)
    with pytest.raises(DataError, match=message):
        load_prompts(settings, chatml, 100, "train", 0)
