"""Environments behind a server of OpenEnv (Meta, Hugging Face), as `environment.use = "openenv:http://HOST:PORT"`.

Its WebSocket is spoken, where a connection is a session: {"type": "reset" or "step", "data"} is answered by
{"type": "observation", "data": {"observation", "reward", "done"}} or {"type": "error", "data": {"message", "code"}}.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from proxlm.environments.protocol import Answer, Task
from proxlm.errors import ConfigError, RunError
from proxlm.text import one_line, reason_of, shown

# Bytes of one answer.
LARGEST_ANSWER = 2**22
# Seconds before the first connection that failed is tried again; they double.
FIRST_WAIT = 0.25
# The codes of an action that the environment's schema refuses, and of a server without room for one more session.
_REFUSED, _FULL = "VALIDATION_ERROR", "CAPACITY_REACHED"


class OpenEnv:
    """One session on a server; the reply is an action. What the server cannot do is an error, and never a reward.

    Args:
        url: of the server, http:// or https://.
        action: the field of the action that the reply fills; "": the only one that its schema requires, and where it
            requires several, the reply is the action, a JSON object.
        observation: the field of an observation that is said; "": the only text in it, else all of it as JSON.
        prompt: what is said before the first observation.
        reset: what the environment's reset is given beside the seed of the task.
        headers: of the requests.
        timeout: seconds for a connection, and for an answer.
        retries: how often a connection that failed is tried again, before the first turn.

    Raises:
        ConfigError: the server is not there, or is none of OpenEnv's.
    """

    def __init__(
        self,
        url: str,
        action: str = "",
        observation: str = "",
        prompt: str = "",
        reset: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
        retries: int = 4,
    ) -> None:
        if timeout <= 0 or retries < 0:
            raise ValueError(
                f"timeout = {timeout:g} and retries = {retries}: must be more than 0, and not less"
            )
        self._parts = _parts(url)
        self._url, self._headers = url.rstrip("/"), dict(headers or {})
        self._timeout, self._retries = timeout, retries
        self._observation, self._prompt, self._reset = observation, prompt, dict(reset or {})
        self._connect = _client(url)
        schema = _action_schema(self._url, tuple(sorted(self._headers.items())), timeout)
        self._field, self._is_text = _field_of(schema, action, url)
        self._session, self._socket = ExitStack(), None  # type: ExitStack, Any

    def reset(self, task: Task) -> str:
        data = {"seed": task.seed % 2**31, **self._reset}
        for attempt in range(self._retries + 1):
            try:
                self._open()
                return self._prompt + self._told(self._ask({"type": "reset", "data": data}))
            except _FailedError as error:
                self.close()
                if not error.again or attempt == self._retries:
                    raise RunError(f"{shown(self._url)}: {error}") from error
                time.sleep(FIRST_WAIT * 2**attempt)
        raise AssertionError

    def step(self, reply: str) -> Answer:
        try:
            action = self._action(reply)
            data = self._ask({"type": "step", "data": action})
        except _RefusedError as error:
            return f"This is no action: {error}.", 0.0, False
        except _FailedError as error:
            raise RunError(f"{shown(self._url)}: {error}") from error
        reward, done = data.get("reward"), data.get("done", False)
        if not isinstance(reward, int | float | None) or not math.isfinite(reward or 0.0):
            raise RunError(f"{shown(self._url)}: a reward that is no number: {shown(str(reward), 40)}")
        return self._told(data), float(reward or 0.0), bool(done)

    def close(self) -> None:
        """End the session, which frees its place on the server."""
        socket, self._socket = self._socket, None
        with suppress(Exception):  # nothing is lost with it
            if socket is not None:
                socket.send('{"type": "close"}')
        with suppress(Exception):
            self._session.close()

    def _open(self) -> None:
        address = self._parts._replace(scheme="wss" if self._parts.scheme == "https" else "ws")
        more: dict[str, Any] = {"proxy": None} if _is_here(self._parts.hostname or "") else {}
        try:
            opened = self._connect(
                address.geturl().rstrip("/") + "/ws",
                additional_headers=self._headers,
                open_timeout=self._timeout,
                close_timeout=1.0,
                max_size=LARGEST_ANSWER,
                **more,
            )
            self._socket = self._session.enter_context(opened)
        except Exception as error:  # of the system, of TLS, and of the handshake
            raise _FailedError(f"no connection: {reason_of(error)}", again=True) from error

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The data of the answer to a message. Raises _FailedError, or _RefusedError for an action."""
        try:
            self._socket.send(json.dumps(message))
            answer = json.loads(self._socket.recv(timeout=self._timeout))
            kind, data = answer["type"], answer["data"]
            if kind == "error":
                code, said = str(data.get("code")), shown(one_line(str(data.get("message"))), 200)
            elif kind != "observation" or not isinstance(data, dict):
                raise ValueError(f"an answer of type {shown(str(kind), 40)}")
        except TimeoutError:
            raise _FailedError(f"no answer within {self._timeout:g} seconds") from None
        except Exception as error:  # closed, too large, no JSON, not of this form
            raise _FailedError(f"no usable answer: {reason_of(error)}", again=True) from error
        if kind != "error":
            return data
        if code == _REFUSED and message["type"] == "step":
            raise _RefusedError(f"{said} {_details(data)}".strip())
        raise _FailedError(f"{code}: {said}", again=code == _FULL)

    def _action(self, reply: str) -> dict[str, Any]:
        """The action that a reply stands for. Raises _RefusedError."""
        if self._field and self._is_text:
            return {self._field: reply}
        try:
            value = json.loads(reply)
        except (ValueError, RecursionError):
            raise _RefusedError("it must be JSON" if self._field else "it must be a JSON object") from None
        if self._field:
            return {self._field: value}
        if not isinstance(value, dict):
            raise _RefusedError("it must be a JSON object")
        return value

    def _told(self, data: Mapping[str, Any]) -> str:
        """The text of an observation."""
        observation = data.get("observation")
        if not isinstance(observation, dict):
            return (
                observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
            )
        fields = {k: v for k, v in observation.items() if k not in ("done", "reward", "metadata")}
        if self._observation:
            if self._observation not in observation:
                raise RunError(
                    f"{shown(self._url)}: an observation has no field {shown(self._observation, 40)}"
                )
            said = observation[self._observation]
            return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        texts = [value for value in fields.values() if isinstance(value, str)]
        return texts[0] if len(texts) == 1 else json.dumps(fields, ensure_ascii=False)


