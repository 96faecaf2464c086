"""The command line and the package's own names: exit status, what is printed, and what is not imported."""

import ast
import errno
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import proxlm
from proxlm.__main__ import ENVIRONMENT, JOB_MODULES, main
from proxlm.config import JOBS, DemoConfig, describe
from proxlm.errors import DataError

HEAVY = ("torch", "transformers", "tokenizers", "numpy", "rich", "plotly", "tensorboard", "safetensors")


def proxlm_command(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxlm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)


def fake_app(monkeypatch: pytest.MonkeyPatch, job: str, app: Callable[[Any], None]) -> None:
    """Put `app` where the job's module is looked for."""
    module = types.ModuleType("fake")
    module.main = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, JOB_MODULES[job].split(":")[0], module)


def raising(error: BaseException) -> Callable[[Any], None]:
    def app(_config: Any) -> None:
        raise error

    return app


def defines(module: str, name: str) -> bool:
    """Whether a module's source defines a function or class, found without importing it."""
    found = importlib.util.find_spec(module)
    assert found is not None, f"no module {module}"
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    return any(isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name for n in tree.body)


# --- in a process of its own ---


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["ppo", "--help"], 0),
        (["ppo", "--ppo.lam", "2"], 2),
        (["ppo", "no.toml"], 2),
        (["ppo"], 2),
        (["check", "recipe.toml", "--set", "ppo.lamb=1"], 1),
        (["plan", "recipe.toml", "--set", "ppo.lamb=1"], 2),
        (["launch", "ppo", "recipe.toml", "--set", "ppo.lamb=1"], 2),
        (["probe", "sft", "recipe.toml"], 2),
        (["search", "ppo", "recipe.toml", "--space", "ppo", "--set", "ppo.lamb=1"], 2),
        (["sweep", "ppo", "recipe.toml", "--over", "ppo.lam=1", "--set", "ppo.lamb=1"], 2),
        (["folds", "ppo", "recipe.toml", "--set", "ppo.lamb=1"], 2),
    ],
)
def test_help_and_wrong_settings_import_nothing_heavy(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text('job = "ppo"\n', encoding="utf-8")
    script = (
        "import sys; from proxlm.__main__ import main; status = main(sys.argv[1:]);"
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; print(heavy, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", "no.toml"], "no.toml: no such file"),
        (
            ["ppo", "--ppo.kl-coeff", "1"],
            "command line: ppo.kl-coeff: unknown key; did you mean ppo.kl_coef?",
        ),
        (["pp"], '"pp": unknown job; did you mean ppo?'),
        (["pp", "--help"], '"pp": unknown job; did you mean ppo?'),
        (["--halp"], '"--halp": unknown job; the jobs are ' + ", ".join(JOBS)),
        (["demo", "--folder", b"\xff"], "command line: folder: expected UTF-8 text, got '\\udcff'"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = proxlm_command(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"proxlm: error: {message}\n")


def test_every_problem_of_the_settings_has_a_line() -> None:
    wrong = ["--rollout.temperature", "0", "--model.value.heads", "1", "--model.value.combine", "min"]
    done = proxlm_command(
        "ppo", "--model.policy", "m", "--data.prompts", "p", "--reward.use", "length", *wrong
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert all(line.startswith("proxlm: error: command line: ") for line in lines)
    assert [line.split()[4] for line in lines] == ["rollout.temperature", "model.value.combine"]


def test_without_arguments_it_says_what_there_is() -> None:
    done = proxlm_command()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: proxlm JOB")


def test_help_and_version() -> None:
    assert proxlm_command("--version").stdout == f"proxlm {proxlm.__version__}\n"
    assert proxlm_command("-h").stdout == proxlm_command("--help").stdout
    assert proxlm_command("ppo", "x.toml", "-h").stdout == describe("ppo") + "\n"


def test_help_where_the_terminal_has_no_greek() -> None:
    done = proxlm_command("ppo", "--help", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "GAE's ?: 0 one-step" in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("job", [[], ["ppo"]], ids=["short", "long"])
def test_a_reader_that_goes_away_ends_it_quietly(job: list[str], unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "proxlm", *job, "--help"],
            stdout=write,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_output_onto_a_full_disk_is_one_line(unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "proxlm", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "proxlm: error: No space left on device: free some space, or give another folder\n"
    )


# --- dispatch, with apps that stand in for the real ones ---


def test_a_job_gets_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []
    fake_app(monkeypatch, "demo", received.append)
    assert main(["demo", "--seed", "3"]) == 0
    assert received == [DemoConfig(seed=3)]


def test_the_environment_is_set_before_the_app_runs_but_a_users_own_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    seen: dict[str, str] = {}
    fake_app(monkeypatch, "demo", lambda _config: seen.update(os.environ))
    main(["demo"])
    assert {name: seen[name] for name in ENVIRONMENT} == {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "info",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def caused_by(error: OSError) -> Exception:
    """An error of a library's own, which the system's error has caused."""
    own = Exception("cannot save")
    own.__cause__ = error
    return own


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("a.jsonl: line 3: no prompt"), 2, "proxlm: error: a.jsonl: line 3: no prompt"),
        (KeyboardInterrupt(), 130, "proxlm: interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"),
            2,
            "proxlm: error: No space left on device (writing runs/a/metrics.jsonl): "
            "free some space, or give another folder",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            2,
            "proxlm: error: Disk quota exceeded: free some space, or give another folder",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "a\nb"),
            2,
            "proxlm: error: Too many open files (a\\nb): raise the limit of open files (ulimit -n)",
        ),
        (
            RuntimeError("can't start new thread"),
            2,
            "proxlm: error: no more threads can be started: raise the limit of processes and threads (ulimit -u), or"
            " end other programs",
        ),
        (
            # As safetensors and tokenizers say it.
            Exception("Error while serializing: I/O error: File too large (os error 27)"),
            2,
            "proxlm: error: File too large: raise the limit of a file's size (ulimit -f), or give a file system"
            " without it",
        ),
        (
            caused_by(OSError(errno.EROFS, "Read-only file system", "run/x")),
            2,
            "proxlm: error: Read-only file system (writing run/x): give a folder that can be written",
        ),
    ],
)
def test_errors_of_an_app(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_app(monkeypatch, "demo", raising(error))
    assert main(["demo"]) == status
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError("a bug"),
        OSError("a bug"),
        BrokenPipeError(errno.EPIPE, "another process's"),
    ],
)
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_app(monkeypatch, "demo", raising(error))
    with pytest.raises(type(error)) as caught:
        main(["demo"])
    assert caught.value is error


# --- the tables of names ---


def test_every_job_has_an_app() -> None:
    assert list(JOB_MODULES) == list(JOBS)
    for target in JOB_MODULES.values():
        module, function = target.split(":")
        assert defines(module, function), target


def test_ends_of_child_processes_are_not_hidden() -> None:
    """A parent that ignores SIGCHLD, as after trap '' CHLD, hands that down: every child seems to end well."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert main(["--version"]) == 0
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_names_arrive_when_they_are_used() -> None:
    script = (
        "import sys, proxlm; assert not any(m.startswith('proxlm.') for m in sys.modules), 'eager';"
        "proxlm.load_config, proxlm.UserError; assert 'torch' not in sys.modules, 'torch';"
        "from proxlm import Completion; assert Completion('p', 't').finish == 'eos'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"^module 'proxlm' has no attribute 'run_pp'$"):
        _ = proxlm.run_pp


def test_the_version_is_the_packages() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["version"] == proxlm.__version__
