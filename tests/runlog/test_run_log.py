import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proxlm.config import RunSettings
from proxlm.errors import RunError
from proxlm.runlog import loggers
from proxlm.runlog.folder import append_jsonl, read_jsonl
from proxlm.runlog.live import LiveView
from proxlm.runlog.plain import PlainView
from proxlm.runlog.run_log import RunLog
from proxlm.runlog.view import view_for

QUIET = RunSettings(tensorboard=False)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(e.step, round(e.value, 4)) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def test_each_step_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, "ppo", 2, QUIET) as log:
        log.phase("generate")
        log.progress(1, 2)
        log.metrics(1, {"reward": 0.5, "time/generate": 1})
        # What is written can be read while the run goes on.
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
        log.metrics(2, {"reward": 0.75})
        log.note("all is well")
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert list(first) == ["step", "time", "reward", "time/generate"]
    assert (first["step"], first["reward"], first["time/generate"]) == (1, 0.5, 1.0)
    assert (second["step"], second["reward"]) == (2, 0.75)
    assert 0 <= first["time"] <= second["time"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]
    lines = capsys.readouterr().out.splitlines()
    assert [line[:21] for line in lines] == ["ppo 1/2  reward 0.500", "ppo 2/2  reward 0.750", "all is well"]


def test_numbers_that_are_not_finite_are_null_counted_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, "ppo", 5, QUIET) as log:
        log.metrics(1, {"reward": math.nan, "kl": -math.inf, "entropy": 1.0})
        log.metrics(2, {"reward": math.nan, "kl": 1.0})
        log.metrics(3, {"reward": 0.0})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row.get("not_finite") for row in rows] == [2, 1, None]
    assert (rows[0]["reward"], rows[0]["kl"], rows[0]["entropy"]) == (None, None, 1.0)
    out = capsys.readouterr().out
    assert out.count("step 1: reward is not a finite number: nan") == 1
    assert out.count("step 1: kl is not a finite number: -inf") == 1
    assert out.count("is not a finite number") == 2


def test_samples_carry_their_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, "ppo", 5, QUIET) as log:
        log.samples(1, [])
        assert not (tmp_path / "samples.jsonl").exists()
        log.samples(2, [{"prompt": "a", "reward": math.inf}, {"prompt": "猫"}])
    rows = read_jsonl(tmp_path / "samples.jsonl")
    assert rows == [{"step": 2, "prompt": "a", "reward": None}, {"step": 2, "prompt": "猫"}]


def test_a_resumed_run_drops_later_rows_and_goes_on(tmp_path: Path) -> None:
    append_jsonl(
        tmp_path / "metrics.jsonl", [{"step": s, "time": 100.0 * s, "reward": s / 10} for s in (1, 2, 3)]
    )
    append_jsonl(tmp_path / "samples.jsonl", [{"step": s, "prompt": "a"} for s in (1, 2, 3)])
    with RunLog(tmp_path, "ppo", 10, QUIET, start_step=2) as log:
        assert log.state.step == 2
        assert log.state.history["reward"] == [0.1, 0.2]
        log.metrics(3, {"reward": 0.9})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["reward"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert 200.0 <= rows[2]["time"] < 290.0
    assert [row["step"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [1, 2]


def test_a_new_run_leaves_the_rows_of_another_alone(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "metrics.jsonl", [{"step": 1}])
    with pytest.raises(RunError, match=r"metrics\.jsonl: already holds a run's rows"):
        RunLog(tmp_path, "ppo", 10, QUIET)
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_tensorboard_has_the_same_numbers_and_a_resumed_run_replaces_its_later_ones(tmp_path: Path) -> None:
    run = RunSettings(tensorboard=True)
    with RunLog(tmp_path, "ppo", 3, run) as log:
        log.metrics(1, {"reward": 0.5, "kl": math.nan})
        log.metrics(2, {"reward": 0.75, "kl": 1.5})
    with RunLog(tmp_path, "ppo", 3, run, start_step=1) as log:
        log.metrics(2, {"reward": 0.25, "kl": 2.5})
    found = scalars(tmp_path)
    assert found["reward"] == [(1, 0.5), (2, 0.25)]
    assert found["kl"] == [(2, 2.5)]
    assert found["not_finite"] == [(1, 1.0)]


def test_tensorboard_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with (
        pytest.raises(RunError, match=r"tensorboard: cannot be written: "),
        RunLog(tmp_path, "ppo", 3, RunSettings(tensorboard=True)),
    ):
        pass


def test_tensorboard_without_the_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"^run\.tensorboard is set, .* pip install proxlm\[tensorboard\]"):
        RunLog(tmp_path, "ppo", 3, RunSettings(tensorboard=True))


class FakeWandb(ModuleType):
    """Stands in for the package: records what it is called with."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.problem: Exception | None = None

    def init(self, **keywords: Any) -> Any:
        if self.problem:
            raise self.problem
        self.calls.append(("init", keywords))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, values)))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: name == "wandb")
    return fake


def test_wandb_gets_the_finite_numbers_and_a_resumed_run_its_id(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunSettings(tensorboard=False, wandb="stories")
    (tmp_path / "config.toml").write_text("[run]\nseed = 3\n")
    with RunLog(tmp_path, "ppo", 3, run) as log:
        log.metrics(1, {"reward": 0.5, "kl": math.nan})
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, "ppo", 3, run, start_step=1):
        raise KeyboardInterrupt
    (_, first), (_, (step, values)), end, (_, second), second_end = wandb.calls
    assert (first["project"], first["config"], first["resume"]) == ("stories", {"run": {"seed": 3}}, "allow")
    assert first["id"] == second["id"]
    assert (step, {**values, "time": 0}) == (1, {"time": 0, "reward": 0.5, "not_finite": 1})
    assert (end, second_end) == (("finish", 0), ("finish", 1))


def test_wandb_that_refuses_is_one_line(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.problem = RuntimeError("no API key\nmore")
    with (
        pytest.raises(RunError, match=r"^run\.wandb = stories: no API key; log in"),
        RunLog(tmp_path, "ppo", 3, RunSettings(wandb="stories")),
    ):
        pass


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"pip install proxlm\[wandb\]"):
        RunLog(tmp_path, "ppo", 3, RunSettings(wandb="stories"))
    assert list(tmp_path.iterdir()) == []


def test_the_view_is_live_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = RunLog(tmp_path, "ppo", 3, QUIET).state
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_for(state), LiveView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(state), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert isinstance(view_for(state), PlainView)


def test_importing_the_log_loads_neither_torch_nor_rich() -> None:
    code = "import proxlm.runlog.run_log, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"torch", "rich", "tensorboard", "plotly"} & set(json.loads(done.stdout))
