"""Reading a GGUF file with llama.cpp itself, through its server, to compare what it computes with the original."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.errors import ModelError
from proxlm.text import shown

_TIMEOUT = 600.0  # seconds for one answer


class LlamaCpp:
    """A running llama.cpp with one model."""

    name = "llama.cpp"

    def __init__(self, address: str, vocabulary: int) -> None:
        self._address, self._vocabulary = address, vocabulary
        # The answer leaves out a token that ends the text or a part of a character, and its probabilities with it;
        # they are those before sampling, so that a letter may be forced.
        self._letter = self._ask("tokenize", {"content": "a", "add_special": False})["tokens"][-1]

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the file says stands first and last."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        return list(self._ask("tokenize", asked)["tokens"])

    def outputs(self, ids: Sequence[int]) -> Tensor:
        """The log-probs of the next token behind each token, [T, V] float32."""
        return torch.stack([self._next(ids[: end + 1]) for end in range(len(ids))])

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The most likely tokens one after another, up to what llama.cpp takes for an end."""
        return list(self._complete(ids, count, {})["tokens"])

    def seconds_per_token(self, ids: Sequence[int], count: int) -> float:
        """How long one token of a greedy response of `count` takes, by llama.cpp's own clock."""
        return (
            float(self._complete(ids, count, {"ignore_eos": True})["timings"]["predicted_per_token_ms"])
            / 1000
        )

    def _next(self, ids: Sequence[int]) -> Tensor:
        """Of one token generated behind `ids`, the log-probs of all that it could have been."""
        forced = {"n_probs": self._vocabulary, "logit_bias": [[self._letter, 1e6]]}
        (found,) = self._complete(ids, 1, forced)["completion_probabilities"]
        row = torch.full((self._vocabulary,), -math.inf)
        top = found["top_logprobs"]
        row[torch.tensor([one["id"] for one in top])] = torch.tensor([float(one["logprob"]) for one in top])
        return row

    def _complete(self, ids: Sequence[int], count: int, more: dict[str, Any]) -> Any:
        asked = {"prompt": list(ids), "n_predict": count, "temperature": 0, "return_tokens": True, **more}
        return self._ask("completion", asked)

    def _ask(self, path: str, asked: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self._address}/{path}", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=_TIMEOUT
            ) as answer:
                return json.load(answer)
        except (OSError, ValueError) as error:
            raise ModelError(f"llama.cpp does not answer: {error}") from error


def installed() -> bool:
    """Whether llama.cpp can be run here."""
    return find_spec("xllamacpp") is not None


@contextmanager
def llama_cpp(file: Path, vocabulary: int, context: int, threads: int) -> Iterator[LlamaCpp]:
    """A llama.cpp with the model of a GGUF file, for as long as the block lasts.

    Args:
        file: The GGUF file.
        vocabulary: How many tokens it has.
        context: The longest sequence that will be read.
        threads: CPU threads.

    Raises:
        ModelError: llama.cpp cannot load the file.
    """
    command = [sys.executable, "-m", "proxlm.export.llama_cpp_server", str(file), str(context), str(threads)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    drain.start()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address.startswith("http://127.0.0.1:"):
            process.kill()
            drain.join(10)
            told = [line for line in errors if "error" in line.lower()] or errors or ["nothing"]
            raise ModelError(f"{file.name}: llama.cpp cannot load it; it says: {shown(told[0].strip(), 160)}")
        yield LlamaCpp(address, vocabulary)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        drain.join(10)
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
