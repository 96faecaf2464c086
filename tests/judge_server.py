"""A server that speaks OpenAI's chat completions on this machine, and does what a test tells it."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, str], Any]


class JudgeServer:
    """Counts what it is asked. `answer` gets the handler and the question, and returns a text or writes by itself."""

    def __init__(self, answer: Answer) -> None:
        self.questions: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()
        self.answer = answer
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.questions.append(body["messages"][-1]["content"])
            self.bodies.append(body)
            self.paths.append(handler.path)
            self.keys.append(handler.headers["Authorization"])
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        try:
            text = self.answer(handler, body["messages"][-1]["content"])
        except OSError:
            text = None  # the client has gone
        finally:
            # Before the reply: once the client has that, it may ask again while this thread still waits for the lock.
            with self.lock:
                self.now -= 1
        if text is not None:
            with suppress(OSError):
                reply(handler, text)


def reply(handler: BaseHTTPRequestHandler, text: Any, finish: str = "stop") -> None:
    """Send a chat completion with this text."""
    send(handler, 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}))


def send(handler: BaseHTTPRequestHandler, status: int, text: str, **headers: str) -> None:
    """Send a status and a text."""
    data = text.encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def serving(answer: Answer, certificate: Path | None = None) -> Iterator[JudgeServer]:
    """A server for the time of a block, with HTTPS if it has a certificate, a file with its key."""
    server = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.handle(self)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http{'s' * (certificate is not None)}://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
