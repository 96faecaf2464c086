"""Word vectors as the first embeddings: which token gets which row of a file, word2vec, and what is refused."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
import torch

from proxlm import PretrainConfig, PretrainTrainer
from proxlm.config import (
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    RunSettings,
    SupervisedSettings,
    TextSettings,
    WordVectorSettings,
)
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError, DataError
from proxlm.models.load import build_language_model
from proxlm.models.word_vectors import check_vectors, read_vectors, start_embeddings

TEXT = "The cat sat on the mat. On the moon, the Cat sang: 月 月光 on and on; nation on nation. " * 40
WIDTH = 8


@pytest.fixture(scope="module")
def words():
    return train_tokenizer([TEXT], 400, 64)


def write(path, vectors, header=False, end=""):
    lines = [f"{len(vectors)} {WIDTH}"] if header else []
    lines += [" ".join([word, *map(str, vector)]) + end for word, vector in vectors]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def vector(number):
    return [round(number + i / 8, 4) for i in range(WIDTH)]


def of(found, tokenizer, text):
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found.get(token)


@pytest.mark.parametrize(
    ("header", "end"), [(False, ""), (True, ""), (True, " ")], ids=["GloVe", "word2vec", "fastText"]
)
def test_tokens_that_are_words_have_the_rows_of_the_file(words, tmp_path, header, end):
    file = [("the", vector(1)), ("on", vector(2)), ("cat", vector(3)), ("Cat", vector(4)), ("月", vector(5)),
            (".", vector(6)), ("unheard", vector(7)), ("the", vector(8))]  # fmt: skip
    found = read_vectors(write(tmp_path / "a.vec", file, header, end), words, WIDTH)
    for text, expected in [(" the", 1), (" on", 2), (" cat", 3), (" Cat", 4), (" 月", 5), (".", 6)]:
        assert of(found, words, text).tolist() == vector(expected), text
    assert of(found, words, "on") is None  # the end of "nation"
    assert of(found, words, " sat") is None
    assert of(found, words, " On").tolist() == vector(2)  # which is there in lower case only
    assert of(found, words, "The") is None  # without a space it may be the end of a word
    assert len(found) == len([" the", " The", " on", " On", " cat", " Cat", " 月", "."])


def test_a_word_in_lower_case_stands_in(words, tmp_path):
    file = [("cat", vector(3)), ("moon", vector(4))]
    found = read_vectors(write(tmp_path / "a.vec", file), words, WIDTH)
    assert of(found, words, " Cat").tolist() == of(found, words, " cat").tolist() == vector(3)


def test_compressed_files_and_words_with_spaces_are_read(words, tmp_path):
    path = write(tmp_path / "a.vec", [("the", vector(1)), (". . .", vector(9)), ("cat", vector(3))])
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = read_vectors(tmp_path / "a.txt.gz", words, WIDTH)
    assert of(found, words, " cat").tolist() == vector(3)
    assert of(found, words, ".") is None


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("the 1 2 3\n", ConfigError, r"vectors have 3 numbers, but new\.hidden = 8; set that to 3"),
        ("10 300\nthe 1\n", ConfigError, "vectors have 300 numbers"),
        (
            "a " + "1 " * 8 + "\nthe 1 2 x 4 5 6 7 8\n",
            DataError,
            r"a\.vec:2: not a word and 8 finite numbers",
        ),
        ("a " + "1 " * 8 + "\nthe 1 2 nan 4 5 6 7 8\n", DataError, r"a\.vec:2: not a word and 8 finite"),
        ("a " + "1 " * 8 + "\nthe 1 2 1e99 4 5 6 7 8\n", DataError, r"a\.vec:2: not a word and 8 finite"),
        ("a " + "1 " * 8 + "\nthe 1 2\n", DataError, r"a\.vec:2: not a word and 8 finite"),
        ("xyzzy " + "1 " * 8 + "\n", DataError, "none of the tokenizer's"),
        ("the " + "1" * 10**5 + "\n", DataError, "longer than"),
        ("\x80\x02}q\x00" * 99, (DataError, ConfigError), "a.vec"),
    ],
)
def test_what_is_no_file_of_word_vectors_is_refused(words, tmp_path, content, error, message):
    (tmp_path / "a.vec").write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_vectors(tmp_path / "a.vec", words, WIDTH)


def test_it_is_refused_before_any_text_is_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        check_vectors(WordVectorSettings(file=str(tmp_path / "none.vec")), WIDTH)
    path = write(tmp_path / "a.vec", [("the", vector(1))])
    with pytest.raises(ConfigError, match=r"scratch\.hidden = 32; set that to 8"):
        check_vectors(WordVectorSettings(file=str(path)), 32, "scratch")
    check_vectors(WordVectorSettings(file=str(path)), WIDTH)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(
        ConfigError, match=r'gensim is not installed; do so with: pip install "proxlm\[embeddings\]"'
    ):
        check_vectors(WordVectorSettings(train="cbow"), WIDTH)


def model_of(words, **new):
    torch.manual_seed(0)
    settings = NewModelSettings(hidden=WIDTH, layers=1, heads=2, context=64, tie_embeddings=False, **new)
    return build_language_model(settings, words, ModelSettings(device="cpu"))


def test_rows_without_a_vector_stay_and_are_counted(words, tmp_path):
    path = write(tmp_path / "a.vec", [("the", vector(1)), ("cat", vector(3))])
    model = model_of(words)
    weight = model.network.get_input_embeddings().weight
    before = weight.detach().clone()
    line = start_embeddings(model, WordVectorSettings(file=str(path), freeze=True), list, 0)
    changed = (weight != before).any(1).nonzero().flatten().tolist()
    ids = [words(text, add_special_tokens=False)["input_ids"][0] for text in (" the", " The", " cat", " Cat")]
    assert sorted(changed) == sorted(ids)
    assert weight[ids[2]].tolist() == vector(3)
    assert line == f"embeddings: 4 of {len(weight)} tokens begin with vectors of words of a.vec"
    names = {name for name, _ in model.trainable()}
    assert "model.embed_tokens.weight" not in names
    assert "lm_head.weight" in names


def test_vectors_are_scaled_to_a_deviation(words, tmp_path):
    path = write(tmp_path / "a.vec", [("the", vector(1)), ("cat", vector(3))])
    model = model_of(words)
    start_embeddings(model, WordVectorSettings(file=str(path), std=0.02), list, 0)
    ids = [words(text, add_special_tokens=False)["input_ids"][0] for text in (" the", " The", " cat", " Cat")]
    rows = model.network.get_input_embeddings().weight[ids].detach()
    assert float(rows.std()) == pytest.approx(0.02, rel=1e-5)
    expected = torch.tensor([vector(1), vector(1), vector(3), vector(3)])
    assert torch.allclose(rows / rows[0, 0], expected / expected[0, 0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["skipgram", "cbow"])
def test_word2vec_learns_every_token_of_the_text_alike_twice(words, kind):
    """Words of the same neighbours become alike: colours stand between other words than animals."""
    texts = [f"paint the {c} wall now" for c in ("red", "blue", "green")]
    texts += [f"feed one {a} some food" for a in ("dog", "cat", "pig")]
    rows = []
    tokenizer = train_tokenizer([" ".join(texts)] * 9, 400, 64)
    ids = {w: tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in ("red", "blue", "dog")}
    assert all(len(one) == 1 for one in ids.values())
    for _ in range(2):
        model = model_of(tokenizer)
        settings = WordVectorSettings(train=kind, epochs=20, window=3)
        line = start_embeddings(model, settings, lambda: texts * 200, 5)
        rows.append(model.network.get_input_embeddings().weight.detach().clone())
    assert torch.equal(*rows)
    used = len({i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]})
    assert line == f"embeddings: {used} of {len(tokenizer)} tokens begin with vectors of word2vec ({kind})"
    red, blue, dog = (rows[0][ids[w][0]] for w in ("red", "blue", "dog"))
    assert torch.cosine_similarity(red, blue, 0) > torch.cosine_similarity(red, dog, 0) + 0.2


@pytest.mark.parametrize("embeddings", ["file", "train"])
def test_a_run_with_frozen_vectors_is_resumed_exactly(tmp_path, embeddings):
    path = write(tmp_path / "a.vec", [("the", vector(1)), ("cat", vector(3))])
    vectors = WordVectorSettings(
        file=str(path) if embeddings == "file" else "",
        train="none" if embeddings == "file" else "cbow",
        freeze=True,
    )

    def run(folder, steps, resume=False):
        config = PretrainConfig(
            new=NewModelSettings(
                hidden=WIDTH,
                layers=1,
                heads=2,
                context=64,
                vocabulary=300,
                tie_embeddings=False,
                embeddings=vectors,
            ),
            text=TextSettings(),
            train=SupervisedSettings(steps=steps, batch_tokens=64, block=16, validate_every=2),
            optim=OptimiserSettings(lr=1e-2),
            model=ModelSettings(device="cpu"),
            run=RunSettings(folder=str(tmp_path / folder), save_every=2, resume=resume),
        )
        run = PretrainTrainer([TEXT, TEXT[::-1], TEXT], config).train()
        from safetensors.torch import load_file

        return load_file(run.model / "model.safetensors")

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    if embeddings == "file":
        rows = whole["model.embed_tokens.weight"].numpy()
        assert any(np.array_equal(row, np.array(vector(1), dtype=np.float32)) for row in rows)
