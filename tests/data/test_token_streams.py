"""Tokens kept in a file: the same as without it, made again where it is damaged, refused where it is another's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proxlm.data.documents import Documents
from proxlm.data.token_streams import kept_streams, temporary_streams, tokenizer_sha256
from proxlm.errors import DataError
from proxlm.train.supervised.examples import Examples
from small_models import TEXTS

KEY = "0123456789abcdef" * 4


def texts():
    return [Documents(TEXTS * 3), Documents(TEXTS[:2]), Documents()]


def kept(tokenizer, folder, key=KEY, calls=None):
    def read():
        if calls is not None:
            calls.append(1)
        return texts(), 2

    return kept_streams(Path(folder), key, tokenizer, read)


def test_the_numbers_are_those_of_a_temporary_file_and_the_text_is_read_once(tokenizer, tmp_path):
    plain, calls = temporary_streams(tokenizer, texts()), []
    for _ in range(3):
        found = kept(tokenizer, tmp_path / "new" / "cache", calls=calls)
        assert found.tokens.dtype == torch.uint16
        assert found.tokens.long().tolist() == plain.tokens.tolist()
        assert (found.ends, found.left_out) == (plain.ends, 2)
    assert len(calls) == 1
    assert found.span(0) == (0, found.ends[0])
    assert found.span(1) == (found.ends[0], found.ends[1])


def test_blocks_and_their_batches_are_the_same(tokenizer, tmp_path):
    made = [
        Examples.from_streams(streams, [0, 1], 7, ["a", "b"])
        for streams in (temporary_streams(tokenizer, texts()), kept(tokenizer, tmp_path))
    ]
    assert len(made[0]) == len(made[1]) > 8
    for row in range(len(made[0])):
        (one, mask), (other, other_mask) = (examples.batch([row]) for examples in made)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(mask, other_mask)
        assert one.tokens.dtype == other.tokens.dtype == torch.int64
    assert torch.equal(made[0].sources, made[1].sources)
    whole = Examples.from_streams(temporary_streams(tokenizer, texts()), [0], 7)
    ids = temporary_streams(tokenizer, texts()).tokens[: whole.starts[-1] + 7]
    assert torch.cat([whole.batch([row])[0].tokens for row in range(len(whole))]).tolist() == ids.tolist()


def test_a_source_without_a_block_is_named(tokenizer):
    streams = temporary_streams(tokenizer, texts())
    with pytest.raises(DataError, match="the text of poems has 0 tokens, less than one block of 7"):
        Examples.from_streams(streams, [0, 2], 7, ["stories", "poems"])


@pytest.mark.parametrize("harm", ["cut", "flipped", "longer", "key", "header", "type"])
def test_a_damaged_file_is_made_again(tokenizer, tmp_path, capsys, harm):
    whole = kept(tokenizer, tmp_path).tokens.long()
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    head, data = good[:4096], good[4096:]
    bad = {
        "cut": head + data[:-2],
        "flipped": head + bytes([data[0] ^ 1]) + data[1:],
        "longer": good + b"\0\0",
        "key": head.replace(KEY.encode(), KEY[::-1].encode()) + data,
        "header": head[:40].ljust(4096) + data,
        "type": head.replace(b"uint16", b"uint99") + data,
    }[harm]
    file.write_bytes(bad)
    calls = []
    assert torch.equal(kept(tokenizer, tmp_path, calls=calls).tokens.long(), whole)
    assert calls == [1]
    assert "is damaged, and written again" in capsys.readouterr().out
    assert file.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_another_key_is_another_file(tokenizer, tmp_path):
    kept(tokenizer, tmp_path)
    kept(tokenizer, tmp_path, KEY[::-1])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"my diary", b'{"format": "another"}'])
def test_what_is_not_a_token_file_is_left_alone(tokenizer, tmp_path, content):
    path = tmp_path / f"{KEY[:16]}.tokens"
    path.write_bytes(content)
    with pytest.raises(DataError, match="something else than tokens"):
        kept(tokenizer, tmp_path)
    assert path.read_bytes() == content


def test_a_failure_while_it_is_written_leaves_nothing(tokenizer, tmp_path):
    def fails():
        class Broken(Documents):
            def __getitem__(self, i):
                raise OSError(28, "No space left on device")

        return [Broken(TEXTS)], 0

    with pytest.raises(DataError, match=r"text\.tokens: .* cannot be written: .*[Nn]o space"):
        kept_streams(tmp_path, KEY, tokenizer, fails)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_a_tokenizer_follows_what_it_does(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    assert tokenizer_sha256(other) == tokenizer_sha256(tokenizer)
    other.add_tokens(["moonlight"])
    assert tokenizer_sha256(other) != tokenizer_sha256(tokenizer)
