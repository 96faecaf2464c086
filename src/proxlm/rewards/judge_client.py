"""One question to a server that speaks OpenAI's chat completions, and the patience to ask it again.

The server is not trusted: what it sends is bounded in bytes, and in seconds from the first to the last one. A
redirect would carry the key elsewhere, and is refused. What it says in an error is shown short and without secrets.
"""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from proxlm.text import one_line, reason_of, shown

ENDPOINT = "/chat/completions"
# Bytes of a reply with its headers.
LARGEST_REPLY = 2**22
# Seconds: the first wait before a question is asked again (it doubles), and the longest of all.
FIRST_WAIT, LONGEST_WAIT = 0.5, 120.0
_SLICE = 0.1
T = TypeVar("T")
_TRY_AGAIN = {408, 409, 425, 429, *range(500, 600)}
# Statuses that every other question would get, too.
_FOR_ALL = {401, 402, 403, 404, 405, *range(300, 400)}


class JudgeError(Exception):
    """A question without an answer.

    Args:
        reason: Why, for a message.
        again: Whether to ask again.
        wait: The seconds to wait before that, if the server said so.
        for_all: Whether no other question will fare better.
    """

    def __init__(
        self, reason: str, again: bool = True, wait: float | None = None, for_all: bool = False
    ) -> None:
        super().__init__(reason)
        self.again, self.wait, self.for_all = again, wait, for_all


class Stopped(Exception):  # noqa: N818 - no error: the answer is not wanted any more
    """Nobody waits for the answer."""


class Reply(NamedTuple):
    """A chat completion.

    Attributes:
        text: What the model has written.
        finish: The server's reason why it ended: "stop", "length", "content_filter", …
    """

    text: str
    finish: str


class Budget:
    """How many requests may be made in all; 0: any number. `made` counts them, from all threads."""

    def __init__(self, most: int) -> None:
        self.most, self.made = most, 0
        self._lock = threading.Lock()

    def take(self) -> None:
        """Count a request that is about to be made. Raises JudgeError if there are none left."""
        with self._lock:
            if self.most and self.made >= self.most:
                raise JudgeError(f"max_requests = {self.most} are made", again=False, for_all=True)
            self.made += 1


