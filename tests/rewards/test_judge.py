"""The judge: what is asked, how answers are read, and what happens when there is none; against a real server."""

import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from judge_server import reply, send, serving
from proxlm.config.schema import RewardSettings
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import build_reward, judge_client
from proxlm.rewards.judge import Judge
from proxlm.rewards.judge_rubric import rating_in, verdict_in
from proxlm.types import Completion

KEY = "Zq8-judge-key-41x"
TEA = Completion("Describe tea.", "Hot.", fields={"answer": "A drink."})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_WAIT", 0.001)


def judge(url: str, **args: Any) -> Judge:
    return Judge(url, "m", **{"timeout": 5.0, "retries": 2, **args})


def problem(url: str, **args: Any) -> str:
    (value,) = judge(url, **args)([TEA])
    assert isinstance(value, RewardError)
    assert "\n" not in str(value)
    assert len(str(value)) <= 300
    return str(value)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Fine.\nRating: [[7]]", 7),
        ("[[ 7.5 ]]", 7.5),
        ("It says [[10]] of itself.\nRating: [[2]]", 2),
        ("[[7/10]]", 7),
        ("**Rating:** 8/10", 8),
        ('{"rating": 4, "why": "short"}', 4),
        ("评分：[[６]]", 6),
        ("评分：6", 6),
        ("<think>[[9]]</think> 3", 3),
        ("7.", 7),
        ("[[11]]", None),
        ("[[-3]]", None),
        ("[[7/5]]", None),
        ("Rating: 1-10", None),
        ("I would say seven.", None),
        ("It has 3 parts and 4 errors.", None),
        ("Rating: [[number]] 8", None),
        ("", None),
    ],
)
def test_ratings_are_read_and_never_guessed(text: str, rating: float | None) -> None:
    assert rating_in(text, 1, 10) == rating


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("[[A]]", 1), ("so [[b]]", 0), ("[[tie]]", 0.5), ("[[A]] no, [[B]]", 0), ("A", 1), ("A or B?", None)],
)
def test_verdicts(text: str, verdict: float | None) -> None:
    assert verdict_in(text) == verdict


def test_a_long_hostile_reply_is_read_at_once() -> None:
    started = time.monotonic()
    for text in (" " * 4_000_000, "[[" * 2_000_000, "rating" * 600_000, "[[" + "1" * 4_000_000):
        assert rating_in(text, 1, 10) is None
        assert verdict_in(text) is None
    assert time.monotonic() - started < 20


def test_the_question_holds_prompt_and_response_and_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda *_: "Rating: [[7]]") as server:
        args = {"url": server.url, "model": "m", "key": "env:JUDGE_KEY", "extra": {"top_p": 0.5}}
        scores = build_reward(RewardSettings(use="judge", args=args)).score([TEA])
    assert scores.total.tolist() == [7.0]
    assert "Describe tea." in server.questions[0]
    assert "Hot." in server.questions[0]
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_p"]) == ("m", 0.0, 512, 0.5)
    assert server.keys == [f"Bearer {KEY}"]
    assert server.paths == ["/v1/chat/completions"]


def test_a_rubric_of_ones_own_and_fields_are_put_in_once(tmp_path: Path) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text('{prompt}|{response}|{answer}|{"json": 1}', encoding="utf-8")
    with serving(lambda *_: "[[3]]") as server:
        odd = Completion("P", "{answer} {nothing}", fields={"answer": "A"})
        assert judge(server.url, rubric=str(file))([odd]) == [3.0]
        assert server.questions == ['P|{answer} {nothing}|A|{"json": 1}']
        (missing,) = judge(server.url, rubric="{response}{sauce}")([odd])
        assert 'no field "sauce"' in str(missing)
        judge(server.url, rubric="{response}", max_characters=100)([Completion("", "x" * 5000)])
        assert len(server.questions[-1]) < 200
        judge(server.url, language="zh")([odd])
        assert "评分" in server.questions[-1]