class _FailedError(Exception):
    """The server gave no answer. again: a new connection may be better."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class _RefusedError(Exception):
    """The reply is no action of the environment."""


def _parts(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ConfigError(
            f'environment.use = "openenv:{shown(url)}": must be openenv:http://HOST:PORT; a key goes into'
            " environment.args.headers"
        )
    return parts._replace(query="", fragment="")


def _client(url: str) -> Callable[..., Any]:
    try:
        from websockets.sync.client import connect
    except ImportError as error:
        raise ConfigError(f'openenv:{shown(url)}: needs websockets: pip install "proxlm[openenv]"') from error
    return connect


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=16)
def _action_schema(url: str, headers: tuple[tuple[str, str], ...], timeout: float) -> dict[str, Any]:
    """The JSON schema of the server's actions. Raises ConfigError."""
    parts = _parts(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path}/schema", headers=dict(headers))
        with connection.getresponse() as response:
            found = json.loads(response.read(LARGEST_ANSWER))["action"]
        if response.status != 200 or not isinstance(found.get("properties"), dict):
            raise ValueError(f"HTTP {response.status}")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"openenv:{shown(url)}: no server of OpenEnv answers there: {reason_of(error)}"
        ) from error
    finally:
        connection.close()
    return dict(found)


def _field_of(schema: Mapping[str, Any], action: str, url: str) -> tuple[str, bool]:
    """The field of an action that a reply fills, "" for none, and whether it is a text."""
    fields, required = schema["properties"], list(schema.get("required") or [])
    if action and action not in fields:
        known = ", ".join(fields)
        raise ConfigError(
            f'environment.args.action = "{shown(action, 40)}": actions of openenv:{shown(url)} have {known}'
        )
    if not action and len(required) == 1:
        action = required[0]
    return action, bool(action) and fields.get(action, {}).get("type", "string") == "string"


def _details(data: Mapping[str, Any]) -> str:
    """Which fields the server's validation found wrong, and why."""
    errors = data.get("errors")
    found = [error for error in errors if isinstance(error, dict)][:3] if isinstance(errors, list) else []
    said = (f"{'.'.join(map(str, error.get('loc', ())))}: {error.get('msg')}" for error in found)
    return shown(one_line("; ".join(said)), 200)
