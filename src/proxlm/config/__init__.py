"""One typed tree of settings per job. Nothing here imports torch."""

from proxlm.config.help import describe
from proxlm.config.jobs import DemoJob, EvaluateJob, GenerateJob, PPOJob, PretrainJob, ReportJob, SFTJob
from proxlm.config.parse import JOBS, load_config, to_toml
from proxlm.config.schema import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    NewModelConfig,
    OptimiserConfig,
    OptimisersConfig,
    PPOConfig,
    RewardConfig,
    RewardTerm,
    RolloutConfig,
    RunConfig,
    SupervisedConfig,
    TextConfig,
)

__all__ = [
    "JOBS",
    "DataConfig",
    "DemoJob",
    "EvaluateJob",
    "GenerateJob",
    "LoraConfig",
    "ModelConfig",
    "NewModelConfig",
    "OptimiserConfig",
    "OptimisersConfig",
    "PPOConfig",
    "PPOJob",
    "PretrainJob",
    "ReportJob",
    "RewardConfig",
    "RewardTerm",
    "RolloutConfig",
    "RunConfig",
    "SFTJob",
    "SupervisedConfig",
    "TextConfig",
    "describe",
    "load_config",
    "to_toml",
]