def test_pairwise_asks_both_orders_and_takes_their_mean() -> None:
    def prefers(winner: str) -> Any:
        return lambda _, question: (
            "[[A]]" if question.index(winner) < question.index(other[winner]) else "[[B]]"
        )

    other = {"Hot.": "A drink.", "A drink.": "Hot."}
    for answer, value in (
        (prefers("Hot."), 1.0),
        (prefers("A drink."), 0.0),
        (lambda *_: "[[A]]", 0.5),  # the order alone
        (lambda *_: "[[tie]]", 0.5),
    ):
        with serving(answer) as server:
            assert judge(server.url, mode="pairwise")([TEA]) == [value]
            assert len(server.questions) == 2
    with serving(lambda *_: "[[A]]") as server:
        (none,) = judge(server.url, mode="pairwise")([Completion("p", "r")])
        assert isinstance(none, RewardError)
        assert server.questions == []


def test_no_more_requests_at_a_time_than_said_and_equal_questions_once() -> None:
    def slow(*_: Any) -> str:
        time.sleep(0.02)
        return "[[5]]"

    with serving(slow) as server:
        rows = [Completion("p", f"r{i % 12}") for i in range(24)]
        assert judge(server.url, concurrency=3)(rows) == [5.0] * 24
        assert len(server.questions) == 12
        assert 2 <= server.most_at_once <= 3


def test_samples_are_averaged() -> None:
    ratings = iter(["[[4]]", "[[5]]", "[[9]]"])
    with serving(lambda *_: next(ratings)) as server:
        assert judge(server.url, samples=3, concurrency=1)([TEA]) == [6.0]


def _closed(handler: Any, _: str) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize(
    "fault",
    [
        lambda h, _: send(h, 429, "slow down", Retry_After="0"),
        lambda h, _: send(h, 500, "oops"),
        lambda h, _: send(h, 200, "not json"),
        lambda h, _: send(h, 200, "[" * 100_000),
        lambda h, _: send(h, 200, '{"choices": []}'),
        lambda h, _: reply(h, None),
        lambda h, _: reply(h, "[[9]] and so", finish="length"),
        lambda h, _: reply(h, "no number"),
        lambda h, _: time.sleep(0.6),
        _closed,
    ],
)
def test_what_fails_is_asked_again_and_then_counted_never_scored(fault: Any) -> None:
    with serving(fault) as server:
        line = problem(server.url, timeout=0.3)
        assert len(server.questions) == 3
        assert server.url in line
        assert "asked 3 times" in line
        faults = iter([True, False])
        server.answer = lambda handler, question: fault(handler, question) if next(faults) else "[[8]]"
        assert judge(server.url, timeout=0.3)([TEA]) == [8.0]


def test_the_wait_that_the_server_asks_for_is_kept_or_the_question_is_given_up() -> None:
    times: list[float] = []

    def busy(handler: Any, _: str) -> str | None:
        times.append(time.monotonic())
        return send(handler, 503, "", Retry_After="0.4") if len(times) == 1 else "[[8]]"  # type: ignore[func-returns-value]

    with serving(busy) as server:
        assert judge(server.url)([TEA]) == [8.0]
        assert times[1] - times[0] >= 0.4
    with serving(lambda h, _: send(h, 429, "", Retry_After="9999")) as server:
        problem(server.url)
        assert len(server.questions) == 1


@pytest.mark.parametrize("status", [301, 307, 401, 404])
def test_what_every_question_would_get_is_asked_once(status: int) -> None:
    with serving(lambda h, _: send(h, status, "no", Location="http://127.0.0.1:9/")) as server:
        values = judge(server.url, concurrency=1)([Completion("p", str(i)) for i in range(5)])
        assert all(isinstance(value, RewardError) and str(status) in str(value) for value in values)
        assert len(server.questions) == 1


def _endless(handler: Any, _: str) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def _drip(handler: Any, _: str) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.02)


def _huge_header(handler: Any, _: str) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n")


def _drip_header(handler: Any, _: str) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


def _huge_length(handler: Any, _: str) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n{}")


@pytest.mark.parametrize("hostile", [_endless, _drip, _huge_header, _drip_header, _huge_length])
def test_a_hostile_server_costs_bounded_time_and_memory(hostile: Any) -> None:
    started = time.monotonic()
    with serving(hostile) as server:
        problem(server.url, timeout=0.5, retries=0)
        assert time.monotonic() - started < 10


