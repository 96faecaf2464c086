from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from proxlm.data.tokenizer import (
    encode_continuation,
    encode_documents,
    encode_prompt,
    encode_source,
    encode_target,
    load_tokenizer,
    response_tokens_as_text,
    train_tokenizer,
)
from proxlm.errors import ModelError

HARD = [
    "",
    " ",
    "  a\n\n\tb ",
    "从前有一个小女孩，她叫莉莉。🙂👩‍👩‍👧",
    "it 's n't . , !",
    "\x00\ufeff\u2028é e\u0301",
    "<|eos|> x",
]


def test_special_tokens_are_three_and_bos_comes_first(tokenizer: Any) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    ids = tokenizer("hello")["input_ids"]
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert 1 not in ids
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == 128


def test_an_encoders_text_ends_with_eos_and_a_target_always_does(tokenizer: Any) -> None:
    """T5's tokenizer writes EOS last; one that does not is taken as it is for sources."""
    made = train_tokenizer(["hello you"] * 5, 270, 64, encoder_decoder=True)
    plain = made("hello", add_special_tokens=False)["input_ids"]
    assert encode_source(made, "hello") == encode_target(made, "hello") == [*plain, 1]
    assert encode_prompt(made, "hello") == plain
    assert made("hello", "you")["input_ids"].count(1) == 2
    assert encode_source(tokenizer, "hello")[0] == tokenizer.bos_token_id
    assert encode_target(tokenizer, "hello") == [*encode_source(tokenizer, "hello"), 1]
    assert encode_target(made, "") == [1]


def test_size_is_what_was_asked_for_and_less_where_the_text_is_too_small(tokenizer: Any) -> None:
    assert len(tokenizer) == 300
    assert len(train_tokenizer(["ab ab"], 1000, 64)) < 270
    assert len(train_tokenizer(["ab ab"], 260, 64)) == 260


