"""The engine on vLLM servers: token ids in, token ids and log-probs out, over HTTP.

After each update the policy is written to a folder that the servers can read, and each loads it. Then the log-probs
of a fixed sequence must be the trainer's: a server that samples with older weights, in a tied head or a cached prefix
for instance, ends the run instead of spoiling it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.checkpoint import publish_folder
from proxlm.config import EngineSettings
from proxlm.data.turn_end import TurnEnd
from proxlm.engine.request import Request, RequestOutput
from proxlm.engine.vllm_server import Server, ServerError
from proxlm.errors import ModelError, RunError
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_served_model
from proxlm.seeds import Purpose, derive_seed
from proxlm.types import Finish, Sequences

_PROBE_TOKENS = 24


class VLLMEngine:
    """Samples with one or more vLLM servers; see `protocol.Engine` for the methods.

    A request goes to the server with the fewest. One that does not answer is marked dead, and its requests go
    elsewhere; it takes part again when it lives and has the newest weights.

    Args:
        model: The policy: its tokenizer, context and weights.
        settings: Where the servers are and how they are treated.
        folder: Where policies are written for the servers; the newest one stays.
        most: How many requests run at once.
    """

    def __init__(self, model: LanguageModel, settings: EngineSettings, folder: Path, most: int) -> None:
        self.model, self.version = model, 0
        self.servers = [Server(url, settings.timeout) for url in settings.url]
        self._settings, self._folder, self._most = settings, folder.absolute(), most
        self._threads = ThreadPoolExecutor(most, "proxlm-vllm")
        self._waiting: list[Request] = []
        self._running: dict[Future[RequestOutput], tuple[Request, Server]] = {}
        self._failures: dict[int, list[str]] = {}
        self._probed: list[float] = []
        self._rows = len(model.network.get_input_embeddings().weight)
        self._last_error = "none is there"
        self._probe = [(7 * i + 3) % self._rows for i in range(_PROBE_TOKENS)]

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.model.tokenizer

    @property
    def context(self) -> int | None:
        """The model's."""
        return self.model.context

    @property
    def encoder_decoder(self) -> bool:
        """False: vLLM's encoder–decoders are refused."""
        return False

    @property
    def turn_end(self) -> TurnEnd:
        """The model's."""
        return self.model.turn_end

    def __len__(self) -> int:
        """How many requests are unfinished."""
        return len(self._waiting) + len(self._running)

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests."""
        self._waiting += requests

    def step(self) -> list[RequestOutput]:
        """Wait until at least one request is finished."""
        finished: list[RequestOutput] = []
        while len(self) and not finished:
            self._start()
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                request, server = self._running.pop(future)
                server.running -= 1
                try:
                    finished.append(future.result())
                except ServerError as error:
                    self._failed(request, server, error)
        return finished

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Have every server load the model's weights, and check that they are these.

        Raises:
            RuntimeError: Requests are unfinished.
            RunError: No server is left, or one samples with other weights.
        """
        if len(self):
            raise RuntimeError(f"load_weights: {len(self)} requests are unfinished")
        own = dict(self.model.network.named_parameters(remove_duplicate=False))
        for name, tensor in weights:
            if name not in own:
                raise ModelError(f"{self.model.source}: no weights of the name {name}")
            if own[name].data_ptr() != tensor.data_ptr():
                own[name].copy_(tensor)
        folder = self._folder / f"version-{version}"
        publish_folder(folder, partial(save_served_model, self.model))
        probe = self._trainer_logprobs()
        for server in self.servers:
            self._refit(server, folder, probe)
        if not any(server.state == "ready" for server in self.servers):
            raise RunError(
                f"engine.url: no server has taken the weights of step {version}: {self._last_error}; start it again"
                f" with the model in {folder}, and go on with --resume"
            )
        for old in self._folder.glob("version-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        self._probed, self.version = probe, version

    def reset(self) -> None:
        """Drop unfinished requests; those that a server has begun are answered to nobody."""
        for future, (_, server) in self._running.items():
            future.cancel()
            server.running -= 1
        self._waiting, self._running, self._failures = [], {}, {}

    def close(self) -> None:
        """The same, and end the threads. The servers go on."""
        self.reset()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _refit(self, server: Server, folder: Path, probe: list[float]) -> None:
        """Give a server the newest weights, and compare what it computes with them."""
        if not server.is_alive():
            server.state, self._last_error = "dead", f"{server.url} does not answer"
            return
        server.state = "stale"
        try:
            server.post("/pause")
            server.post(
                "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            )
            server.post("/reset_prefix_cache")
            server.post("/resume")
            found = self._server_logprobs(server)
        except ServerError as error:
            server.state, self._last_error = "dead", str(error)
            return
        worst = max(abs(a - b) for a, b in zip(found, probe, strict=True))
        if not worst <= self._settings.tolerance:
            raise RunError(
                f"engine.url: {server.url}: {self._what_is_stale(found)}; off by up to {worst:.3g} nats"
            )
        server.state = "ready"

    def _what_is_stale(self, found: list[float]) -> str:
        """What a server's log-probs of the probe say of its weights."""
        if self._probed and max(abs(a - b) for a, b in zip(found, self._probed, strict=True)) < 1e-3:
            return (
                "samples with the weights of the step before: it has loaded nothing, or answers from a cache"
            )
        return (
            "computes other log-probs than the trainer: another model, or stale weights (of a tied output head: serve"
            f" {self._folder}, whose head is its own)"
        )

    def _trainer_logprobs(self) -> list[float]:
        """Of each token of the probe but the first, at temperature 1."""
        probe = Sequences.from_lists([self._probe[:1]], [self._probe[1:]]).to(self.model.device)
        found: list[float] = token_outputs(self.model, probe).logprobs.tolist()
        return found

    def _server_logprobs(self, server: Server) -> list[float]:
        body = {"prompt": self._probe, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        rows = server.complete(body).get("prompt_logprobs")
        try:
            assert isinstance(rows, list)
            pairs = zip(self._probe[1:], rows[1:], strict=True)
            return [float(row[str(token)]["logprob"]) for token, row in pairs]
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{server.url}: no log-probs of the prompt in its reply") from error

    def _start(self) -> None:
        """Send waiting requests to the servers that have the fewest."""
        ready = [server for server in self.servers if server.state == "ready"]
        if self._waiting and not ready and not self._running:
            raise RunError(f"engine.url: no server is left: {self._last_error}; go on with --resume")
        while ready and self._waiting and len(self._running) < self._most:
            request = self._waiting.pop(0)
            server = min(ready, key=lambda server: server.running)
            server.running += 1
            self._running[self._threads.submit(self._sampled, request, server)] = request, server

    def _failed(self, request: Request, server: Server, error: ServerError) -> None:
        """Queue a request again that a server has not answered, unless it would fare no better."""
        why = self._failures.setdefault(request.id, [])
        why.append(str(error))
        if error.refused or len(why) > self._settings.retries:
            raise RunError(
                f"engine.url: a response was not written after {len(why)} attempts: {error}"
            ) from error
        self._last_error = str(error)
        if not server.is_alive():
            server.state = "dead"
        self._waiting.insert(0, request)

    def _sampled(self, request: Request, server: Server) -> RequestOutput:
        """What one server writes for a request. Raises ServerError for half a response."""
        params, ends = request.params, sorted(self.turn_end.tokens)
        seed = params.seed
        counters = (seed.stream, seed.step, seed.prompt_id, seed.sample, seed.position)
        choice = server.complete(
            {
                "prompt": list(request.prompt),
                "max_tokens": params.max_new_tokens,
                "temperature": params.temperature,
                "top_k": params.top_k or -1,
                "top_p": params.top_p,
                "min_p": params.min_p,
                "repetition_penalty": params.repetition_penalty,
                "presence_penalty": params.presence_penalty,
                "frequency_penalty": params.frequency_penalty,
                "stop": list(params.stop),
                "stop_token_ids": [*ends, *params.stop_token_ids],
                "include_stop_str_in_output": True,
                "seed": derive_seed(seed.seed, Purpose.SERVER, *counters) % 2**31,
                "logprobs": 0,
                "return_token_ids": True,
                "skip_special_tokens": False,
            }
        )
        return _output(request, server, choice, self.turn_end.tokens, self._rows)


def _output(
    request: Request, server: Server, choice: dict[str, Any], ends: Iterable[int], rows: int
) -> RequestOutput:
    """The output in a server's choice; rows: of the embedding. Raises ServerError for one that is not whole."""
    try:
        tokens = [int(token) for token in choice["token_ids"]]
        logprobs = [float(logprob) for logprob in choice["logprobs"]["token_logprobs"]]
        reason = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{server.url}: a reply without tokens or log-probs") from error
    if any(not 0 <= token < rows for token in tokens):
        raise ServerError(f"{server.url}: a token that the policy does not have")
    whole = 0 < len(tokens) == len(logprobs) <= request.params.max_new_tokens
    if not whole or reason not in ("stop", "length") or any(not x <= 1e-3 or math.isinf(x) for x in logprobs):
        raise ServerError(
            f"{server.url}: half a response: {len(tokens)} tokens, {len(logprobs)} log-probs, ended by {reason!r}"
        )
    finish: Finish = "eos" if tokens[-1] in set(ends) else "stop" if reason == "stop" else "length"
    return RequestOutput(request.id, tokens, logprobs, finish)
