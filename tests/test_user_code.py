"""Functions in a user's file: how they are named, loaded, and how their errors are described."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from proxlm.errors import ConfigError, RewardError, UserCodeError
from proxlm.rewards.call import TimedCaller
from proxlm.user_code import Reference, describe_error, load, parse_reference


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a/b.py:score", ("a/b.py", "score")),
        ("/x y/b.py:Class", ("/x y/b.py", "Class")),
        ("odd:name.py:score", ("odd:name.py", "score")),
        ("length", None),
        ("b.py", None),
        ("b.py:", None),
        (":score", None),
        (":", None),
        ("", None),
    ],
)
def test_a_reference_is_a_path_and_a_name(text: str, wanted: tuple[str, str] | None) -> None:
    assert parse_reference(text) == wanted


def test_what_the_file_defines_is_loaded() -> None:
    Path("my.py").write_text("LIMIT = 3\ndef score(cs): return LIMIT\n")
    assert load("reward.use", Reference("my.py", "score"))([]) == 3
    assert load("reward.use", Reference("my.py", "LIMIT")) == 3


def test_a_file_runs_once_for_all_who_share_the_modules_and_again_for_others() -> None:
    Path("my.py").write_text("import random\nTOKEN = object()\n")
    modules: dict[str, Any] = {}
    first = load("a", Reference("my.py", "TOKEN"), modules)
    assert load("b", Reference("my.py", "TOKEN"), modules) is first
    assert load("c", Reference("my.py", "TOKEN")) is not first


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (("no.py", "f"), 'key: no file "no.py" in HERE'),
        (("/no/such.py", "f"), 'key: no file "/no/such.py"'),
        (("my.py", "scroe"), 'key: no "scroe" in my.py; did you mean score? it defines Helper, score'),
        (("empty.py", "f"), 'key: no "f" in empty.py; it defines no functions or classes'),
    ],
)
def test_what_is_not_there_is_named(reference: tuple[str, str], message: str) -> None:
    Path("my.py").write_text("from pathlib import Path\nclass Helper: pass\ndef score(cs): return 1\n")
    Path("empty.py").write_text("")
    with pytest.raises(ConfigError) as caught:
        load("key", Reference(*reference))
    assert str(caught.value) == message.replace("HERE", str(Path.cwd()))


def test_a_file_that_fails_is_the_users_error() -> None:
    Path("my.py").write_text("x = 1\n\nx / 0\n")
    with pytest.raises(UserCodeError) as caught:
        load("key", Reference("my.py", "f"))
    assert str(caught.value) == "key: my.py raised ZeroDivisionError: division by zero at my.py:3"


# --- what a user's code raised ---


def raised_by(function: Any) -> BaseException:
    error = TimedCaller().call(function, 5).error
    assert error is not None
    return error


def test_an_error_is_described_in_one_line_with_its_place() -> None:
    def fail() -> None:
        raise ValueError("one\n  two")

    line = fail.__code__.co_firstlineno + 1
    assert describe_error(raised_by(fail), __file__) == f"ValueError: one two at {__file__}:{line}"


def test_the_place_is_in_the_users_own_file_even_if_a_library_raised() -> None:
    def fail() -> None:
        time.strptime("x", "%Y")

    line = fail.__code__.co_firstlineno + 1
    assert describe_error(raised_by(fail), __file__).endswith(f" at {__file__}:{line}")
    assert "_strptime.py:" in describe_error(raised_by(fail), "")


def test_our_own_call_is_never_the_place() -> None:
    def fail() -> None:
        raise OSError("mine")

    assert describe_error(raised_by(fail)).endswith(f" at {__file__}:{fail.__code__.co_firstlineno + 1}")
    needs_arguments: Any = int.__add__
    assert " at " not in describe_error(raised_by(needs_arguments))


def test_errors_without_message_or_place_and_groups_and_our_own() -> None:
    assert describe_error(KeyError()) == "KeyError"
    assert (
        describe_error(ExceptionGroup("many", [ExceptionGroup("more", [OSError("gone")])])) == "OSError: gone"
    )
    assert describe_error(RewardError("as it is")) == "as it is"
    assert len(describe_error(ValueError("x" * 1000))) < 320
