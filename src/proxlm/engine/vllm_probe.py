"""Whether a server computes with the trainer's weights: two fixed texts of which both know the log-probs."""

from __future__ import annotations

from typing import Any

import torch

from proxlm.engine.vllm_server import Server, ServerError
from proxlm.errors import RunError
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.types import Sequences

_READ_TOKENS = 24
# vLLM keeps what it has read in blocks, of 128 tokens on CPUs and fewer on GPUs. A prompt of two blocks meets them.
_CACHED_TOKENS = 280
# Not 1, so that log-probs from before the temperature are seen to be others; above 1, so that they are not all 0.
_TEMPERATURE = 2.0


class Probe:
    """The texts, and what the trainer says of them.

    The first is only read: vLLM answers log-probs of a prompt without its prefix cache. So a token is sampled behind
    the second, which is long enough to be in that cache.

    Args:
        model: The policy.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._rows = len(model.network.get_input_embeddings().weight)
        self._text = self._tokens(_READ_TOKENS)
        self._own: list[float] = []
        self._before: list[float] = []

    def expect(self, model: LanguageModel) -> None:
        """Compute what servers have to answer with the weights of now, of the policy or a copy of it."""
        self._model = model
        self._before, self._own = self._own, self._logprobs(self._text[:1], self._text[1:])

    def check(self, server: Server, tolerance: float) -> None:
        """Compare a server with the trainer.

        Raises:
            ServerError: It gives no log-probs.
            RunError: They are others, by more than `tolerance` nats.
        """
        found = _prompt_logprobs(server, self._text)
        if not (off := _worst(found, self._own)) <= tolerance:
            what = (
                "computes other log-probs than the trainer: another model, or stale weights (of a tied output head,"
                " say: start it with a folder of served/)"
            )
            if self._before and _worst(found, self._before) < 1e-3:
                what = "samples with the weights of the step before: it has loaded nothing"
            raise RunError(f"engine.url: {server.url}: {what}; off by up to {off:.3g} nats")
        self._check_sampling(server, tolerance)

    def _check_sampling(self, server: Server, tolerance: float) -> None:
        prompt = self._tokens(
            min(_CACHED_TOKENS, self._model.context or _CACHED_TOKENS, server.context()) - 1
        )
        token, logprob = _sampled(server, prompt)
        if not 0 <= token < self._rows:
            raise ServerError(f"{server.url}: a token that the policy does not have")
        if not (off := abs(logprob - self._logprobs(prompt, [token], _TEMPERATURE)[0])) <= tolerance:
            what = "samples behind a prompt that it has read with older weights: its prefix cache is stale"
            if abs(logprob - self._logprobs(prompt, [token])[0]) <= tolerance:
                what = (
                    "gives log-probs from before temperature and filters: start it with --logprobs-mode"
                    " processed_logprobs"
                )
            raise RunError(f"engine.url: {server.url}: {what}; off by {off:.3g} nats")

    def _tokens(self, count: int) -> list[int]:
        return [(7 * i + 3) % self._rows for i in range(count)]

    @torch.no_grad()
    def _logprobs(self, prompt: list[int], response: list[int], temperature: float = 1.0) -> list[float]:
        """The trainer's, of each token of a response."""
        text = Sequences.from_lists([prompt], [response]).to(self._model.device)
        found: list[float] = token_outputs(self._model, text, temperature).logprobs.tolist()
        return found


def _worst(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _prompt_logprobs(server: Server, text: list[int]) -> list[float]:
    """A server's log-probs of each token of a text but the first."""
    body = {"prompt": text, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    rows: Any = server.complete(body).get("prompt_logprobs")
    try:
        pairs = zip(text[1:], rows[1:], strict=True)
        return [float(row[str(token)]["logprob"]) for token, row in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{server.url}: no log-probs of the prompt in its reply") from error


def _sampled(server: Server, prompt: list[int]) -> tuple[int, float]:
    """A token that a server samples behind a prompt, and its log-prob."""
    body = {"prompt": prompt, "max_tokens": 1, "temperature": _TEMPERATURE, "seed": 0, "logprobs": 0}
    choice = server.complete(body | {"return_token_ids": True})
    try:
        return int(choice["token_ids"][0]), float(choice["logprobs"]["token_logprobs"][0])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerError(f"{server.url}: a reply without tokens or log-probs") from error