class ChatClient:
    """Asks one server.

    Args:
        url: The server's URL, with or without /chat/completions at its end; of a bare host, /v1 is asked.
        key: What stands behind "Bearer"; "": no such header.
        timeout: Seconds for one request, all of it.
        retries: How often a question is asked again.
        budget: The requests that may be made.

    Raises:
        ValueError: The URL or the key cannot be one.
    """

    def __init__(self, url: str, key: str, timeout: float, retries: int, budget: Budget) -> None:
        try:
            parts = urlsplit(url)
            self._port = parts.port
        except ValueError as error:
            raise ValueError(f"url: no URL: {reason_of(error)}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f'url = "{shown(url)}": needs http:// or https:// and a host')
        if parts.username is not None:
            raise ValueError("url: holds a user or a password; give the argument key instead")
        target = url.partition("://")[2]
        if any(not "!" <= character <= "~" for character in target):
            raise ValueError(f'url = "{shown(url)}": holds white space or letters that must be escaped')
        if not key.isascii() or not key.isprintable():
            raise ValueError("key: holds characters that no header may have")
        path = parts.path.rstrip("/") or "/v1"
        path = path if path.endswith(ENDPOINT) else path + ENDPOINT
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        self._target = f"{path}?{parts.query}" if parts.query else path
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{parts.scheme}://{host}{f':{self._port}' if self._port else ''}{path}"
        self._headers = {"Content-Type": "application/json", "Connection": "close", "User-Agent": "proxlm"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout, self._retries, self._budget = timeout, retries, budget
        self._jitter = random.Random()

    def answer(
        self, body: Mapping[str, Any], read: Callable[[str], float | None], stop: threading.Event
    ) -> float:
        """The number in the server's reply.

        Args:
            body: The request.
            read: The reply's text → the number, or None if it holds none: then the question is asked again.
            stop: Set when nobody waits any more.

        Raises:
            JudgeError: There is no answer; the message names the URL.
            Stopped: `stop` was set.
        """

        def number(reply: Reply) -> float:
            if reply.finish == "length":
                # What stands in half a reply may be a quotation.
                raise JudgeError("the reply was cut off; raise max_tokens")
            found = read(reply.text)
            if found is None:
                raise JudgeError(f"no verdict in the reply: {_cut(reply.text)}")
            return found

        return self.ask(body, number, stop)

    def ask(self, body: Mapping[str, Any], read: Callable[[Reply], T], stop: threading.Event) -> T:
        """What `read` makes of the server's reply; where it raises a JudgeError, the question is asked again.

        Arguments and errors as in `answer`.
        """
        for attempt in range(self._retries + 1):
            try:
                self._budget.take()
                return read(self._ask(body, stop))
            except JudgeError as error:
                wait = FIRST_WAIT * 2**attempt if error.wait is None else error.wait
                if not error.again or attempt == self._retries or wait > LONGEST_WAIT:
                    asked = f" (asked {attempt + 1} times)" if attempt else ""
                    raise JudgeError(f"{self.url}: {error}{asked}", False, None, error.for_all) from None
                # Up to a quarter longer, so that questions which failed together do not come together again.
                if stop.wait(wait * (1 + self._jitter.random() / 4)):
                    raise Stopped from None
        raise AssertionError

    def _ask(self, body: Mapping[str, Any], stop: threading.Event) -> Reply:
        """One reply. Raises JudgeError."""
        until = time.monotonic() + self._timeout
        connection = self._connection(until, stop)
        try:
            data = json.dumps(body, ensure_ascii=True).encode("ascii")
            connection.connect()
            connection.sock.settimeout(max(0.01, until - time.monotonic()))
            connection.request("POST", self._target, data, self._headers)
            with connection.getresponse() as response:
                content = response.read(LARGEST_REPLY)
        except TimeoutError:
            raise JudgeError(f"no whole reply within {self._timeout:g} s (timeout)") from None
        except ssl.SSLCertVerificationError as error:
            raise JudgeError(f"its certificate: {error.verify_message}", again=False, for_all=True) from None
        except http.client.HTTPException as error:
            raise JudgeError(f"no HTTP: {type(error).__name__}: {reason_of(error, 60)}") from None
        except (OSError, ValueError) as error:
            raise JudgeError(f"{getattr(error, 'strerror', None) or reason_of(error, 100)}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise _refusal(response, content)
        return _reply(content)

    def _connection(self, until: float, stop: threading.Event) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)

        def response(sock: socket.socket, **more: Any) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(_Bounded(sock, until, stop), **more)  # type: ignore[arg-type]

        connection.response_class = response  # type: ignore[assignment]
        return connection


class _Bounded(io.RawIOBase):
    """What a socket receives, until a time and up to a number of bytes."""

    def __init__(self, sock: socket.socket, until: float, stop: threading.Event) -> None:
        super().__init__()
        self._socket, self._until, self._stop, self._left = sock, until, stop, LARGEST_REPLY
        # HTTPConnection closes a socket that the server will close; this keeps it open until all is read.
        self._open = sock.makefile("rb", buffering=0)

    def makefile(self, *_: Any) -> io.BufferedReader:
        """Itself, buffered: all that HTTPResponse wants of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._open.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._stop.is_set():
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(min(left, _SLICE))
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                continue
            self._left -= count
            if self._left <= 0:
                raise JudgeError(f"a reply of more than {LARGEST_REPLY >> 20} MiB")
            return count
        raise Stopped


def _refusal(response: http.client.HTTPResponse, content: bytes) -> JudgeError:
    """The error for a status that is not 200."""
    status = response.status
    if 300 <= status < 400:
        return JudgeError(
            f"HTTP {status}: redirects are not followed; give the URL that it leads to", False, None, True
        )
    said = _cut(content[:4096].decode("utf-8", "replace"))
    advice = {401: "; is the argument key right?", 404: "; are url and model right?"}.get(status, "")
    reason = f"HTTP {status}{advice}{said and f' {said}'}"
    wait = _seconds(response.headers.get("Retry-After", ""))
    return JudgeError(reason, status in _TRY_AGAIN, wait, status in _FOR_ALL)


def _seconds(retry_after: str) -> float | None:
    """The seconds that a header Retry-After asks for: a number, or a date; None if it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _reply(content: bytes) -> Reply:
    """A chat completion. Raises JudgeError if it has no text."""
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, RecursionError):
        raise JudgeError(
            f"a reply that is not JSON: {_cut(content[:4096].decode('utf-8', 'replace'))}"
        ) from None
    except (LookupError, TypeError):
        raise JudgeError("a reply without choices[0].message.content") from None
    if not isinstance(text, str):
        raise JudgeError("a reply whose choices[0].message.content is no text")
    return Reply(text, str(choice.get("finish_reason")))


def _cut(text: str) -> str:
    """The beginning of a foreign text for a message, in quotes; "" of an empty one."""
    line = shown(one_line(text), 60)
    return f'"{line}"' if line else ""