@given(st.text() | st.sampled_from(HARD))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    (ids,) = encode_documents(tokenizer, [text])
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:-1]) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_training_is_the_same_in_another_process(tokenizer: Any, tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = (
        f"import sys; sys.path[:0] = {folders}; from conftest import TEXTS;"
        "from proxlm.data.tokenizer import train_tokenizer as train;"
        f"train(iter(TEXTS), 300, 128).save_pretrained({str(tmp_path / 'other')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    tokenizer.save_pretrained(tmp_path / "here")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_saved_and_loaded_it_gives_the_same_ids_and_texts(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert type(loaded) is type(AutoTokenizer.from_pretrained(tmp_path))
    assert (loaded.padding_side, loaded.model_max_length, loaded.pad_token_id) == ("left", 128, 2)
    for text in HARD:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert encode_documents(loaded, [text]) == encode_documents(tokenizer, [text])
        assert loaded.decode(encode_documents(loaded, [text])[0][1:-1]) == text


def test_prompts_follow_the_tokenizer_but_never_end_with_an_eos_it_adds(tokenizer: Any) -> None:
    plain = tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert encode_prompt(tokenizer, "a b") == [0, *plain]
    assert encode_prompt(tokenizer, "") == [0]
    from tokenizers.processors import TemplateProcessing

    def with_template(single: str) -> Any:
        made = train_tokenizer(["a b"], 260, 64)
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
        )
        return made

    ends = with_template("<|bos|> $A <|eos|>")
    text = ends("a b", add_special_tokens=False)["input_ids"]
    assert ends("a b")["input_ids"] == [0, *text, 1]
    assert encode_prompt(ends, "a b") == [0, *text]
    assert encode_prompt(ends, "a b<|eos|>") == [0, *text, 1]  # spelled out by the user: kept
    assert encode_prompt(ends, "") == [0]
    bare = with_template("$A")
    assert encode_prompt(bare, "a b") == text
    assert encode_prompt(bare, "<|bos|>a b") == [0, *text]


def test_spelled_out_special_tokens_count_in_prompts_and_are_text_in_documents(tokenizer: Any) -> None:
    assert encode_prompt(tokenizer, "x<|eos|>")[-1] == 1
    (ids,) = encode_documents(tokenizer, ["x<|eos|>"])
    assert ids.count(1) == 1
    assert encode_prompt(tokenizer, "x<|eos|>")[-1] == 1  # the setting did not stick
    assert encode_documents(tokenizer, []) == []


@given(st.text(min_size=1))
@settings(deadline=None)
def test_continuations_read_on_without_a_gap(tokenizer: Any, text: str) -> None:
    before = encode_prompt(tokenizer, "x =")
    assert tokenizer.decode(before[1:] + encode_continuation(tokenizer, text)) == "x =" + text


def test_continuations_of_a_sentencepiece_type_tokenizer_get_no_space(stories: Any) -> None:
    before = encode_prompt(stories, "Once")
    assert before[0] == stories.bos_token_id == 1
    for text in (" upon a time", "upon", "  two", "\nnew", "从前"):
        ids = encode_continuation(stories, text)
        assert stories.decode(before + ids, skip_special_tokens=True) == "Once" + text
    together = stories("Once upon a time", add_special_tokens=False)["input_ids"]
    assert before[1:] + encode_continuation(stories, " upon a time") == together


def test_real_model_starts_with_bos_once(stories: Any) -> None:
    ids = encode_prompt(stories, "Once upon a time")
    assert stories.convert_ids_to_tokens(ids) == ["<s>", "▁Once", "▁upon", "▁a", "▁time"]
    assert ids[0] == 1


@given(st.text(alphabet=st.characters(exclude_characters="�", exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_token_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = response_tokens_as_text(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces).replace("�", "") == text


def test_token_pieces_by_example(tokenizer: Any, stories: Any) -> None:
    by_name = {name: i for name, i in tokenizer.get_vocab().items() if len(name) == 1}
    byte = {"a": by_name["a"], 0xE8: by_name["è"], 0x8C: by_name["Į"], 0x93: by_name["ĵ"]}
    assert tokenizer.decode([byte[0xE8], byte[0x8C], byte[0x93]]) == "茓"
    whole = [byte["a"], byte[0xE8], byte[0x8C], byte[0x93], byte["a"], tokenizer.eos_token_id]
    assert response_tokens_as_text(tokenizer, whole) == ["a", "�", "�", "茓", "a", "<|eos|>"]
    broken = [byte[0xE8], byte["a"], byte[0x93]]
    assert response_tokens_as_text(tokenizer, broken) == ["�", "a", "�"]
    assert response_tokens_as_text(tokenizer, [byte[0x93]] * 6) == ["�"] * 6
    assert response_tokens_as_text(tokenizer, []) == []
    ids = stories("Once upon a time 🙂", add_special_tokens=False)["input_ids"]
    emoji = [" ", "�", "�", "�", "🙂"]
    assert response_tokens_as_text(stories, [*ids, 2]) == [" Once", " upon", " a", " time", *emoji, "</s>"]


def test_a_token_with_a_whole_character_and_a_part_of_the_next() -> None:
    made = train_tokenizer([f"a{chr(c)}" for c in range(0x8300, 0x8340)], 262, 64)
    ids = made("a茓", add_special_tokens=False)["input_ids"]
    assert made.decode(ids[0]) == "a�"
    assert response_tokens_as_text(made, ids) == ["a�", "茓"]


def test_loading_errors_are_one_line(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, said: str) -> None:
        with pytest.raises(ModelError) as caught:
            load_tokenizer(name)
        assert said in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    fails(str(tmp_path / "empty"), "the folder holds no tokenizer")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    fails(str(tmp_path / "bad"), "damaged or not supported")
    fails(str(tmp_path / "none"), "no such folder")
    tokenizer.save_pretrained(tmp_path / "no-eos")
    settings_file = tmp_path / "no-eos" / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings_file.read_text()).items() if k != "eos_token"}
    settings_file.write_text(json.dumps(kept))
    fails(str(tmp_path / "no-eos"), "has no EOS token")

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", no_network)
    monkeypatch.setattr("proxlm.data.tokenizer.check_hub", lambda name: None)
    fails("some/model", "couldn't connect to the hub. Check your internet connection")


def test_bos_stands_once_where_the_text_spells_it_out(tokenizer: Any) -> None:
    bos = tokenizer.bos_token_id
    assert encode_prompt(tokenizer, "moon")[0] == bos
    for text in (f"{tokenizer.bos_token}moon", "moon"):
        assert (
            encode_prompt(tokenizer, text) == encode_source(tokenizer, text) == tokenizer("moon")["input_ids"]
        )
    assert encode_prompt(tokenizer, tokenizer.bos_token) == [bos]