def test_cached_answers_make_no_request_and_whatever_matters_is_in_their_names(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    with serving(lambda *_: "[[7]]") as server:
        for _ in range(2):
            assert judge(server.url, cache=str(path), key=KEY)([TEA]) == [7.0]
        assert len(server.questions) == 1
        for count, more in enumerate(({"temperature": 1.0}, {"highest": 8.0}, {"rubric": "{response}"}), 2):
            judge(server.url, cache=str(path), **more)([TEA])
            assert len(server.questions) == count
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert KEY.encode() not in content
    assert b"Hot." not in content


def test_failures_are_not_cached(tmp_path: Path) -> None:
    with serving(lambda *_: "no number") as server:
        problem(server.url, cache=str(tmp_path / "c"), retries=0)
        server.answer = lambda *_: "[[7]]"
        assert judge(server.url, cache=str(tmp_path / "c"))([TEA]) == [7.0]


def test_beyond_the_cap_rows_fail() -> None:
    with serving(lambda *_: "[[7]]") as server:
        one = judge(server.url, max_requests=2, concurrency=1)
        values = one([Completion("p", str(i)) for i in range(4)])
        assert values[:2] == [7.0, 7.0]
        assert all(isinstance(v, RewardError) and "max_requests = 2" in str(v) for v in values[2:])
        assert len(server.questions) == one.requests == 2


def test_the_key_is_in_no_error_even_if_the_server_repeats_it() -> None:
    def echo(handler: Any, _: str) -> None:
        send(handler, 400, "bad key " + handler.headers["Authorization"])

    with serving(echo) as server:
        line = problem(server.url, key=KEY)
        assert "HTTP 400" in line
        assert KEY not in line
        server.answer = lambda handler, _: "I got " + handler.headers["Authorization"]
        assert KEY not in problem(server.url, key=KEY)


def test_a_call_that_is_given_up_stops_asking() -> None:
    release = threading.Event()
    with serving(lambda *_: release.wait(5) and "[[1]]") as server:
        args = {"url": server.url, "model": "m", "concurrency": 2}
        reward = build_reward(RewardSettings(use="judge", args=args, timeout=0.3))
        started = time.monotonic()
        with pytest.raises(RewardError, match="took longer than"):
            reward.score([Completion("p", str(i)) for i in range(50)])
        assert time.monotonic() - started < 4
        time.sleep(0.6)
        release.set()
        time.sleep(0.3)
        assert len(server.questions) == 2


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://x:99999"}, "url"),
        ({"url": "http://x/a b"}, "url"),
        ({"model": ""}, "model"),
        ({"highest": 1.0}, "highest"),
        ({"samples": 0}, "samples"),
        ({"timeout": 0.0}, "timeout"),
        ({"temperature": 3.0}, "temperature"),
        ({"rubric": "no such file"}, "rubric"),
        ({"rubric": "{prompt}"}, "rubric"),
        ({"mode": "pairwise", "rubric": "{response}"}, "rubric"),
        ({"cache": "/no/such/folder/x"}, "cache"),
        ({"cache": __file__}, "cache"),
        ({"extra": {"model": "x"}}, "extra"),
        ({"extra": 3}, "extra"),
        ({"mode": "both"}, "mode"),
    ],
)
def test_impossible_settings_are_refused_by_name(args: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.args\.{named}"):
        build_reward(RewardSettings(use="judge", args={"url": "http://x", "model": "m", **args}))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl, which makes a certificate")
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=judge -addext subjectAltName=IP:127.0.0.1"
    made = subprocess.run([*command.split(), "-keyout", "-"], check=True, capture_output=True)
    file.write_bytes(made.stdout)
    return file


def test_https_is_spoken_with_those_whose_certificate_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda *_: "Rating: [[7]]", certificate) as server:
        assert server.url.startswith("https://")
        said = problem(server.url)
        assert "certificate" in said
        assert "asked" not in said  # once, for it will not change
        assert server.questions == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert judge(server.url)([TEA]) == [7.0]
        assert "plain HTTP" not in problem(server.url.replace("https", "http"), retries=0)


def test_in_a_process_of_its_own_it_gives_the_same_and_failures_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda _, question: "[[tie]]" if "Hot." in question else "I cannot say.") as server:
        args = {"url": server.url, "model": "m", "mode": "pairwise", "retries": 0, "key": "env:JUDGE_KEY"}
        settings = RewardSettings(use="judge", args=args, isolate=True, on_error="score", error_score=-1.0)
        scores = build_reward(settings).score([TEA, Completion("Describe tea.", "Cold.", fields=TEA.fields)])
        assert (scores.total.tolist(), scores.failed) == ([0.5, -1.0], 1)
        assert set(server.keys) == {f"Bearer {KEY}"}
