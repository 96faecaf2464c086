"""One typed tree of settings per job. Nothing here imports torch."""

from proxlm.config.check import CheckConfig
from proxlm.config.classify import (
    BaggingSettings,
    BoostingSettings,
    ClassifyConfig,
    ClassTextSettings,
    FeatureSettings,
)
from proxlm.config.compare import CompareConfig
from proxlm.config.compress import (
    BlockSettings,
    CalibrationSettings,
    CompressConfig,
    CostSettings,
    MagnitudeSettings,
    RecoverSettings,
    StructuredSettings,
)
from proxlm.config.control import ControlPPOSettings, GymSettings, NetworkSettings
from proxlm.config.corpus import CorpusConfig
from proxlm.config.corpus_steps import (
    ChatSettings,
    ChineseSettings,
    ContaminationSettings,
    ExactSettings,
    HtmlSettings,
    LanguageSettings,
    NearSettings,
    PiiSettings,
    QualitySettings,
    SplitSettings,
    UnicodeSettings,
    WordSettings,
)
from proxlm.config.distillation import DistillConfig, DistillSettings, TeacherSettings
from proxlm.config.distributed import DistributedSettings
from proxlm.config.engine import EngineSettings
from proxlm.config.export import ExportCheckSettings, ExportConfig
from proxlm.config.folds import FoldsConfig
from proxlm.config.help import describe
from proxlm.config.inference_jobs import EvaluateConfig, GenerateConfig, PickSettings
from proxlm.config.jobs import (
    JOBS,
    ControlConfig,
    DemoConfig,
    DoctorConfig,
    ReportConfig,
    StopConfig,
    VerifyConfig,
)
from proxlm.config.launch import LaunchConfig
from proxlm.config.likelihood import ChoiceSettings, PerplexitySettings
from proxlm.config.loss import LossSettings
from proxlm.config.metrics import MetricSettings
from proxlm.config.model import LoraSettings, ModelSettings, ValueSettings
from proxlm.config.new import NewConfig
from proxlm.config.new_model import NewModelSettings, WordVectorSettings
from proxlm.config.optimiser import OptimiserSettings, OptimisersSettings
from proxlm.config.parse import load_config, settings_or_default, to_toml, validate
from proxlm.config.plan import PlanConfig
from proxlm.config.policy_jobs import PPOConfig, ValueConfig
from proxlm.config.ppo import (
    CorrectionSettings,
    CovarianceSettings,
    PPOSettings,
    PtxSettings,
    ShapingSettings,
    TrustRegionSettings,
)
from proxlm.config.preferences import DPOConfig, DPOSettings, PreferenceSettings
from proxlm.config.probe import ProbeConfig
from proxlm.config.reward_model import (
    ComparisonTestSettings,
    EnsembleSettings,
    LabelSettings,
    ObjectiveSettings,
    RewardConfig,
)
from proxlm.config.rollout import (
    EnvironmentSettings,
    EvaluationSettings,
    RolloutSettings,
    RolloutWeights,
)
from proxlm.config.schema import (
    DataSettings,
    ProcessSettings,
    RewardSettings,
    RewardTerm,
    RunSettings,
    SupervisedSettings,
    TextSettings,
)
from proxlm.config.search import SearchConfig, SweepConfig
from proxlm.config.supervised_jobs import PretrainConfig, SFTConfig
from proxlm.config.tokenizer import TokenizerSettings
from proxlm.config.tokenizer_job import (
    ExtendSettings,
    TokenizerConfig,
    TokenizerReportSettings,
    TokenizerTextSettings,
)

__all__ = [
    "JOBS",
    "BaggingSettings",
    "BlockSettings",
    "BoostingSettings",
    "CalibrationSettings",
    "ChatSettings",
    "CheckConfig",
    "ChineseSettings",
    "ChoiceSettings",
    "ClassTextSettings",
    "ClassifyConfig",
    "CompareConfig",
    "ComparisonTestSettings",
    "CompressConfig",
    "ContaminationSettings",
    "ControlConfig",
    "ControlPPOSettings",
    "CorpusConfig",
    "CorrectionSettings",
    "CostSettings",
    "CovarianceSettings",
    "DPOConfig",
    "DPOSettings",
    "DataSettings",
    "DemoConfig",
    "DistillConfig",
    "DistillSettings",
    "DistributedSettings",
    "DoctorConfig",
    "EngineSettings",
    "EnsembleSettings",
    "EnvironmentSettings",
    "EvaluateConfig",
    "EvaluationSettings",
    "ExactSettings",
    "ExportCheckSettings",
    "ExportConfig",
    "ExtendSettings",
    "FeatureSettings",
    "FoldsConfig",
    "GenerateConfig",
    "GymSettings",
    "HtmlSettings",
    "LabelSettings",
    "LanguageSettings",
    "LaunchConfig",
    "LoraSettings",
    "LossSettings",
    "MagnitudeSettings",
    "MetricSettings",
    "ModelSettings",
    "NearSettings",
    "NetworkSettings",
    "NewConfig",
    "NewModelSettings",
    "ObjectiveSettings",
    "OptimiserSettings",
    "OptimisersSettings",
    "PPOConfig",
    "PPOSettings",
    "PerplexitySettings",
    "PickSettings",
    "PiiSettings",
    "PlanConfig",
    "PreferenceSettings",
    "PretrainConfig",
    "ProbeConfig",
    "ProcessSettings",
    "PtxSettings",
    "QualitySettings",
    "RecoverSettings",
    "ReportConfig",
    "RewardConfig",
    "RewardSettings",
    "RewardTerm",
    "RolloutSettings",
    "RolloutWeights",
    "RunSettings",
    "SFTConfig",
    "SearchConfig",
    "ShapingSettings",
    "SplitSettings",
    "StopConfig",
    "StructuredSettings",
    "SupervisedSettings",
    "SweepConfig",
    "TeacherSettings",
    "TextSettings",
    "TokenizerConfig",
    "TokenizerReportSettings",
    "TokenizerSettings",
    "TokenizerTextSettings",
    "TrustRegionSettings",
    "UnicodeSettings",
    "ValueConfig",
    "ValueSettings",
    "VerifyConfig",
    "WordSettings",
    "WordVectorSettings",
    "describe",
    "load_config",
    "settings_or_default",
    "to_toml",
    "validate",
]
