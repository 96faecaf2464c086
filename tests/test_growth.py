"""Work that grows with the input and not with its square: each further part of the input costs as much as the first.

Operations are counted, not timed: the lines that Python runs, and how often a name is compared or hashed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxlm.config import load_config, to_toml
from proxlm.config.secrets import secret_settings
from proxlm.config.toml_text import parse_toml
from proxlm.doctor.doctor import diagnose
from proxlm.errors import UserError
from proxlm.masking import masked_tree
from proxlm.report.curves import curves
from proxlm.report.evaluation import evaluation_table, side_by_side
from proxlm.report.samples import sample_views
from proxlm.runlog.folder import append_jsonl, read_jsonl, truncate_jsonl
from proxlm.runlog.state import RunState
from proxlm.text import listed, shown


class Name(str):
    """A name that counts how often it is compared or hashed."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Name.count += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Name.count += 1
        return str.__hash__(self)


def operations(work: Callable[[], object]) -> int:
    """Lines of Python run, a comprehension's once for each item, and comparisons of names, while `work` runs."""
    count = 0

    def trace(_frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    Name.count, before = 0, sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except (UserError, ValueError):
        pass
    finally:
        sys.settrace(before)
    return count + Name.count


def rows(count: int, warmup: float = 0.0) -> list[dict[str, Any]]:
    fixed = {"reward_std": 1.0, "warmup": warmup, "kl": 1.0}
    return [{"step": i, "time": i, "reward": 0.1 * i, **fixed} for i in range(count)]


def of_many_names(count: int) -> list[dict[Any, Any]]:
    """Rows of which each has a metric of its own, and a component of the reward."""
    return [
        {
            Name("step"): i,
            Name("time"): i,
            Name(f"reward/{i}"): 1.0,
            Name(f"a{i}"): i % 2,
            Name(f"b{i // 2}"): i,
        }
        for i in range(count)
    ]


def evaluation(count: int) -> dict[str, Any]:
    models = [
        {
            "name": name,
            "metrics": {f"m{i}": {"mean": 1.0, "low": 0.5, "high": 1.5} for i in range(count)},
            "samples": [{"prompt": f"p{i}", "response": "r"} for i in range(count)],
        }
        for name in ("a", "b")
    ]
    return {"models": models}


def samples(count: int) -> list[dict[str, Any]]:
    fixed = {"prompt": "p", "response": "r", "tokens": ["a"]}
    return [{"step": i, "per_token": {f"q{i}": [1.0]}, **fixed} for i in range(count)]


def recipe(count: int) -> str:
    return "[reward.args]\n" + "".join(f'k{i} = ["a", {{b = "{i}"}}]\n' for i in range(count))


def loaded(count: int) -> Any:
    return load_config("ppo", parse_toml(recipe(count)), NEEDED)


NEEDED = {"model.policy": "m", "data.prompts": "p", "reward.use": "length"}
WORK: dict[str, Callable[[int], Callable[[], object]]] = {
    "a recipe of many settings": lambda n: lambda: loaded(n),
    "a recipe with a long text": lambda n: lambda: parse_toml('a = "' + "\\n" * n + '"'),
    "a long key": lambda n: lambda: parse_toml("a." * n + "b = 1"),
    "an unknown setting": lambda n: lambda: load_config("ppo", {"ppo": {"x" * n: 1}}),
    "many unknown settings": lambda n: lambda: load_config("ppo", {"no": {f"k{i}": 1 for i in range(n)}}),
    "a value of another type": lambda n: lambda: load_config("ppo", {"ppo": {"steps": ["x"] * n}}),
    "settings as text": lambda n: partial(to_toml, loaded(n)),
    "secrets": lambda n: lambda: list(secret_settings(loaded(n))),
    "the values of a list": lambda n: lambda: load_config("sft", None, None, ["--text.train", "a"] * (n // 2)),
    "the doctor": lambda n: lambda: diagnose(rows(n)),
    "the doctor, the critic alone learns": lambda n: lambda: diagnose(rows(n, warmup=1.0)),
    "the doctor, no reward": lambda n: lambda: diagnose([{"step": i} for i in range(n)]),
    "the report's curves": lambda n: lambda: curves(rows(n)),
    "the report's curves, many metrics": lambda n: lambda: curves(of_many_names(n)),
    "the report's table": lambda n: lambda: evaluation_table(evaluation(n)),
    "the report's texts": lambda n: lambda: side_by_side(evaluation(n)),
    "the report's samples": lambda n: lambda: sample_views(samples(n)),
    "a run's state": lambda n: lambda: remember(rows(n)),
    "rows masked": lambda n: lambda: masked_tree(rows(n)),
    "many names in a message": lambda n: lambda: listed(f"name {i}" for i in range(n)),
    "a long text in a message": lambda n: lambda: shown("\x1b" * n),
    "an error of a long text": lambda n: lambda: UserError("\x1b" * n),
}  # fmt: skip


def remember(given: list[dict[str, Any]]) -> None:
    state = RunState("ppo", "step", len(given), 0, 0.0, ("reward",), 0.0)
    for row in given:
        state.finish_step(row["step"], row, row["time"])


@pytest.mark.parametrize("name", WORK)
def test_each_further_part_of_the_input_costs_the_same(name: str) -> None:
    operations(WORK[name](10))  # what is made once
    once, twice, thrice = (operations(WORK[name](count)) for count in (100, 200, 300))
    assert thrice - twice <= 1.3 * (twice - once) + 500, (once, twice, thrice)  # squares: 1.67


def test_the_files_of_a_run(tmp_path: Path) -> None:
    counts = []
    for count in (150, 300):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
        counts.append(operations(lambda path=path, count=count: work_on(path, count)))
    assert counts[1] <= 2.4 * counts[0]


def work_on(path: Path, count: int) -> None:
    assert len(read_jsonl(path)) == count
    truncate_jsonl(path, "step", count // 2)
    append_jsonl(path, rows(count))
