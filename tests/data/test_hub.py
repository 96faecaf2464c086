"""Names on the hub where none answers: one line at once, no retries, and nothing asked for what is no name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from proxlm.data.hub import NotOnHubError, check_hub
from proxlm.data.tokenizer import load_tokenizer
from proxlm.errors import ModelError
from proxlm.models.weights import read_configuration

NOBODY = "http://127.0.0.1:9"  # a port that nobody listens at


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def cached(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1")
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "snapshots" / "1" / "config.json").write_text("{}")


def test_a_hub_that_does_not_answer_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(
        NotOnHubError, match=r"not in the hub's cache, and http.* does not answer; HF_HUB_OFFLINE=1"
    ):
        read_configuration("a/b")
    with pytest.raises(ModelError, match=r'^"a/b": no such folder'):
        load_tokenizer("a/b")
    assert time.monotonic() - start < 20  # five retries of each take a minute
    assert capfd.readouterr() == ("", "")


def test_what_is_in_the_cache_is_taken_from_it_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotOnHubError, match="not in the hub's cache, and HF_HUB_OFFLINE is set"):
        check_hub("a/b")
    cached(tmp_path)
    check_hub("a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(NotOnHubError, match="does not answer; HF_HUB_OFFLINE=1 takes it from the cache"):
        check_hub("a/b")


@pytest.mark.parametrize(
    ("name", "message"),
    [("runs/mistyped", "no such folder in runs"), ("two words", "no name that the hub could have")],
)
def test_a_path_is_never_asked_for(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_: str) -> None:
        raise AssertionError

    monkeypatch.setattr("proxlm.data.hub._ask", asked)
    Path("runs").mkdir()
    with pytest.raises(NotOnHubError, match=message):
        check_hub(name)
    check_hub("runs")
