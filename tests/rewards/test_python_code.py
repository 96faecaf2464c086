import ast
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxlm.rewards.python_code import PythonParse, python_parse_report

GOOD = PythonParse(True, "")


@pytest.mark.parametrize(
    ("prefix", "completion", "expected"),
    [
        ("x = foo(", "a, b)", GOOD),
        ("return self.", "items[0] + 1", GOOD),
        ("x = ", "'a;b' + c", GOOD),  # the ; of a string separates nothing
        ("if a:", " b = c + d", GOOD),
        ("x = 1  # old\ny = ", "f(x)", GOOD),  # the comment is the prefix's
        ("x = foo(", "a, b", PythonParse(False, "")),
        ("x = foo(", "", PythonParse(False, "empty")),
        ("x = foo()", "", PythonParse(True, "empty")),
        ("x = foo()", " \t", PythonParse(True, "empty")),
        ("x = foo()", "\n", PythonParse(True, "empty")),
        ("x = foo(", "a)\ny", PythonParse(True, "line")),
        ("x = foo(", "a)\r", PythonParse(True, "line")),
        ("x = foo(", "a); y = 2", PythonParse(True, "line")),
        ("x = foo()", "  # and so on, and so on", PythonParse(True, "comment")),
        ("x = foo()  # so", " on a b c", PythonParse(True, "comment")),
        ("x = ", "f(a)  # b", PythonParse(True, "comment")),
        ("x = ", "f('" + "a" * 41 + "')", PythonParse(True, "string")),
        ("x = ", "f('" + "a" * 40 + "')", GOOD),
        ("x = 'a", "b' + c + d", GOOD),
        ("x = 'a", "b" * 41 + "' + c + d", PythonParse(True, "string")),
        ("x = '" + "a" * 50, "b' + c + d", GOOD),  # so are the prefix's characters
        ("x = 'a", "b'", PythonParse(True, "tokens")),
        ("x = foo", "bar", PythonParse(True, "tokens")),  # one name, begun in the prefix
        ("x = foo", ".b", PythonParse(True, "tokens")),
        ("x = foo", ".b.c", GOOD),
        ("x = ((((1", "))))", PythonParse(True, "names")),
    ],
)
def test_report(prefix: str, completion: str, expected: PythonParse) -> None:
    assert python_parse_report(prefix, completion) == expected


def test_thresholds_are_inclusive_and_can_be_moved() -> None:
    assert python_parse_report("x = ((((1", "))))", min_names=0) == GOOD
    assert python_parse_report("x = ((((1", "))))", min_names=0, min_tokens=4) == GOOD
    assert python_parse_report("x = ((((1", "))))", min_names=0, min_tokens=5).guard == "tokens"
    assert python_parse_report("x = ", "'abc' + d", max_string=3) == GOOD
    assert python_parse_report("x = ", "'abc' + d", max_string=2).guard == "string"
    assert python_parse_report("x = foo(", "a)\ny = 2", single_line=False) == GOOD
    assert python_parse_report("x = foo(", "a); y = 2", single_line=False) == GOOD
    assert python_parse_report("x = foo(", "a)\ny = 2 # c", single_line=False).guard == "comment"


@pytest.mark.parametrize("quote", ["'", '"', "'''", '"""'])
@pytest.mark.parametrize("prefix", ["", "b", "r", "Rb"])
def test_only_what_stands_between_the_quotes_counts_as_string(prefix: str, quote: str) -> None:
    literal = f"{prefix}{quote}abcd{quote}"
    assert python_parse_report("x = ", f"{literal} + y", max_string=4) == GOOD
    assert python_parse_report("x = ", f"{literal} + y", max_string=3).guard == "string"


def test_an_f_string_is_one_string_in_every_python() -> None:
    assert python_parse_report("x = ", "f'{a}{b}'").guard == "tokens"
    assert python_parse_report("x = ", "f'{a}{b}' + y", max_string=6) == GOOD
    assert python_parse_report("x = ", "f'{a}{b}' + y", max_string=5).guard == "string"


@pytest.mark.parametrize(
    "completion",
    [
        "\0",
        "a\0b",
        "\ud800",
        "(" * 5000,
        "-" * 50_000 + "1",
        "[" * 5000 + "]" * 5000,
        "lambda:" * 5000 + "1",
        "a." * 20_000 + "b",
        "1" * 5000,
        "\\",
        "\f\f",
        "\x1a",
        "'\\N{no such name}'",
        "$ ? `",
    ],
)
def test_what_the_parser_cannot_take_does_not_parse(completion: str) -> None:
    assert python_parse_report("x = ", completion).parses is False


def test_invalid_escapes_and_other_syntax_warnings_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert python_parse_report("x = ", r"f('\d') + 1") == GOOD
        assert python_parse_report("x = ", "1 is a or b") == GOOD
        assert python_parse_report("x = ", "1or 1 + a") == GOOD


@pytest.mark.parametrize(
    ("limits", "guard"),
    [
        ({"max_string": 2, "min_tokens": 2, "min_names": 1}, ""),
        ({"max_string": 1, "min_tokens": 2, "min_names": 1}, "string"),
        ({"max_string": 2, "min_tokens": 3, "min_names": 1}, "tokens"),
        ({"max_string": 2, "min_tokens": 2, "min_names": 2}, "names"),
    ],
)
def test_the_border_is_right_after_characters_that_end_lines_elsewhere(
    limits: dict[str, int], guard: str
) -> None:
    """The completion holds two characters of a string, then + and a name."""
    prefix, completion = "a = '\u2028\x0c'\nb = '''x", "\ny''' + é_1\n"
    assert python_parse_report(prefix, completion, single_line=False, **limits) == PythonParse(True, guard)


PYTHON_LIKE = st.text(alphabet="ab1 .,;:()[]{}=+-*'\"#\\\n\r\t\f\0é\u2028\ud800f@", max_size=60)


@given(st.one_of(st.text(), PYTHON_LIKE), st.one_of(st.text(), PYTHON_LIKE))
@example("\r", "\n")
@example("'''", "'''\x0c\\")
def test_never_raises_and_agrees_with_ast(prefix: str, completion: str) -> None:
    report = python_parse_report(prefix, completion)
    assert report.guard in {"", "empty", "line", "comment", "string", "tokens", "names"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(prefix + completion)
            parses = True
        except Exception:
            parses = False
    assert report.parses == parses


@given(st.text(alphabet="abc ._+", max_size=20))
def test_a_trailing_comment_never_passes(text: str) -> None:
    report = python_parse_report("x = f(a)", f" + {text}  # comment")
    assert not report.parses or report.guard == "comment"
