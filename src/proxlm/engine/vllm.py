"""The engine on vLLM servers: token ids in, token ids and log-probs out, over HTTP.

After each update the policy is written to a folder that the servers can read, and each loads it. Then the log-probs
of fixed texts must be the trainer's (vllm_probe.py): a server that samples with older weights, in a tied head or a
cached prefix for instance, ends the run instead of spoiling it. After each response a server says which weights it
has, so that one that was started again in between is found.
"""

from __future__ import annotations

import math
import secrets
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from proxlm.checkpoint import publish_folder
from proxlm.config import EngineSettings
from proxlm.data.turn_end import TurnEnd
from proxlm.engine.request import Request, RequestOutput
from proxlm.engine.stopping import StopCheck
from proxlm.engine.vllm_checksums import TensorChecksums
from proxlm.engine.vllm_probe import Probe
from proxlm.engine.vllm_server import Server, ServerError
from proxlm.errors import ModelError, RunError
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_adapter, save_served_model
from proxlm.seeds import Purpose, derive_seed
from proxlm.types import Finish


class VLLMEngine:
    """Samples with one or more vLLM servers; see `protocol.Engine` for the methods.

    A request goes to the server with the fewest. One that does not answer is marked dead, and its requests go
    elsewhere; it takes part again, from the next step on, when it lives and has the newest weights. When none is
    left, the engine waits for one.

    Args:
        model: The policy: its tokenizer, context and weights. A copy with other weights may take its place before
            `load_weights`.
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
        self._rows = len(model.network.get_input_embeddings().weight)
        self._last_error = "none is there"
        self._left_out: set[Server] = set()
        self._probe, self._checksums = Probe(model), TensorChecksums(model)
        self._stop_check = StopCheck(model)
        self._newest, self._run = self._folder, secrets.token_hex(4)

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
                    finished.append(self._stopped(request, future.result()))
                    self._failures.pop(request.id, None)  # a later request may have its id
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
        self.version, self._newest = version, self._folder / f"version-{version}"
        publish_folder(self._newest, self._write)
        self._probe.expect(self.model)
        self._checksums = TensorChecksums(self.model)
        for server in self.servers:
            self._refit(server)
        self._await_a_server()
        for old in self._folder.glob("version-*"):
            if old != self._newest:
                shutil.rmtree(old, ignore_errors=True)

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

    def _write(self, folder: Path) -> None:
        """What the servers load."""
        if self._settings.sink == "adapter":
            save_adapter(self.model.adapters, folder)
        else:
            save_served_model(self.model, folder)

    def _refit(self, server: Server) -> None:
        """Give a server the newest weights, and compare what it computes with them."""
        server.state = "stale"
        try:
            if not server.is_alive():
                raise ServerError(f"{server.url} does not answer")
            server.load(self._newest, self._name(), self._settings.sink == "adapter")
            self._check(server)
        except ServerError as error:
            self._leave_out(server, "dead", str(error))
            return
        server.state = "ready"
        if server in self._left_out:
            self._left_out.remove(server)
            print(f"note: {server.url} takes part again, with the newest weights", flush=True)

    def _check(self, server: Server) -> None:
        """Compare a server with the trainer. Raises RunError that says where they differ."""
        try:
            self._probe.check(server, self._settings.tolerance)
        except RunError as error:
            with suppress(ServerError):  # it tells no more than its log-probs
                if self._settings.sink == "weights":
                    raise RunError(f"{error}; {self._checksums.compare(server)}") from error
            raise
        if self._settings.checksums and not (found := self._checksums.compare(server)).agrees:
            raise RunError(f"engine.checksums: {server.url}: {found}")

    def _name(self) -> str:
        """What servers call the newest weights; those of other runs have other names."""
        return f"{self._run}-{self.version}"

    def _has_newest(self, server: Server) -> bool:
        """Whether it says so; one that was started again, or serves another run, does not."""
        try:
            return server.weights() == self._name()
        except ServerError:
            return False

    def _leave_out(self, server: Server, state: Literal["stale", "dead"], why: str) -> None:
        """Give a server no requests, and say so once."""
        server.state, self._last_error = state, why
        if server not in self._left_out:
            self._left_out.add(server)
            print(f"note: a server is left out: {why}", flush=True)

    def _await_a_server(self) -> None:
        """Wait until a server has the newest weights. Raises RunError when none comes within engine.wait."""
        end = time.monotonic() + self._settings.wait
        while not any(server.state == "ready" for server in self.servers):
            if time.monotonic() > end:
                raise RunError(
                    f"engine.url: no server has the weights of step {self.version}: {self._last_error}; start it"
                    " again, then the run: with --resume from its newest checkpoint"
                )
            time.sleep(min(1.0, self._settings.wait))
            for server in self.servers:
                self._refit(server)

    def _start(self) -> None:
        """Send waiting requests to the servers that have the fewest."""
        if self._waiting and not self._running:
            self._await_a_server()
        ready = [server for server in self.servers if server.state == "ready"]
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
        if not server.is_alive():
            self._leave_out(server, "dead", str(error))
        elif not self._has_newest(server):
            self._leave_out(server, "stale", str(error))
        self._waiting.insert(0, request)

    def _stopped(self, request: Request, output: RequestOutput) -> RequestOutput:
        """The output up to a stop text that began in an earlier request's tokens, which the server does not see."""
        if request.written and request.params.stop:
            response = request.begun
            for count, token in enumerate(output.tokens, 1):
                response.append(token)
                if self._stop_check.finish(request, response) == "stop":
                    tokens, logprobs = output.tokens[:count], output.logprobs[:count]
                    return replace(output, tokens=tokens, logprobs=logprobs, finish="stop")
        return output

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
        if not self._has_newest(server):
            raise ServerError(f"{server.url} has other weights than those of step {self.version}")
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
