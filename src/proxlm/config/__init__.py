"""One typed tree of settings per job. Nothing here imports torch."""

from proxlm.config.control import ControlPPOSettings, GymSettings, NetworkSettings
from proxlm.config.help import describe
from proxlm.config.jobs import (
    JOBS,
    ControlConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    GenerateConfig,
    PPOConfig,
    PretrainConfig,
    ReportConfig,
    SFTConfig,
)
from proxlm.config.parse import load_config, to_toml, validate
from proxlm.config.ppo import (
    CorrectionSettings,
    PPOSettings,
    PtxSettings,
    ShapingSettings,
    TrustRegionSettings,
)
from proxlm.config.rollout import EnvironmentSettings, RolloutSettings, RolloutWeights
from proxlm.config.schema import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    RewardSettings,
    RewardTerm,
    RunSettings,
    SupervisedSettings,
    TextSettings,
)

__all__ = [
    "JOBS",
    "ControlConfig",
    "ControlPPOSettings",
    "CorrectionSettings",
    "DataSettings",
    "DemoConfig",
    "DoctorConfig",
    "EnvironmentSettings",
    "EvaluateConfig",
    "GenerateConfig",
    "GymSettings",
    "LoraSettings",
    "ModelSettings",
    "NetworkSettings",
    "NewModelSettings",
    "OptimiserSettings",
    "OptimisersSettings",
    "PPOConfig",
    "PPOSettings",
    "PretrainConfig",
    "PtxSettings",
    "ReportConfig",
    "RewardSettings",
    "RewardTerm",
    "RolloutSettings",
    "RolloutWeights",
    "RunSettings",
    "SFTConfig",
    "ShapingSettings",
    "SupervisedSettings",
    "TextSettings",
    "TrustRegionSettings",
    "describe",
    "load_config",
    "to_toml",
    "validate",
]
