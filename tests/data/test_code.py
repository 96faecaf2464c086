from __future__ import annotations

import ast
import io
import subprocess
import sys
import sysconfig
import tokenize
from pathlib import Path

import pytest

from proxlm.data import code
from proxlm.data.code import completion_prefixes, python_statements
from proxlm.errors import DataError


@pytest.fixture(scope="module")
def statements() -> list[str]:
    return python_statements()


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_there_are_enough_and_they_come_sorted_and_once(statements: list[str]) -> None:
    assert len(statements) > 30_000
    assert statements == sorted(set(statements))


def test_each_is_one_simple_statement_on_one_line(statements: list[str]) -> None:
    kinds = set()
    for statement in statements[::20]:
        assert 15 <= len(statement) <= 100
        assert statement == statement.strip()
        assert "\n" not in statement
        (node,) = ast.parse(statement).body
        kinds.add(type(node))
        assert not hasattr(node, "body")
        assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        tokens = tokenize.generate_tokens(io.StringIO(statement).readline)
        assert not any(t.type == tokenize.COMMENT or t.string == ";" for t in tokens)
    assert {ast.Assign, ast.Expr, ast.Return, ast.Raise, ast.ImportFrom, ast.Assert} <= kinds


def test_what_a_file_yields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text("left_out = 'a test file'\n")
    (tmp_path / "bad.py").write_text("this is not python at all\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nnot_utf8 = '\xe9' * 10\n")
    (tmp_path / "pkg" / "a.py").write_bytes(
        b'"""A docstring on one line."""\r\n'
        b"def f(x):\r\n"
        b"    commented = x + 1  # why\r\n"
        b"    return x.first + x.second\r\n"
        b"if True: on_one_line = 'with if'\r\n"
        b"first_of_two = 1; second_of_two = 2\r\n"
        b"name = '\xe4\xbd\xa0\xe5\xa5\xbd, world'\r\n"
        b"too_short = 1\r\n"
        b"over_lines = (1,\r\n    2)\r\n"
        b"x = '" + b"y" * 96 + b"'\r\n"
        b"x = '" + b"y" * 94 + b"'\r\n"
        b"    \r\n"
        b"def g():\r\n\treturn x.first + x.second\r\n"
    )
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert python_statements() == ["name = '你好, world'", "return x.first + x.second", f"x = '{'y' * 94}'"]


def test_limit_draws_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Path(sysconfig.get_path("stdlib")) / "asyncio"  # the whole library takes seconds
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(part))
    every = python_statements()
    count = len(every) // 4
    assert count > 100
    one, other = python_statements(count, seed=1), python_statements(count, seed=2)
    assert len(one) == len(other) == count
    assert one == sorted(set(one))
    assert set(one) <= set(every)
    assert one == python_statements(count, seed=1)
    assert len(set(one) & set(other)) < count / 2  # a quarter, by chance
    assert python_statements(len(every) + 1, seed=1) == every


def test_no_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match="no Python source found"):
        python_statements()


def test_prefixes_do_not_parse_and_are_cut_at_tokens_in_the_middle(statements: list[str]) -> None:
    some = statements[::25]
    prefixes = completion_prefixes(some, 800, seed=0)
    assert len(prefixes) == len(set(prefixes)) == 800
    for prefix in prefixes:
        assert not parses(prefix)
        assert prefix == prefix.strip()
        wholes = [s for s in some if s.startswith(prefix) and 0.3 <= len(prefix) / len(s) <= 0.7]
        assert any(len(prefix) in ends(whole) for whole in wholes)
    assert not any(parses(prefix + end) for prefix in prefixes for end in ("\n", " # end", "\n# end"))


def ends(statement: str) -> list[int]:
    return [t.end[1] for t in tokenize.generate_tokens(io.StringIO(statement).readline)]


def test_prefixes_depend_on_the_seed_alone(statements: list[str]) -> None:
    some = statements[::50]
    assert completion_prefixes(some, 100, 3) == completion_prefixes(some, 100, 3)
    assert len(set(completion_prefixes(some, 100, 3)) & set(completion_prefixes(some, 100, 4))) < 50


@pytest.mark.parametrize(
    ("statement", "cuts"),
    [
        # 30% to 70% are 7.5 to 17.5 characters: "total = price" would parse, "total =" is too short.
        ("total = price * (1 + tax)", {"total = price *", "total = price * ("}),
        ("from os.path import join", {"from os.", "from os.path"}),
        # The f-string is one token, whatever the Python.
        ("print(f'{a + b}', first, second)", {"print(f'{a + b}'", "print(f'{a + b}',"}),
    ],
)
def test_prefixes_by_example(statement: str, cuts: set[str]) -> None:
    found = {completion_prefixes([statement], 1, seed)[0] for seed in range(60)}
    assert found == cuts


def test_too_few_prefixes_is_an_error() -> None:
    with pytest.raises(DataError, match="2 statements give only 1 different prefixes of the 5 needed"):
        completion_prefixes(["value = compute(1)", "value = compute(1)"], 5, 0)


def test_needs_no_torch() -> None:
    text = f"import sys, {code.__name__}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)
