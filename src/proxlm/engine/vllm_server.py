"""One vLLM server: its HTTP interface, and in what state it is."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal

from proxlm.text import reason_of, shown

# Bytes of a reply.
LARGEST_REPLY = 2**26
# Answers that mean the server lives and the request was wrong: it would be so with every server.
_REFUSED = range(400, 500)


class ServerError(Exception):
    """A request without a usable answer.

    Args:
        reason: Why, for a message.
        refused: Whether the server understood the request and refuses it, so that no other one will do better.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


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
        self._model = ""

    def is_alive(self) -> bool:
        """Whether it says that it can work."""
        try:
            self._ask("/health", None)
        except ServerError:
            return False
        return True

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON reply to a request.

        Raises:
            ServerError: There is none.
        """
        return self._ask(path, body or {})

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The one choice of a completion. Raises ServerError."""
        if not self._model:
            self._model = str(self._ask("/v1/models", None)["data"][0]["id"])
        reply = self._ask("/v1/completions", {"model": self._model, **body})
        try:
            choice: dict[str, Any] = reply["choices"][0]
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"{self.url}: a reply without a choice: {shown(str(reply), 60)}") from error
        return choice

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode("ascii")
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as reply:
                content = reply.read(LARGEST_REPLY + 1)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            refused = error.code in _REFUSED
            raise ServerError(f"{self.url}{path}: {error.code}: {shown(said, 100)}", refused) from error
        except (OSError, ValueError) as error:
            raise ServerError(f"{self.url}{path}: {reason_of(error, 80)}") from error
        if len(content) > LARGEST_REPLY:
            raise ServerError(f"{self.url}{path}: a reply of more than {LARGEST_REPLY} bytes")
        if not content:
            return {}
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServerError(f"{self.url}{path}: a reply that is no JSON") from error
