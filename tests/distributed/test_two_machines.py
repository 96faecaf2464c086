"""Two of torchrun's agents with a process each, as on two machines: the run of two processes under one agent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launched import ENVIRONMENT, launched, wait_for, worker
from test_launched_runs import RECIPE, REWARD

from proxlm.distributed.launch import joined_ranks
from proxlm.errors import ConfigError
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    """Folders of two machines, the second without prompts, and the run "two" of the first."""
    folder = tmp_path_factory.mktemp("machines")
    for name in ("first", "second"):
        save_language_model(tiny_model(tokenizer), folder / name / "model")
        (folder / name / "ppo.toml").write_text(RECIPE, encoding="utf-8")
        (folder / name / "reward.py").write_text(REWARD, encoding="utf-8")  # which the settings name
    prompts = [f'{{"prompt": "{text[:12]} {i}"}}\n' for i in range(4) for text in TEXTS]
    (folder / "first" / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    done = launched(folder / "first", "ppo", "two")
    assert done.returncode == 0, done.stderr
    return folder


class Machines:
    """Two agents. Torchrun numbers machines by their addresses: the first one is that of rank 0."""

    def __init__(self, place: Path, folder: str, *more: str) -> None:
        self.place, self.folder, self.more = place, folder, more
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.agents = [self.start(0), self.start(1)]

    def start(self, number: int) -> subprocess.Popen[bytes]:
        name = ("first", "second")[number]
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self.port}", "--rdzv-id", self.folder,
            "--local-addr", f"127.0.0.{number + 1}",
        ]  # fmt: skip
        with (self.place / f"{self.folder}-{name}.txt").open("a") as shown:
            return subprocess.Popen(
                [*torchrun, "-m", "proxlm", "ppo", "ppo.toml", "--run.folder", self.folder, *self.more],
                cwd=self.place / name, env=ENVIRONMENT, stdout=shown, stderr=shown,
            )  # fmt: skip

    def end(self) -> None:
        """Wait for both, and compare what they have left with the run of two processes under one agent."""
        shown = [path.read_text for path in sorted(self.place.glob(f"{self.folder}-*.txt"))]
        assert [agent.wait(timeout=250) for agent in self.agents] == [0, 0], [text() for text in shown]
        one, two = self.place / "first" / "two", self.place / "first" / self.folder
        files = sorted(str(path.relative_to(one)) for path in one.rglob("*.safetensors"))
        assert len(files) == 7  # of three checkpoints and the policy
        for name in (*files, "samples.jsonl"):
            assert (two / name).read_bytes() == (one / name).read_bytes(), name
        assert sorted(path.name for path in (self.place / "second").iterdir()) == [
            "model",
            "ppo.toml",
            "reward.py",
        ]


def test_two_agents_take_the_run_of_one(place: Path) -> None:
    Machines(place, "undisturbed").end()


def test_after_a_killed_process_the_same_commands_go_on(place: Path) -> None:
    machines = Machines(place, "killed")
    wait_for(place / "first" / "killed" / "checkpoints" / "step-00000001", machines.agents[0])
    os.kill(worker(machines.agents[1].pid, 1), signal.SIGKILL)
    assert all(agent.wait(timeout=250) for agent in machines.agents)
    assert "another rank has ended" in (place / "killed-first.txt").read_text()
    Machines(place, "killed", "--run.resume", "true").end()


def test_restarts_of_several_agents_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each agent counts its own: the processes would look for one another in vain."""
    for name in ("WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match="--max-restarts is for one machine"), joined_ranks(1.0):
        pass
