"""A server that speaks the part of vLLM's interface that proxlm uses, over the native engine; it can fail."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from peft import PeftModel

from proxlm.config import ModelSettings, RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import Request, SampleSeed, SamplingParams
from proxlm.models.forward import token_outputs
from proxlm.models.load import load_language_model
from proxlm.types import Sequences


class StandIn:
    """The server's state.

    Attributes:
        url: Where it listens.
        fault: What is wrong with it: "", "half" (a response without its last log-prob), "none" (no answer), "slow",
            "busy" (503), "stale" (loads nothing), "stale head", "stale tensor" (of layer 1), "stale cache" (samples
            with its first weights), "full cache" (does not empty it), "raw" (log-probs from before the temperature),
            "refuses", "plain" (no development mode).
        tells: Whether it gives checksums.
        faults: How many requests are still to go wrong; −1: all.
        answered: How many completions it has given.
        calls: What it was asked for, in order, but completions.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.Lock()
        self.fault, self.faults, self.answered, self.tells = "", -1, 0, True
        self.calls: list[str] = []
        self.url, self.weights = "", "default"
        self.base, self.adapters = folder, list[str]()
        self.load(folder)
        self.first = self.model

    def load(self, folder: Path) -> None:
        settings = ModelSettings(policy=str(folder), device="cpu")
        before = getattr(self, "model", None)
        if before is not None and self.fault == "stale":
            return
        self.model = load_language_model(settings)
        if before is not None and self.fault == "stale head":
            head = before.network.get_output_embeddings().weight.detach()
            self.model.network.get_output_embeddings().weight.data.copy_(head)

        if before is not None and self.fault == "stale tensor":
            old, new = (m.network.model.layers[1].self_attn.o_proj.weight for m in (before, self.model))
            new.data.copy_(old.detach())

    def checksums(self) -> dict[str, str]:
        """Of each tensor as vLLM keeps it, in float32 on one GPU."""
        found: dict[str, Any] = {}
        for name, tensor in self.model.network.state_dict().items():
            one = re.sub(r"\b[qkv]_proj", "qkv_proj", re.sub(r"\b(gate|up)_proj", "gate_up_proj", name))
            found[one] = found.get(one, b"") + tensor.numpy().tobytes()
            if one.startswith(("lm_head", "model.embed")):
                found[one] += bytes(4 * (-len(tensor) % 64) * tensor.shape[1])
        return {f"dp0:pp0:pcp0:tp0:{name}": sha256(rows).hexdigest() for name, rows in found.items()}

    def goes_wrong(self, fault: str) -> bool:
        """Whether this request is to have a fault."""
        if self.fault != fault or not self.faults:
            return False
        self.faults -= 1
        return True

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        model = self.first if self.fault == "stale cache" else self.model
        if "prompt_logprobs" in body:
            found = token_outputs(self.model, Sequences.from_lists([ids[:1]], [ids[1:]])).logprobs.tolist()
            rows = [{str(t): {"logprob": x}} for t, x in zip(ids[1:], found, strict=True)]
            return {"prompt_logprobs": [None, *rows]}
        params = SamplingParams(
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
            stop_token_ids=tuple(body.get("stop_token_ids", ())),
            seed=SampleSeed(seed=body["seed"]),
        )
        engine = NativeEngine(model, RolloutSettings())
        engine.submit([Request(0, ids, params)])
        done = []
        while not done:
            done = engine.step()
        logprobs = done[0].logprobs[:-1] if "stop" in body and self.goes_wrong("half") else done[0].logprobs
        if self.fault == "raw":
            logprobs = token_outputs(model, Sequences.from_lists([ids], [done[0].tokens])).logprobs.tolist()
        ended = "length" if done[0].finish == "length" else "stop"
        return {"token_ids": done[0].tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": ended}

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return (500 if self.goes_wrong("dead") else 200), None
        if path == "/v1/models":
            adapters = [{"id": name, "parent": "policy"} for name in self.adapters]
            base = {"id": "policy", "parent": None, "max_model_len": self.model.context}
            return 200, {"object": "list", "data": [base, *adapters]}
        if path == "/server_info?config_format=json":
            return 200, {"vllm_config": {"model_config": {"dtype": "torch.float32"}}}
        if path == "/weight_checker" and self.tells:
            assert body == {"action": "checksum"}
            return 200, {"checksums": self.checksums()}
        if path == "/collective_rpc" and body["method"] == "computed_checksums":
            return 500, {"error": "'Worker' object has no attribute 'computed_checksums'"}
        if path == "/weight_info":
            return 200, {"weight_version": self.weights}
        if path == "/v1/completions":
            if body["model"] not in ("policy", *self.adapters):
                return 404, {"error": {"message": "The model does not exist.", "code": 404}}
            sampled = "stop" in body  # not the probe
            if sampled and self.goes_wrong("slow"):
                time.sleep(3.0)
            with self.lock:
                if sampled:
                    if self.goes_wrong("busy"):
                        return 503, {"error": "busy"}
                    if self.goes_wrong("refuses"):
                        return 400, {"error": "too long"}
                    self.answered += 1
                return 200, {"choices": [self.completion(body)]}
        if (self.fault == "plain" or path == "/weight_checker") and not path.startswith("/v1/"):
            return 404, {"detail": "Not Found"}
        self.calls.append(path)
        if path == "/v1/unload_lora_adapter":
            self.adapters.remove(body["lora_name"])
            return 200, "Success: removed"
        if path == "/v1/load_lora_adapter":
            with self.lock:
                self.load(self.base)
                PeftModel.from_pretrained(self.model.network, body["lora_path"]).merge_and_unload()
            self.adapters.append(body["lora_name"])
            return 200, "Success: added"
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            with self.lock:
                self.load(Path(body["kwargs"]["weights_path"]))
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            return 200, {"success": self.fault != "full cache"}
        if path == "/update_weight_version":
            self.weights = body["new_version"]
            return 200, {"success": True, "new_version": self.weights}
        return 200, {"status": path[1:]}


@contextmanager
def serving(folder: Path) -> Iterator[StandIn]:
    """A server in a thread of its own, with the model in a folder."""
    state = StandIn(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: dict[str, Any]) -> None:
            if self.path == "/v1/completions" and "stop" in body and state.goes_wrong("none"):
                self.connection.close()
                return
            status, reply = state.reply(self.path, body)
            content = b"" if reply is None else json.dumps(reply).encode()
            content = reply.encode() if isinstance(reply, str) else content  # as vLLM does for adapters
            with suppress(BrokenPipeError):  # nobody waits for it any more
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
