"""Texts as streams of token ids in a memory-mapped file: a temporary one, or one that later runs read again.

A kept file begins with a header of 4,096 bytes, one line of JSON: what it was made from (a key), how its numbers are
stored, where each stream ends, and their SHA-256. Its numbers follow. It is there whole or not at all, and one that
is damaged is written again. So a run's numbers do not depend on whether the file was there.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from proxlm.data.documents import Documents
from proxlm.data.on_disk import NumbersOnDisk
from proxlm.data.supervised import encoded
from proxlm.errors import ConfigError, DataError
from proxlm.files import open_regular
from proxlm.text import system_reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

FORMAT = "proxlm tokens 1"
_HEADER = 4096
_TYPES = {"uint16": (torch.uint16, "H"), "int32": (torch.int32, "i")}
_AT_ONCE = 2**20

Ids = Iterable[Iterable[int]]


@dataclass(frozen=True)
class TokenStreams:
    """Streams of token ids, one after another.

    Attributes:
        tokens: All of them [N], pages of a file, uint16 or int32.
        ends: Where each stream ends in it.
        left_out: How many records of the text were left out when it was read.
    """

    tokens: Tensor
    ends: tuple[int, ...]
    left_out: int = 0

    def span(self, stream: int) -> tuple[int, int]:
        """Where a stream begins and ends."""
        return (self.ends[stream - 1] if stream else 0), self.ends[stream]


def temporary_streams(tokenizer: Tokenizer, texts: Sequence[Documents]) -> TokenStreams:
    """A stream for each of several texts, BOS text EOS BOS text EOS ..., in a temporary file."""
    numbers, ends = NumbersOnDisk(torch.int32), []
    for documents in texts:
        for ids in encoded(tokenizer, documents):
            numbers.extend(ids)
        ends.append(len(numbers))
    return TokenStreams(numbers.tensor(), tuple(ends))


def kept_streams(
    folder: Path, key: str, tokenizer: Tokenizer, texts: Callable[[], tuple[Sequence[Documents], int]]
) -> TokenStreams:
    """The same in a file that is kept, and read instead of the texts where it is there.

    Args:
        folder: Where it is.
        key: A SHA-256, in hexadecimal, of all that its contents depend on.
        tokenizer: Encodes the texts.
        texts: Reads the texts, and says how many records it left out; only called where the file is not there.

    Raises:
        DataError: It cannot be read or written, or a file of its name is something else.
    """
    path = folder / f"{key[:16]}.tokens"
    found = _read(path, key)
    if found is not None:
        return found
    documents, left_out = texts()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, key, tokenizer, documents, left_out)
    except OSError as error:
        raise DataError(f"text.tokens: {path} cannot be written: {system_reason(error)}") from error
    made = _read(path, key)
    if made is None:
        raise DataError(f"text.tokens: {path} is not what was written; look at the disk")
    return made


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """A hash of all that decides which ids a text becomes. Raises ConfigError where that cannot be known."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("text.tokens: only of a fast tokenizer, which can be compared; leave it out")
    parts = [type(tokenizer).__name__, tokenizer.bos_token_id, tokenizer.eos_token_id, backend.to_str()]
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _write(path: Path, key: str, tokenizer: Tokenizer, texts: Sequence[Documents], left_out: int) -> None:
    largest = max(tokenizer.get_vocab().values())
    kind = "uint16" if largest < 2**16 else "int32"
    beside = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(b" " * _HEADER)
            digest, ends, count = hashlib.sha256(), list[int](), 0
            for documents in texts:
                for ids in encoded(tokenizer, documents):
                    numbers = array(_TYPES[kind][1], ids)
                    digest.update(numbers)
                    file.write(numbers)
                    count += len(numbers)
                ends.append(count)
            header = {
                "format": FORMAT, "key": key, "type": kind, "ends": ends, "left_out": left_out,
                "sha256": digest.hexdigest(),
            }  # fmt: skip
            line = json.dumps(header).encode("ascii")
            if len(line) >= _HEADER:
                raise DataError("text.tokens: too many entries in text.train for one file; leave it out")
            file.seek(0)
            file.write(line.ljust(_HEADER - 1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path, key: str) -> TokenStreams | None:
    """What a kept file holds; None: there is none, or it is damaged. Raises DataError for another kind of file."""
    try:
        with open_regular(path) as file:
            header = _header(file, path)
            dtype, code = _TYPES[header["type"]]
            ends = tuple(int(end) for end in header["ends"])
            count = ends[-1]
            size = os.fstat(file.fileno()).st_size
            whole = size == _HEADER + count * array(code).itemsize and header["key"] == key
            if not whole or _data_sha256(file) != header["sha256"]:
                raise ValueError
            if not count:
                return TokenStreams(torch.empty(0, dtype=dtype), ends, int(header["left_out"]))
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            tokens = torch.frombuffer(pages, dtype=dtype, offset=_HEADER)
            return TokenStreams(tokens, ends, int(header["left_out"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"text.tokens: {path} cannot be read: {system_reason(error)}") from error
    except (ValueError, LookupError, TypeError):
        print(f"text.tokens: {path} is damaged, and written again", flush=True)
        return None


def _header(file: BinaryIO, path: Path) -> Any:
    line = file.read(_HEADER)
    if not line.startswith(f'{{"format": "{FORMAT.split()[0]} tokens'.encode()):
        raise DataError(f"text.tokens: {path} holds something else than tokens; give another folder")
    return json.loads(line)


def _data_sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(_HEADER)
    while block := file.read(_AT_ONCE):
        digest.update(block)
    return digest.hexdigest()
