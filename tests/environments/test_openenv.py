"""Servers of OpenEnv: what is sent and said, sessions, and what a server does wrong."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.sync.server import serve

from proxlm.config import EnvironmentSettings, RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.protocol import Task
from proxlm.environments.resolve import resolve
from proxlm.errors import ConfigError, RunError
from proxlm.types import Prompt
from small_models import tiny_model

TEXT = {
    "properties": {"message": {"type": "string"}, "metadata": {"type": "object"}},
    "required": ["message"],
}


class Server:
    """Speaks the protocol as openenv-core 0.3.0 does; `act` gives the data of the answer to a step."""

    def __init__(self, schema=TEXT, act=None, places=100, refuse=0):
        self.schema, self.act, self.places, self.refuse = schema, act or self.echo, places, refuse
        self.heard, self.open, self.most = [], 0, 0
        self.guard = threading.Lock()

    @staticmethod
    def echo(data):
        return {"observation": {"text": f"you said {data['message']}"}, "reward": 0.5, "done": False}

    def answer(self, message):
        if message["type"] == "reset":
            return {
                "observation": {"text": f"seed {message['data']['seed'] % 100}"},
                "reward": None,
                "done": False,
            }
        return self.act(message["data"])

    def talk(self, socket):
        with self.guard:
            self.open += 1
            full = self.open > self.places
            self.most = max(self.most, self.open)
        try:
            for text in socket:
                message = json.loads(text)
                self.heard.append(message)
                if message["type"] == "close":
                    break
                if full:
                    socket.send(error("CAPACITY_REACHED", "no room"))
                    break
                data = self.answer(message)
                socket.send(
                    data if isinstance(data, str) else json.dumps({"type": "observation", "data": data})
                )
        finally:
            with self.guard:
                self.open -= 1

    def page(self, connection, request):
        if request.path == "/schema":
            body = json.dumps({"action": self.schema, "observation": {}, "state": {}}).encode()
            return Response(200, "OK", Headers({"Content-Length": str(len(body))}), body)
        with self.guard:
            self.refuse -= 1
            return connection.respond(503, "later") if self.refuse >= 0 else None


def error(code, said, **more):
    return json.dumps({"type": "error", "data": {"message": said, "code": code, **more}})


@contextmanager
def served(**how):
    server = Server(**how)
    with serve(server.talk, "127.0.0.1", 0, process_request=server.page) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield server, f"openenv:http://127.0.0.1:{listening.socket.getsockname()[1]}"


def made(use, **args):
    return resolve(EnvironmentSettings(use=use, args={"timeout": 5.0, **args}))()


def test_a_conversation_is_a_session():
    with served() as (server, url):
        environment = made(url, prompt="Play. ", reset={"level": 2})
        assert environment.reset(Task(seed=142)) == "Play. seed 42"
        assert environment.step("hello") == ("you said hello", 0.5, False)
        environment.close()
        deadline = time.monotonic() + 5
        while server.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.open == 0
    assert server.heard[0] == {"type": "reset", "data": {"seed": 142, "level": 2}}
    assert server.heard[1:] == [{"type": "step", "data": {"message": "hello"}}, {"type": "close"}]


def test_actions_that_are_numbers_or_objects():
    def act(data):
        return {"observation": {"heard": data}, "reward": 1, "done": True}

    number = {"properties": {"column": {"type": "integer"}}, "required": ["column"]}
    with served(schema=number, act=act) as (_, url):
        environment = made(url)
        environment.reset(Task())
        assert environment.step(" 3\n") == ('{"heard": {"column": 3}}', 1.0, True)
        assert environment.step("three") == ("This is no action: it must be JSON.", 0.0, False)
    both = {"properties": {"x": {}, "y": {}}, "required": ["x", "y"]}
    with served(schema=both, act=act) as (_, url):
        environment = made(url)
        environment.reset(Task())
        assert environment.step('{"x": 1, "y": "b"}')[0] == '{"heard": {"x": 1, "y": "b"}}'
        for reply in ("3", "[" * 5000, "x"):
            assert environment.step(reply) == ("This is no action: it must be a JSON object.", 0.0, False)
        assert made(url, action="x", observation="heard")._field == "x"


def test_an_action_that_the_schema_refuses_is_answered():
    def act(data):
        return error("VALIDATION_ERROR", "Invalid message", errors=[{"loc": ["message"], "msg": "too long"}])

    with served(act=act) as (_, url):
        environment = made(url)
        environment.reset(Task())
        said = "This is no action: Invalid message message: too long."
        assert environment.step("x") == (said, 0.0, False)


WRONG = {
    "an error": (error("EXECUTION_ERROR", "boom"), "EXECUTION_ERROR: boom"),
    "no JSON": ("nonsense", "no usable answer"),
    "another type": (json.dumps({"type": "state", "data": {}}), "type state"),
    "no object": (json.dumps([1]), "no usable answer"),
    "too large": (
        json.dumps({"type": "observation", "data": {"observation": "x" * 2**22}}),
        "no usable answer",
    ),
    "a reward that is none": ({"observation": "x", "reward": "much", "done": False}, "reward"),
    "a reward that is not finite": ({"observation": "x", "reward": float("inf"), "done": False}, "reward"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_server_does_wrong_is_an_error_and_no_reward(case):
    answer, said = WRONG[case]
    with served(act=lambda data: answer) as (_, url):
        environment = made(url)
        environment.reset(Task())
        with pytest.raises(RunError, match=said):
            environment.step("x")
        environment.close()


def test_an_answer_that_does_not_come_has_a_time_limit():
    def act(data):
        time.sleep(1.0)

    with served(act=act) as (_, url):
        environment = made(url, timeout=0.2)
        environment.reset(Task())
        with pytest.raises(RunError, match=r"no answer within 0\.2 seconds"):
            environment.step("x")


def test_connections_that_fail_are_tried_again_and_not_for_ever():
    with served(refuse=2) as (_, url):
        assert made(url).reset(Task(seed=7)) == "seed 7"
    with served(refuse=9) as (server, url):
        with pytest.raises(RunError, match="no connection"):
            made(url, retries=1).reset(Task())
        assert server.refuse == 7
    with served(places=0) as (_, url), pytest.raises(RunError, match="CAPACITY_REACHED"):
        made(url, retries=1).reset(Task())


def test_a_lost_session_is_counted_and_has_no_row(tokenizer):
    def act(data):
        with server.guard:
            server.steps = getattr(server, "steps", 0) + 1
            fails = server.steps % 3 == 0
        return (
            error("EXECUTION_ERROR", "boom") if fails else {"observation": "ok", "reward": 1.0, "done": True}
        )

    sampling = RolloutSettings(max_new_tokens=3)
    with served(act=act) as (server, url):
        model = tiny_model(tokenizer)
        settings = EnvironmentSettings(use=url)
        spec = MultiTurn(resolve(settings), PlainMessageTokens(tokenizer), settings)
        prompts = [Prompt(i, (), "") for i in range(6)]
        rollout = spec(NativeEngine(model, sampling), prompts, sampling, seed=0, step=0)
        assert server.open == 0  # all sessions are closed
    assert len(rollout) == 4
    assert len(rollout.lost) == 2
    assert "EXECUTION_ERROR: boom" in rollout.lost[0]
    assert rollout.rewards.sum() == 4.0


def test_what_is_wrong_is_said_at_the_door(monkeypatch):
    with served() as (_, url):
        for args, said in (({"action": "move"}, "have message, metadata"), ({"timeout": 0.0}, "timeout = 0")):
            with pytest.raises(ConfigError, match=said):
                resolve(EnvironmentSettings(use=url, args=args))
        monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
        with pytest.raises(ConfigError, match=r'pip install "proxlm\[openenv\]"'):
            made(url)
    for use, said in (
        ("openenv:127.0.0.1:80", "must be openenv:http://HOST:PORT"),
        ("openenv:http://user:word@host", "a key goes into"),
    ):
        with pytest.raises(ConfigError, match=said):
            made(use)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="no server of OpenEnv"):
        made("openenv:http://127.0.0.1:1")
