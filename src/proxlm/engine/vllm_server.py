"""One vLLM server: its HTTP interface, and in what state it is."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from proxlm.errors import RunError
from proxlm.text import listed, reason_of, shown

# Bytes of a reply.
LARGEST_REPLY = 2**26
# Answers that mean the server lives and the request was wrong: it would be so with every server. Not 404: one
# that was started again does not know its adapter.
_REFUSED = {*range(400, 500)} - {404}
_HEALTH_SECONDS = 10.0
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class ServerError(Exception):
    """A request without a usable answer.

    Args:
        reason: Why, for a message.
        refused: Whether the server understood the request and refuses it, so that no other one will do better.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


def wait_for_server(urls: Sequence[str], seconds: float) -> None:
    """Wait until one of the servers says that it can work, before anything is loaded.

    Raises:
        RunError: None has, in these seconds.
    """
    end = time.monotonic() + seconds
    while not any(Server(url, _HEALTH_SECONDS).is_alive() for url in urls):
        if time.monotonic() > end:
            raise RunError(
                f"engine.url: no answer from {listed([shown(url, 60) for url in urls[:3]])}; start a server, as"
                " docs/cluster.md shows"
            )
        time.sleep(min(1.0, seconds))


class Server:
    """A vLLM server, of which the others know nothing.

    Args:
        url: As `vllm serve` prints it, http://host:port.
        timeout: Seconds for one request.

    Attributes:
        state: "stale" until it has the newest weights, then "ready"; "dead" when it does not answer.
        running: How many requests it has.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self._timeout = url.rstrip("/").removesuffix("/v1"), timeout
        self.state: Literal["stale", "ready", "dead"] = "stale"
        self.running = 0
        self._model: dict[str, Any] = {}

    def is_alive(self) -> bool:
        """Whether it says that it can work."""
        try:
            self._ask("/health", None, min(self._timeout, _HEALTH_SECONDS))
        except ServerError:
            return False
        return True

    def load(self, folder: Path, name: str, adapter: bool = False) -> None:
        """Have it load a policy in place of its own, forget what it has read, and call these weights `name`.

        Args:
            folder: A model, or an adapter in PEFT's format.
            name: One that it has not had yet.
            adapter: Whether it is an adapter, of the model that the server was started with.

        Raises:
            ServerError: It does not.
        """
        self._model = {}
        try:
            self.post("/pause")
            if adapter:
                self._load_adapter(folder, name)
            else:
                load = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
                self.post("/collective_rpc", load)
            if self.post("/reset_prefix_cache").get("success") is not True:
                raise ServerError(f"{self.url}/reset_prefix_cache: the cache was not emptied")
            self.post("/update_weight_version", {"new_version": name})
            self.post("/resume")
        except ServerError as error:
            why = " (was it started as docs/cluster.md says?)" if " 404: " in str(error) else ""
            raise ServerError(f"{error}{why}", error.refused) from error

    def _load_adapter(self, folder: Path, name: str) -> None:
        """In place of those it has."""
        models = _member(self._ask("/v1/models", None), "data")
        for model in models if isinstance(models, list) else []:
            if _member(model, "parent"):
                self._tell("/v1/unload_lora_adapter", {"lora_name": model["id"]})
        self._tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        self._model = {**self._served(), "id": name}

    def weights(self) -> str:
        """What it calls its weights; a server that was started again has forgotten the name. Raises ServerError."""
        return str(_member(self._ask("/weight_info", None), "weight_version"))

    def checksums(self) -> dict[str, set[str]]:
        """The SHA-256 of each tensor of its model, of every replica; none of those that are split over GPUs.

        Of what it computes with, if it was started with the extension (vllm_extension/), else of its parameters.

        Raises:
            ServerError: It gives none.
        """
        try:
            workers = _member(self._ask("/collective_rpc", {"method": "computed_checksums"}), "results")
        except ServerError:
            workers = [_member(self._ask("/weight_checker", {"action": "checksum"}), "checksums")]
        found: dict[str, set[str]] = {}
        for worker in workers if isinstance(workers, list) else []:
            for key, checksum in worker.items() if isinstance(worker, dict) else ():
                place, _, name = key.rpartition(":")  # "dp0:pp0:pcp0:tp0:model.norm.weight"
                if not place.endswith("tp0"):
                    return {}
                found.setdefault(name, set()).add(str(checksum))
        if not found:
            raise ServerError(f"{self.url}: a reply without checksums")
        return found

    def dtype(self) -> torch.dtype:
        """The precision of its weights. Raises ServerError."""
        config = _member(self._ask("/server_info?config_format=json", None), "vllm_config")
        name = str(_member(_member(config, "model_config"), "dtype"))
        if name not in _DTYPES:
            raise ServerError(f"{self.url}: an unknown precision: {shown(name, 40)}")
        return _DTYPES[name]

    def context(self) -> int:
        """The most tokens of a prompt and a response. Raises ServerError."""
        found = self._served().get("max_model_len")
        return found if isinstance(found, int) else 2**31

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object in reply to a request; {} for another reply.

        Raises:
            ServerError: There is none.
        """
        reply = self._ask(path, body or {})
        return reply if isinstance(reply, dict) else {}

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The one choice of a completion. Raises ServerError."""
        choice: dict[str, Any] = _first(
            self.post("/v1/completions", {"model": self._served()["id"], **body}), "choices", self.url
        )
        return choice

    def _served(self) -> dict[str, Any]:
        if not self._model:
            self._model = {"id": "", **_first(self._ask("/v1/models", None), "data", self.url)}
        return self._model

    def _ask(self, path: str, body: Mapping[str, Any] | None, timeout: float | None = None) -> Any:
        content = self._tell(path, body, timeout)
        if not content:
            return {}
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServerError(f"{self.url}{path}: a reply that is no JSON") from error

    def _tell(self, path: str, body: Mapping[str, Any] | None, timeout: float | None = None) -> bytes:
        """The reply to a request. Raises ServerError where there is none, or one of an error."""
        data = None if body is None else json.dumps(body).encode("ascii")
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout or self._timeout) as reply:
                content: bytes = reply.read(LARGEST_REPLY + 1)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            refused = error.code in _REFUSED
            raise ServerError(f"{self.url}{path}: {error.code}: {shown(said, 100)}", refused) from error
        except (OSError, ValueError) as error:
            raise ServerError(f"{self.url}{path}: {reason_of(error, 80)}") from error
        if len(content) > LARGEST_REPLY:
            raise ServerError(f"{self.url}{path}: a reply of more than {LARGEST_REPLY} bytes")
        return content


def _member(reply: Any, name: str) -> Any:
    return reply.get(name) if isinstance(reply, dict) else None


def _first(reply: Any, name: str, url: str) -> dict[str, Any]:
    """The first object of a list in a reply. Raises ServerError."""
    listed = _member(reply, name)
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        raise ServerError(f"{url}: a reply without {name}: {shown(str(reply), 60)}")
    return listed[0]
