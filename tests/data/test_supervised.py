from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.config import TextSettings
from proxlm.data.supervised import SFTExample, pretrain_blocks, record_texts, sft_examples
from proxlm.data.tokenizer import encode_prompt, train_tokenizer
from proxlm.errors import DataError
from story_model import ARITHMETIC, SHARED_DATA, beside_the_checkout

Write = Callable[..., str]


def test_blocks_by_hand(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in "zqk")
    assert len(a) == len(b) == len(c) == 1
    with caplog.at_level(logging.INFO):
        blocks = pretrain_blocks(tokenizer, ["zz", "q", "k"], 4)
    # BOS z z EOS | BOS q EOS BOS | k EOS
    assert blocks.tolist() == [[0, *a, *a, 1], [0, *b, 1, 0]]
    assert blocks.dtype == torch.int32
    assert "packed 10 tokens in blocks of 4; left out at the end: 2" in caplog.text


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_blocks_hold_every_document_in_order(tokenizer: Any, texts: list[str], block: int) -> None:
    # A special token that is spelled out in a text is only text.
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    stream = [i for t in texts for i in (0, *tokenizer(t, **plain)["input_ids"], 1)]
    if len(stream) < block:
        with pytest.raises(
            DataError, match=f"the text has {len(stream)} tokens, less than one block of {block}"
        ):
            pretrain_blocks(tokenizer, texts, block)
    else:
        blocks = pretrain_blocks(tokenizer, texts, block)
        assert blocks.shape == (len(stream) // block, block)
        assert blocks.flatten().tolist() == stream[: blocks.numel()]


def test_many_short_documents_cross_the_batches_of_the_tokenizer(tokenizer: Any) -> None:
    blocks = pretrain_blocks(tokenizer, ["z"] * 3000, 3)
    assert blocks.shape == (3000, 3)
    assert (blocks == blocks[0]).all()


def test_blocks_of_a_tokenizer_without_bos(tokenizer: Any) -> None:
    from proxlm.data.tokenizer import train_tokenizer

    bare = train_tokenizer(["ab"], 260, 64)
    bare.backend_tokenizer.post_processor = None
    assert bare("zz")["input_ids"] == bare("zz", add_special_tokens=False)["input_ids"]
    assert (pretrain_blocks(bare, ["z", "z"], 2)[:, 1] == 1).all()
    assert tokenizer.bos_token_id not in pretrain_blocks(bare, ["z", "z"], 2)


def examples(tokenizer: Any, path: str | list[str], limit: int = 1000, **fields: Any) -> list[SFTExample]:
    paths = [path] if isinstance(path, str) else path
    found = list(sft_examples(TextSettings(**fields), paths, tokenizer, limit))
    assert None not in found
    return found


def written(tokenizer: Any, example: SFTExample) -> list[str]:
    """The runs of tokens with loss, as text."""
    runs: list[list[int]] = [[]]
    for token, own in zip(example.response_ids, example.loss_mask, strict=True):
        if own:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_prompt_and_response_are_joined_as_given(write: Write, tokenizer: Any) -> None:
    path = write("s.jsonl", [{"prompt": "2 + 3 =", "response": " 5"}, {"prompt": "", "response": "x"}])
    first, second = examples(tokenizer, path)
    assert first.prompt_ids == tuple(encode_prompt(tokenizer, "2 + 3 ="))
    assert tokenizer.decode(first.prompt_ids + first.response_ids) == "<|bos|>2 + 3 = 5<|eos|>"
    assert first.response_ids[-1] == tokenizer.eos_token_id
    assert first.loss_mask == (True,) * len(first.response_ids)
    assert second.prompt_ids == (0,)
    assert examples(tokenizer, [path, path]) == [first, second] * 2
    spelled = write("e.jsonl", [{"prompt": "a", "response": "b<|eos|>"}])
    assert examples(tokenizer, spelled)[0].response_ids.count(1) == 1


CHAT = [
    ("system", "Be brief."),
    ("user", "2 + 2?"),
    ("assistant", "It is 4."),
    ("user", "And 3?"),
    ("assistant", "It is 5."),
]


def test_an_encoder_decoders_sides_are_texts_of_their_own(write: Write) -> None:
    tokenizer = train_tokenizer(["The cat. Le chat."], 265, 64, encoder_decoder=True)
    path = write("pairs.jsonl", [{"prompt": "The cat", "response": "Le chat"}])
    source, target = (tokenizer(text)["input_ids"] for text in ("The cat", "Le chat"))
    longest = max(len(source), len(target) + 1)
    (example,) = sft_examples(TextSettings(), [path], tokenizer, longest, encoder_decoder=True)
    assert example == SFTExample(tuple(source), tuple(target), (True,) * len(target))
    assert source[-1] == target[-1] == tokenizer.eos_token_id
    with pytest.raises(
        DataError, match=f"{longest} tokens in prompt or response, the limit is {longest - 1}"
    ):
        list(sft_examples(TextSettings(), [path], tokenizer, longest - 1, encoder_decoder=True))


def test_a_new_tokenizer_is_trained_on_prompts_responses_and_messages(write: Write) -> None:
    path = write(
        "rows.jsonl",
        [
            {"prompt": "a", "response": "b"},
            {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
        ],
    )
    assert list(record_texts(TextSettings(), [path])) == [("a", "b"), ("c", "d")]
    with pytest.raises(DataError, match=r'bad\.jsonl:1: no field "prompt"; fields here: other'):
        list(record_texts(TextSettings(), [write("bad.jsonl", [{"other": 1}])]))


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_conversation_in_chatml(write: Write, chatml: Any) -> None:
    (example,) = examples(chatml, write("c.jsonl", [{"messages": messages(CHAT)}]))
    assert chatml.decode(example.prompt_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatml.decode(example.response_ids) == (
        "It is 4.<|im_end|>\n<|im_start|>user\nAnd 3?<|im_end|>\n<|im_start|>assistant\nIt is 5.<|im_end|>"
    )
    assert written(chatml, example) == ["It is 4.<|im_end|>", "It is 5.<|im_end|>"]
    assert example.response_ids[-1] == chatml.eos_token_id


def test_conversation_in_llama3_form(write: Write, llama3: Any) -> None:
    turns = [*CHAT[:4], ("assistant", " It is 5.\n")]  # the template trims
    (example,) = examples(llama3, write("c.jsonl", [{"messages": messages(turns)}]))
    whole = llama3.apply_chat_template(messages(CHAT), tokenize=False)
    assert llama3.decode(example.prompt_ids + example.response_ids) == whole
    assert example.prompt_ids.count(llama3.bos_token_id) == 1
    assert example.prompt_ids[0] == llama3.bos_token_id
    assert written(llama3, example) == ["It is 4.<|eot_id|>", "It is 5.<|eot_id|>"]


def test_several_assistant_turns_running_and_words_after_the_last(write: Write, chatml: Any) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "thanks")]
    (example,) = examples(chatml, write("c.jsonl", [{"messages": messages(turns)}]))
    assert written(chatml, example) == ["b<|im_end|>", "c<|im_end|>"]
    assert "thanks" not in chatml.decode(example.response_ids)


def test_chat_setting_puts_prompt_and_response_through_the_template(write: Write, chatml: Any) -> None:
    pair = write("p.jsonl", [{"prompt": "2 + 2?", "response": "It is 4."}])
    talk = write("m.jsonl", [{"messages": messages(CHAT[1:3])}])
    assert examples(chatml, pair, chat=True) == examples(chatml, talk)
    assert examples(chatml, pair) != examples(chatml, talk)


def test_a_template_without_end_of_turn_gets_eos(write: Write, tokenizer: Any) -> None:
    template = write(
        "t.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    )
    path = write("c.jsonl", [{"messages": messages(CHAT)}])
    (example,) = examples(tokenizer, path, chat_template=template)
    assert written(tokenizer, example) == [" It is 4.\n", " It is 5.\n<|eos|>"]
    assert tokenizer.decode(example.prompt_ids) == "system: Be brief.\nuser: 2 + 2?\nassistant:"


def test_an_empty_turn_still_ends(write: Write, chatml: Any) -> None:
    turns = [("user", "a"), ("assistant", "")]
    (example,) = examples(chatml, write("c.jsonl", [{"messages": messages(turns)}]))
    assert written(chatml, example) == ["<|im_end|>"]
    nothing = write("t.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}")
    (example,) = examples(chatml, write("c.jsonl", [{"messages": messages(turns)}]), chat_template=nothing)
    assert example.response_ids == (chatml.eos_token_id,)
    assert example.loss_mask == (True,)


def test_a_template_that_changes_earlier_turns_is_refused(write: Write, chatml: Any) -> None:
    forgets = write(  # as templates do that drop the reasoning of earlier turns
        "t.jinja",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else '' }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    path = write("c.jsonl", [{"messages": messages(CHAT)}])
    with pytest.raises(DataError, match=r"c\.jsonl:1: the chat template renders what comes before message 3"):
        examples(chatml, path, chat_template=forgets)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"promt": "a", "response": "b"}, r'no field "prompt"; did you mean promt\?'),
        ({"prompt": "a", "answer": "b"}, 'no field "response"; fields here: prompt, answer'),
        ({"prompt": "a", "response": ""}, 'field "response" is empty'),
        ({"prompt": "a", "response": None}, 'no field "response"; fields here: prompt'),
        ({"prompt": ["a"], "response": "b"}, "must both be texts or both lists of messages"),
        ({"messages": "hi"}, 'field "messages": must be a list of messages'),
        ({"messages": messages([("user", "a")])}, "no turn of the assistant"),
        ({"messages": messages([("assistant", "a")])}, "begins with the assistant"),
        ({"prompt": "z" * 60, "response": "q" * 60}, r"122 tokens with the response, the limit is 100"),
    ],
)
def test_bad_records_name_file_and_line(write: Write, chatml: Any, row: Any, said: str) -> None:
    path = write("s.jsonl", [{"prompt": "z" * 49, "response": "q" * 49}, row])  # the first one just fits
    with pytest.raises(DataError, match=said) as caught:
        examples(chatml, path, limit=100)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_messages_need_a_template_and_files_are_needed(write: Write, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"c\.jsonl:1: the tokenizer has no chat template"):
        examples(tokenizer, write("c.jsonl", [{"messages": messages(CHAT)}]))
    with pytest.raises(DataError, match="no file was given"):
        examples(tokenizer, [])


def test_a_prompt_without_tokens(write: Write) -> None:
    from proxlm.data.tokenizer import train_tokenizer

    bare = train_tokenizer(["ab"], 260, 64)
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match=r"s\.jsonl:1: the prompt has no tokens"):
        examples(bare, write("s.jsonl", [{"prompt": "", "response": "x"}]))


@pytest.mark.parametrize(
    "file", [ARITHMETIC, *beside_the_checkout(SHARED_DATA / "gsm8k" / "test.jsonl")], ids=str
)
def test_word_problems_with_their_answers(file: Path, stories: Any, tmp_path: Any) -> None:
    rows = file.read_text(encoding="utf-8").splitlines()[:40]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(rows))
    made = examples(stories, str(path), 2000, prompt_field="question", response_field="answer")
    assert len(made) == 40
    for example, row in zip(made, map(json.loads, rows), strict=True):
        ids = example.prompt_ids + example.response_ids
        assert stories.decode(ids, skip_special_tokens=True) == row["question"] + row["answer"]
        assert (ids[0], ids[-1]) == (1, 2)
