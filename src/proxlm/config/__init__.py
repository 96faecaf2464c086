"""One typed tree of settings per job. Nothing here imports torch."""

from proxlm.config.control import ControlPPOConfig, EnvironmentConfig, NetworkConfig
from proxlm.config.help import describe
from proxlm.config.jobs import (
    ControlJob,
    DemoJob,
    DoctorJob,
    EvaluateJob,
    GenerateJob,
    PPOJob,
    PretrainJob,
    ReportJob,
    SFTJob,
)
from proxlm.config.parse import JOBS, load_config, to_toml
from proxlm.config.ppo import CorrectionConfig, PPOConfig, PtxConfig, ShapingConfig, TrustRegionConfig
from proxlm.config.rollout import MultiTurnConfig, RolloutConfig, RolloutWeights
from proxlm.config.schema import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    NewModelConfig,
    OptimiserConfig,
    OptimisersConfig,
    RewardConfig,
    RewardTerm,
    RunConfig,
    SupervisedConfig,
    TextConfig,
)

__all__ = [
    "JOBS",
    "ControlJob",
    "ControlPPOConfig",
    "CorrectionConfig",
    "DataConfig",
    "DemoJob",
    "DoctorJob",
    "EnvironmentConfig",
    "EvaluateJob",
    "GenerateJob",
    "LoraConfig",
    "ModelConfig",
    "MultiTurnConfig",
    "NetworkConfig",
    "NewModelConfig",
    "OptimiserConfig",
    "OptimisersConfig",
    "PPOConfig",
    "PPOJob",
    "PretrainJob",
    "PtxConfig",
    "ReportJob",
    "RewardConfig",
    "RewardTerm",
    "RolloutConfig",
    "RolloutWeights",
    "RunConfig",
    "SFTJob",
    "ShapingConfig",
    "SupervisedConfig",
    "TextConfig",
    "TrustRegionConfig",
    "describe",
    "load_config",
    "to_toml",
]
