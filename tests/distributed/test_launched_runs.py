"""Real runs of the command line in two processes, beside one process: the same run, whatever dies on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launched import ENVIRONMENT, alone, begun, command, launched, said, same_run, wait_for, worker

from proxlm.models.save import save_language_model
from proxlm.report.evaluation_files import RESPONSES, SEAL
from small_models import TEXTS, tiny_model

REWARD = "def score(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
RECIPE = """
[model]
policy = "model"
device = "cpu"
[data]
prompts = "prompts.jsonl"
eval_count = 2
[rollout]
max_new_tokens = 8
[reward]
use = "reward.py:score"
[ppo]
steps = 3
batch_size = 5
epochs = 1
minibatches = 2
kl_controller = "adaptive"
kl_horizon = 100.0
[optim.policy]
lr = 1e-3
eps = 1e-3
[optim.critic]
eps = 1e-3
[run]
save_every = 1
keep = 9
report = false
threads = 1
"""


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    """A folder with a tiny model, and the run of it in one process, "one", and in two, "two"."""
    folder = tmp_path_factory.mktemp("launched")
    save_language_model(tiny_model(tokenizer), folder / "model")
    prompts = [json.dumps({"prompt": f"{text[:12]} {i}"}) for i in range(4) for text in TEXTS]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    (folder / "ppo.toml").write_text(RECIPE, encoding="utf-8")
    assert alone(folder, "ppo", "ppo.toml", "--run.folder", "one").returncode == 0
    done = launched(folder, "ppo", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluating on") == 2  # rank 0 alone speaks
    return folder


def test_two_processes_take_the_run_of_one(place: Path) -> None:
    same_run(place / "one", place / "two", 1e-6)
    one, two = (json.loads((place / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert same_numbers(one, two) > 20  # those before the run, and after it, where both processes sample
    one, two = (read_rows(place / name, "after") for name in ("one", "two"))
    assert same_numbers(one, two) > 2 * len(one) > 0


# Of a file of numbers: where it lies, what it took, and hashes of numbers that differ by rounding.
NOT_NUMBERS = ("model", "seconds", RESPONSES, SEAL)


def read_rows(folder: Path, name: str) -> list[Any]:
    lines = (folder / f"evaluation-{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def same_numbers(one: Any, two: Any) -> int:
    """How many numbers are equal up to rounding, where all else must be equal."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return sum(same_numbers(one[key], two[key]) for key in one if key not in NOT_NUMBERS)
    if isinstance(one, list):
        return sum(same_numbers(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
        return 1
    assert one == two
    return 0


def test_sharded_weights_give_the_run_of_one_and_a_checkpoint_for_any(place: Path) -> None:
    done = launched(place, "ppo", "sharded", "--set", "distributed.strategy=fsdp")
    assert done.returncode == 0, done.stderr
    same_run(place / "one", place / "sharded", 1e-6)
    for name, strategy in (("sharded", "ddp"), ("one", "fsdp")):
        folder = f"{name}-to-{strategy}"
        shutil.copytree(place / name, place / folder)
        for step in (2, 3):
            shutil.rmtree(place / folder / "checkpoints" / f"step-{step:08d}")
        done = launched(
            place, "ppo", folder, "--set", "run.resume=true", "--set", f"distributed.strategy={strategy}"
        )
        assert done.returncode == 0, done.stderr
        same_run(place / "one", place / folder, 1e-6)


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_run_goes_on_with_another_number_of_processes(place: Path, first: str) -> None:
    folder = place / f"from-{first}"
    shutil.copytree(place / first, folder)
    for step in (2, 3):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    if first == "one":
        done = launched(place, "ppo", folder.name, "--set", "run.resume=true")
    else:
        done = alone(place, "ppo", "ppo.toml", "--run.folder", folder.name, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    same_run(place / "one", folder, 1e-6)


@pytest.mark.parametrize(("rank", "asynchronous"), [(0, "true"), (1, "false")])
def test_a_killed_process_is_started_again_and_the_run_ends_as_it_would_have(
    place: Path, rank: int, asynchronous: str
) -> None:
    folder = f"killed-{rank}"
    saved = f"run.asynchronous_save={asynchronous}"
    run = begun(place, "ppo", folder, "--max-restarts", "1", "--set", saved)
    wait_for(place / folder / "checkpoints" / "step-00000001", run)
    os.kill(worker(run.pid, rank), signal.SIGKILL)
    assert run.wait(timeout=200) == 0, (place / f"{folder}.txt").read_text()
    shown = (place / f"{folder}.txt").read_text()
    assert shown.count("note: all processes were started again, 1 of 1 times") == 1
    assert "go on with --resume" not in shown  # nobody has to
    files = sorted(str(path.relative_to(place / "two")) for path in (place / "two").rglob("*.safetensors"))
    assert len(files) == 7  # of three checkpoints and the policy
    for name in (*files, "samples.jsonl"):
        assert (place / folder / name).read_bytes() == (place / "two" / name).read_bytes(), name


@pytest.mark.parametrize("how", ["SIGTERM", "proxlm stop"])
def test_all_processes_end_after_the_step(place: Path, how: str) -> None:
    folder = f"ends-by-{how[:6].strip()}"
    run = begun(place, "ppo", folder, "--set", "ppo.steps=500")
    wait_for(place / folder / "checkpoints" / "step-00000001", run)
    ranks = [worker(run.pid, rank) for rank in (0, 1)]
    if how == "SIGTERM":
        run.terminate()
    else:
        assert alone(place, "stop", folder).returncode == 0
    status = run.wait(timeout=200)
    shown = (place / f"{folder}.txt").read_text()
    assert status == (143 if how == "SIGTERM" else 0), shown
    assert shown.count(f"stopped by {how}") == 1, shown
    assert "Traceback" not in shown
    assert (place / folder / "policy").exists() == (how == "proxlm stop")
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.parametrize("whom", ["agent", "group", "all"])
def test_ctrl_c_ends_all_processes_as_it_ends_one(place: Path, whom: str) -> None:
    """To the agent alone; to its process group, as from a terminal; to the ranks as well, as from a scheduler."""
    folder = f"ctrl-c-{whom}"
    run = begun(place, "ppo", folder, "--set", "ppo.steps=500", start_new_session=True)
    wait_for(place / folder / "checkpoints" / "step-00000001", run)
    ranks = [worker(run.pid, rank) for rank in (0, 1)]
    os.killpg(run.pid, signal.SIGINT) if whom == "group" else run.send_signal(signal.SIGINT)
    if whom == "all":
        for rank in ranks:
            os.kill(rank, signal.SIGINT)
    status = run.wait(timeout=200)
    shown = (place / f"{folder}.txt").read_text()
    assert status == 130, shown
    assert shown.count("Ctrl-C: finishing this step and saving it, then the end of the run") == 1, shown
    assert "death signal" not in shown, shown  # the agent's own words
    last = shown.splitlines()[-1]
    assert re.fullmatch(
        rf"proxlm: stopped by Ctrl-C after step \d+, saved; go on with: proxlm launch ppo {folder}/config.toml"
        r" --workers 2 --set run\.resume=true",
        last,
    ), shown
    assert (place / folder / "policy" / "model.safetensors").exists()
    models = json.loads((place / folder / "evaluation.json").read_text())["models"]
    assert [model["name"] for model in models] == ["before", "after"]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_a_second_ctrl_c_ends_all_processes_at_once(place: Path) -> None:
    """The first one would wait for a reward that takes minutes."""
    reward = "import time\ncalls = 0\n" + REWARD.replace(
        "    return", "    global calls\n    calls += 1\n    open('slow', 'w').close() if calls == 5 else None\n"
        "    time.sleep(300 if calls == 5 else 0)\n    return",
    )  # fmt: skip
    (place / "slow.py").write_text(reward, encoding="utf-8")
    run = begun(place, "ppo", "twice", "--set", "reward.use=slow.py:score", start_new_session=True)
    wait_for(place / "slow", run)
    ranks = [worker(run.pid, rank) for rank in (0, 1)]
    os.killpg(run.pid, signal.SIGINT)
    said(place / "twice.txt", "press Ctrl-C again to stop at once")
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=60) == 130
    shown = (place / "twice.txt").read_text()
    assert shown.splitlines()[-1] == "proxlm: interrupted", shown
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("reward.use=none.py:score", "the reward returned None"),  # rank 0 alone calls it
        ("reward.use=missing.py:score", 'no file "missing.py"'),  # each rank finds it
        ('optim.critic.rates={"x*" = 0.5}', 'optim.critic.rates: "x*" fits no weight'),
    ],
)
def test_an_error_is_shown_once(place: Path, setting: str, shown: str) -> None:
    (place / "none.py").write_text("def score(completions):\n    return [None] * len(completions)\n")
    done = launched(place, "ppo", "refused", "--set", setting)
    assert done.returncode == 2
    assert done.stderr.count("proxlm: error:") == 1
    assert shown in done.stderr
    assert not (place / "refused").exists()


def test_a_job_for_one_process_is_refused_in_several() -> None:
    torchrun = ENVIRONMENT | {"WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(
        command("generate", "--model.policy", "x", "--prompt", "y"),
        env=torchrun,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "runs in one process" in done.stderr
