"""Run pytest on mutants: one process with everything imported, which forks a child for every mutant.

In the child the mutated module comes from an import hook, so whatever imports it gets the mutant. A child that
fails, hangs or dies has caught it. Sources and tests are copied first: edits during a run change nothing in it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import hypothesis
import pytest
import torch  # for the children: importing it takes longer than most mutants live

MEMORY = 24 << 30  # bytes of address space: a mutant that asks for more fails


@dataclass
class Task:
    """One child: pytest on some files, with code in place of one module's, or as the sources are."""

    key: str
    tests: list[str]
    examples: int
    module: str = ""
    code: Any = None
    only: set[str] = field(default_factory=set)  # node ids; empty: all
    order: dict[str, float] = field(default_factory=dict)  # seconds by node id: quick tests first
    limit: float = 600.0
    trace: str = ""  # a folder: note which of its functions each test calls


@dataclass
class Result:
    """How a child ended: "passed", "failed", "timeout" or "died"."""

    status: str
    by: str = ""
    message: str = ""
    loaded: bool = False
    seconds: float = 0.0
    durations: dict[str, float] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)  # "file:function" → node ids, "" for imports
    modules: list[str] = field(default_factory=list)  # what was imported from outside the repository


class MutatedModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers the import of one module with the given code."""

    def __init__(self, name: str, code: Any) -> None:
        self.name, self.code, self.loaded = name, code, False

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=self.code.co_filename)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """The ordinary module object will do."""

    def exec_module(self, module: ModuleType) -> None:
        self.loaded = True
        module.__file__ = self.code.co_filename
        exec(self.code, module.__dict__)


class Recorder:
    """A pytest plugin: picks and orders the tests; notes durations, the first failure, and what was called."""

    def __init__(self, task: Task) -> None:
        self.task, self.by, self.message = task, "", ""
        self.durations: dict[str, float] = defaultdict(float)
        self.calls: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.task.only:
            items[:] = [item for item in items if item.nodeid in self.task.only]
        items.sort(key=lambda item: self.task.order.get(item.nodeid, 0.0))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.by:
            self.by, self.message = f"{report.nodeid} (import)", str(report.longrepr)[-300:]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] += report.duration
        if report.failed and not self.by:
            self.by, self.message = report.nodeid, str(report.longrepr)[-300:]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with self.traced(""):
            yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        with self.traced(item.nodeid):
            yield

    @contextlib.contextmanager
    def traced(self, caller: str) -> Iterator[None]:
        """Note every call of a function in the traced folder."""
        folder, calls = self.task.trace, self.calls

        def note(frame: FrameType, event: str, _: Any) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(folder):
                function = code.co_qualname.split(".<locals>")[0]
                calls[f"{os.path.relpath(code.co_filename, folder)}:{function}"].add(caller)

        if folder:
            sys.setprofile(note)
        yield
        sys.setprofile(None)


class Harness:
    """A copy of the sources and tests, and the children that run on it."""

    def __init__(self, root: Path, folder: Path, jobs: int) -> None:
        self.root, self.folder, self.jobs = folder / "repo", folder, jobs
        self.root.mkdir()
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for entry in root.iterdir():
            if entry.name in ("src", "tests"):
                shutil.copytree(entry, self.root / entry.name, ignore=ignore)
            elif not entry.name.startswith("."):
                (self.root / entry.name).symlink_to(entry)
        if (root.parent / "shared").is_dir():
            (folder / "shared").symlink_to(root.parent / "shared")
        sys.path.insert(0, str(self.root / "src"))

    def preload(self, modules: list[str]) -> None:
        """Import what the tests import from elsewhere, so that no child has to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        gc.freeze()  # children share the parent's objects as long as the collector leaves them alone

    def run(self, tasks: deque[Task]) -> Iterator[tuple[Task, Result]]:
        """Run tasks, `jobs` at a time, as they come: the caller may append more while it iterates."""
        running: dict[int, tuple[Task, float]] = {}
        try:
            while tasks or running:
                while tasks and len(running) < self.jobs:
                    task = tasks.popleft()
                    running[self._start(task)] = (task, time.monotonic())
                for pid, (task, start) in list(running.items()):
                    done, _ = os.waitpid(pid, os.WNOHANG)
                    seconds = time.monotonic() - start
                    if not done and seconds < task.limit:
                        continue
                    if not done:
                        os.killpg(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                    del running[pid]
                    yield task, self._result(task, pid, seconds, timeout=not done)
                time.sleep(0.01)
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)

    def alone(self, task: Task) -> Result:
        return next(result for _, result in self.run(deque([task])))

    def _result(self, task: Task, pid: int, seconds: float, timeout: bool) -> Result:
        path, log = self.folder / f"{pid}.json", self.folder / f"{task.key}.log"
        if timeout or not path.exists():
            text = log.read_text(errors="replace") if log.exists() else ""
            return Result("timeout" if timeout else "died", message=text[-1500:], seconds=seconds)
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
        path.unlink()
        result.seconds = seconds
        return result

    def _start(self, task: Task) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):  # the child does it too: whoever comes first
                os.setpgid(pid, pid)
            return pid
        try:
            self._child(task)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)  # without the parent's clean-up

    def _child(self, task: Task) -> None:
        os.setpgid(0, 0)
        log = os.open(self.folder / f"{task.key}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.root)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        torch.set_num_threads(1)
        _quick_hypothesis(task.examples)
        finder, recorder = MutatedModule(task.module, task.code), Recorder(task)
        if task.module:
            sys.meta_path.insert(0, finder)
        # hypothesis is imported already, and pytest would have liked to do that itself.
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
        code = pytest.main([*task.tests, "-x", "-q", *quiet], plugins=[recorder])
        # 5: nothing was collected, which is no failure.
        result = Result(
            "passed" if code in (0, 5) else "failed", recorder.by, recorder.message, finder.loaded
        )
        result.durations = recorder.durations
        result.calls = {function: sorted(tests) for function, tests in recorder.calls.items()}
        if task.trace:
            result.modules = [name for name, module in sys.modules.items() if _is_installed(module)]
        temporary = self.folder / f"{os.getpid()}.part"
        temporary.write_text(json.dumps(vars(result)), encoding="utf-8")
        temporary.rename(self.folder / f"{os.getpid()}.json")


def _is_installed(module: ModuleType) -> bool:
    return "site-packages" in (getattr(module, "__file__", None) or "")


def _quick_hypothesis(examples: int) -> None:
    """The same few examples every time, and no search for the smallest failing one."""
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutation")
