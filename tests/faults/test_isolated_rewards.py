"""Rewards in a process of their own: one that hangs, dies, exits or leaks costs its batch and nothing else."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from pathlib import Path

import pytest

from proxlm.config import RewardSettings, RewardTerm
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import build_reward
from proxlm.rewards.isolated import components_of
from proxlm.rewards.worker import receive
from proxlm.types import Completion

REWARDS = '''
import asyncio, os, re, signal, sys, time

kept = []
ANSWERS = {
    "no JSON": b"nope",
    "too few": b'{"parts": {"n": {"values": [1], "per_token": null, "problems": {}}}}',
}

def score(completions):
    """What the first text asks for."""
    word = completions[0].text
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    if word == "sys.exit":
        raise SystemExit(4)
    if word == "interrupt":
        raise KeyboardInterrupt
    if word == "hang":
        time.sleep(600)
    if word == "hang in C":
        re.match("(a+)+$", "a" * 40 + "b")
    if word == "leak":
        kept.append(bytearray(2**31))
    if word == "raise":
        raise ValueError("no")
    if word in ANSWERS:
        os.write(int(sys.argv[1]), len(ANSWERS[word]).to_bytes(4, "big") + ANSWERS[word])
    if word == "print":
        print("to nowhere in particular")
    return {"n": [float(c.fields.get("n", 0)) for c in completions], "pid": [float(os.getpid())] * len(completions)}

async def later(completions):
    await asyncio.sleep(0.01)
    return [[float(t) for t in c.tokens] for c in completions]
'''
FAILED = {
    "kill": r"ended its process \(signal 9, SIGKILL\)",
    "exit": r"ended its process \(status 3\)",
    "sys.exit": "raised SystemExit: 4",
    "hang": r"took longer than 4 s \(reward\.timeout\); its process was ended",
    "hang in C": r"took longer than 4 s \(reward\.timeout\); its process was ended",
    "leak": "raised MemoryError",
    "raise": r"raised ValueError: no at .*rewards\.py:\d+",
}
NO_ANSWERS = (
    b"nope",
    b"\xff",
    b"[1]",
    b"[" * 9999,
    b"{}",
    b'{"parts": []}',
    b'{"parts": {"n": {"values": 3, "per_token": null, "problems": {}}}}',
    b'{"parts": {"n": {"values": ["x", "y"], "per_token": null, "problems": {}}}}',
    b'{"parts": {"n": {"values": [1, 2], "per_token": [1], "problems": {}}}}',
    b'{"parts": {"n": {"values": [1, 2], "per_token": null, "problems": {"a": "b"}}}}',
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("isolated") / "rewards.py"
    path.write_text(REWARDS)
    return path


def batch(word: str) -> list[Completion]:
    return [Completion("p", word, (1, 2), fields={"n": n}) for n in (3, 4)]


def test_every_way_to_fail_costs_its_batch_alone(file, caplog):
    config = RewardSettings(
        use=f"{file}:score", isolate=True, timeout=4.0, memory_gb=1.0, on_error="score", error_score=-1.0,
        weights={"pid": 0.0},
    )  # fmt: skip
    reward = build_reward(config)
    first = reward.score(batch("print"))
    assert first.total.tolist() == [3.0, 4.0]
    assert first.components["pid"][0] != os.getpid()
    for word, message in FAILED.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            scores = reward.score(batch(word))
        assert (scores.total.tolist(), scores.failed) == ([-1.0, -1.0], 2), word
        assert any(re.search(message, line) for line in caplog.messages), caplog.messages
        assert reward.score(batch("fine")).total.tolist() == [3.0, 4.0], word
    # kill, exit, two that hang, and the one that leaked.
    assert reward._isolated.restarts == 5


def test_what_else_is_written_to_its_socket_is_no_score(file, caplog):
    """By a library that writes to every open file, for instance; the process is then started again."""
    config = RewardSettings(
        use=f"{file}:score", isolate=True, on_error="score", error_score=-1.0, weights={"pid": 0.0}
    )
    reward = build_reward(config)
    for word in ("no JSON", "too few"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            scores = reward.score(batch(word))
        assert (scores.total.tolist(), scores.failed) == ([-1.0, -1.0], 2)
        assert any("something else wrote to its socket" in line for line in caplog.messages), caplog.messages
    assert reward.score(batch("fine")).total.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_no_other_answer_is_taken_for_scores(answer):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(len(answer).to_bytes(4, "big") + answer)
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            components_of(receive(ours), batch("fine"))


def test_by_default_a_failure_stops_the_run(file):
    reward = build_reward(RewardSettings(use=f"{file}:score", isolate=True))
    with pytest.raises(RewardError, match=r"ended its process \(signal 9, SIGKILL\); fix it"):
        reward.score(batch("kill"))


def test_terms_token_rewards_coroutines_and_built_ins(file):
    terms = {
        "own": RewardTerm(use=f"{file}:later"),
        "size": RewardTerm(use="length", args={"target": 2}, weight=10.0),
    }
    plain, isolated = (
        build_reward(RewardSettings(terms=terms, isolate=flag)).score(batch("x")) for flag in (0, 1)
    )
    assert isolated.per_token.tolist() == plain.per_token.tolist() == [1, 2, 1, 2]
    assert isolated.total.tolist() == plain.total.tolist()
    assert isolated.components == plain.components


def test_the_process_ends_with_the_reward(file):
    reward = build_reward(RewardSettings(use=f"{file}:score", isolate=True))
    pid = int(reward.score(batch("fine")).components["pid"][0])
    os.kill(pid, 0)
    del reward
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


def test_a_python_function_cannot_be_isolated():
    with pytest.raises(
        ConfigError, match=r"reward\.isolate: a function given in Python cannot be sent to another process"
    ):
        build_reward(RewardSettings(isolate=True), lambda completions: [0.0] * len(completions))


def test_a_keyboard_interrupt_in_the_process_ends_the_run(file):
    reward = build_reward(RewardSettings(use=f"{file}:score", isolate=True, on_error="score"))
    with pytest.raises(KeyboardInterrupt):
        reward.score(batch("interrupt"))
    assert reward.score(batch("fine")).failed == 0
