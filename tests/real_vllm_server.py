"""vLLM itself, as a server in an environment of its own (`make test-vllm` makes it)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from proxlm.engine import vllm_extension

# The Python of vLLM's environment.
PYTHON = os.environ.get("PROXLM_TEST_VLLM", "")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="needs vLLM in an environment of its own: make test-vllm")

# On a CPU: little memory, one thread, and no compiling, which takes half a minute for these small models.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
# proxlm's file for servers, and one of the tests, which makes a layer stale.
EXTENSIONS = [Path(vllm_extension.__file__).parent, Path(__file__).parent / "on_vllm"]
START_SECONDS = 900.0  # of 25 seconds' work, on a busy machine


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


class RealServer:
    """A server's process and its children.

    Args:
        folder: The model that it starts with.
        log: Where its output goes.
        mode: Of its log-probs.
        more: Further arguments.
    """

    def __init__(self, folder: Path, log: Path, *more: str, mode: str = "processed_logprobs") -> None:
        self._port, self._log = free_port(), log
        self.url = f"http://127.0.0.1:{self._port}"
        # The command `vllm` of the CPU package ends at once: it asks for the version of a package named vllm.
        self._command = [
            PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1",
            "--port", str(self._port), "--dtype", "float32", "--logprobs-mode", mode, "--enforce-eager",
            "--worker-extension-cls", "vllm_kept_layer.KeptLayer", *more,
        ]  # fmt: skip
        self._environment = os.environ | ENVIRONMENT
        self._environment["PYTHONPATH"] = os.pathsep.join(map(str, EXTENSIONS))
        self.start()

    def start(self) -> None:
        """Start it, also again. `wait` says when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5.0):
                return
            time.sleep(0.5)
        raise AssertionError(f"vLLM has not started: {self._log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """End it and its children, as kill -9 does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def serving(*servers: RealServer) -> Iterator[None]:
    """Servers that answer; they are killed at the end."""
    try:
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            server.kill()
