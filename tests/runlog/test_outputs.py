"""Files that a command writes where `output` says: its own are replaced, others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxlm.errors import RunError
from proxlm.evaluation.tables import FORMATS, Table
from proxlm.runlog.folder import write_atomic
from proxlm.runlog.outputs import check_output, title_of


@pytest.mark.parametrize("form", FORMATS)
def test_tables_are_known_by_the_command_that_wrote_them(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"table{form}"
    check_output(file, "compare")
    assert not file.exists()
    write_atomic(file, FORMATS[form]([Table(["metric"], [["reward"]])], title_of("compare")))
    check_output(file, "compare")
    with pytest.raises(RunError, match="is there already, and proxlm evaluate did not write it"):
        check_output(file, "evaluate")


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("", True),
        ('{"prompt": "a", "response": "b", "finish": "eos"}\n', True),
        ('{"prompt": "a", "response": "b"}\n', False),  # records of somebody
        ("notes: proxlm generate wrote this\n", False),
        ("\x00\xff" * 9, False),
    ],
)
def test_rows_are_known_by_their_keys(tmp_path: Path, text: str, own: bool) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text, encoding="utf-8")
    if own:
        check_output(file, "generate")
    else:
        with pytest.raises(RunError, match="give another file, or remove it"):
            check_output(file, "generate")
    assert file.read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
