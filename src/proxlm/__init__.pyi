"""The public interface for type checkers and editors; `__init__.py` has the same names for Python."""

from proxlm.classification.text_classifier import TextClassifier as TextClassifier
from proxlm.classification.text_classifier import load_text_classifier as load_text_classifier
from proxlm.compression.cost import Cost as Cost
from proxlm.config import BaggingSettings as BaggingSettings
from proxlm.config import (
    BlockSettings as BlockSettings,
)
from proxlm.config import BoostingSettings as BoostingSettings
from proxlm.config import (
    CalibrationSettings as CalibrationSettings,
)
from proxlm.config import ChatSettings as ChatSettings
from proxlm.config import ChineseSettings as ChineseSettings
from proxlm.config import (
    ChoiceSettings as ChoiceSettings,
)
from proxlm.config import ClassifyConfig as ClassifyConfig
from proxlm.config import ClassTextSettings as ClassTextSettings
from proxlm.config import (
    ComparisonTestSettings as ComparisonTestSettings,
)
from proxlm.config import (
    CompressConfig as CompressConfig,
)
from proxlm.config import ContaminationSettings as ContaminationSettings
from proxlm.config import (
    ControlConfig as ControlConfig,
)
from proxlm.config import (
    ControlPPOSettings as ControlPPOSettings,
)
from proxlm.config import CorpusConfig as CorpusConfig
from proxlm.config import (
    CorrectionSettings as CorrectionSettings,
)
from proxlm.config import (
    CostSettings as CostSettings,
)
from proxlm.config import (
    CovarianceSettings as CovarianceSettings,
)
from proxlm.config import (
    DataSettings as DataSettings,
)
from proxlm.config import (
    DistillConfig as DistillConfig,
)
from proxlm.config import (
    DistillSettings as DistillSettings,
)
from proxlm.config import (
    DPOConfig as DPOConfig,
)
from proxlm.config import (
    DPOSettings as DPOSettings,
)
from proxlm.config import (
    EnsembleSettings as EnsembleSettings,
)
from proxlm.config import (
    EnvironmentSettings as EnvironmentSettings,
)
from proxlm.config import (
    EvaluateConfig as EvaluateConfig,
)
from proxlm.config import (
    EvaluationSettings as EvaluationSettings,
)
from proxlm.config import ExactSettings as ExactSettings
from proxlm.config import (
    ExportCheckSettings as ExportCheckSettings,
)
from proxlm.config import (
    ExportConfig as ExportConfig,
)
from proxlm.config import FeatureSettings as FeatureSettings
from proxlm.config import (
    GymSettings as GymSettings,
)
from proxlm.config import HtmlSettings as HtmlSettings
from proxlm.config import (
    LabelSettings as LabelSettings,
)
from proxlm.config import LanguageSettings as LanguageSettings
from proxlm.config import (
    LoraSettings as LoraSettings,
)
from proxlm.config import (
    MagnitudeSettings as MagnitudeSettings,
)
from proxlm.config import (
    MetricSettings as MetricSettings,
)
from proxlm.config import (
    ModelSettings as ModelSettings,
)
from proxlm.config import NearSettings as NearSettings
from proxlm.config import (
    NetworkSettings as NetworkSettings,
)
from proxlm.config import (
    NewModelSettings as NewModelSettings,
)
from proxlm.config import (
    ObjectiveSettings as ObjectiveSettings,
)
from proxlm.config import (
    OptimiserSettings as OptimiserSettings,
)
from proxlm.config import (
    OptimisersSettings as OptimisersSettings,
)
from proxlm.config import (
    PerplexitySettings as PerplexitySettings,
)
from proxlm.config import PiiSettings as PiiSettings
from proxlm.config import (
    PPOConfig as PPOConfig,
)
from proxlm.config import (
    PPOSettings as PPOSettings,
)
from proxlm.config import (
    PreferenceSettings as PreferenceSettings,
)
from proxlm.config import (
    PretrainConfig as PretrainConfig,
)
from proxlm.config import (
    ProcessSettings as ProcessSettings,
)
from proxlm.config import (
    PtxSettings as PtxSettings,
)
from proxlm.config import QualitySettings as QualitySettings
from proxlm.config import (
    RecoverSettings as RecoverSettings,
)
from proxlm.config import (
    RewardConfig as RewardConfig,
)
from proxlm.config import (
    RewardSettings as RewardSettings,
)
from proxlm.config import (
    RewardTerm as RewardTerm,
)
from proxlm.config import (
    RolloutSettings as RolloutSettings,
)
from proxlm.config import (
    RunSettings as RunSettings,
)
from proxlm.config import (
    SearchConfig as SearchConfig,
)
from proxlm.config import (
    SFTConfig as SFTConfig,
)
from proxlm.config import (
    ShapingSettings as ShapingSettings,
)
from proxlm.config import SplitSettings as SplitSettings
from proxlm.config import (
    StructuredSettings as StructuredSettings,
)
from proxlm.config import (
    SupervisedSettings as SupervisedSettings,
)
from proxlm.config import (
    TeacherSettings as TeacherSettings,
)
from proxlm.config import (
    TextSettings as TextSettings,
)
from proxlm.config import (
    TrustRegionSettings as TrustRegionSettings,
)
from proxlm.config import UnicodeSettings as UnicodeSettings
from proxlm.config import (
    ValueConfig as ValueConfig,
)
from proxlm.config import (
    ValueSettings as ValueSettings,
)
from proxlm.config import WordSettings as WordSettings
from proxlm.config import (
    WordVectorSettings as WordVectorSettings,
)
from proxlm.config import (
    load_config as load_config,
)
from proxlm.config import (
    validate as validate,
)
from proxlm.data.prompts import (
    PromptStream as PromptStream,
)
from proxlm.data.tokenizer import (
    train_tokenizer as train_tokenizer,
)
from proxlm.doctor.doctor import (
    Doctor as Doctor,
)
from proxlm.doctor.doctor import (
    diagnose as diagnose,
)
from proxlm.doctor.facts import (
    facts_of as facts_of,
)
from proxlm.doctor.finding import (
    Finding as Finding,
)
from proxlm.engine.native import (
    NativeEngine as NativeEngine,
)
from proxlm.engine.protocol import (
    Engine as Engine,
)
from proxlm.engine.request import (
    Request as Request,
)
from proxlm.engine.request import (
    SamplingParams as SamplingParams,
)
from proxlm.environments.protocol import (
    Environment as Environment,
)
from proxlm.environments.protocol import (
    Task as Task,
)
from proxlm.errors import (
    ConfigError as ConfigError,
)
from proxlm.errors import (
    DataError as DataError,
)
from proxlm.errors import (
    ModelError as ModelError,
)
from proxlm.errors import (
    RewardError as RewardError,
)
from proxlm.errors import (
    RunError as RunError,
)
from proxlm.errors import (
    StoppedBySignalError as StoppedBySignalError,
)
from proxlm.errors import (
    UserCodeError as UserCodeError,
)
from proxlm.errors import (
    UserError as UserError,
)
from proxlm.evaluation.differences import Difference as Difference
from proxlm.evaluation.intervals import (
    Estimate as Estimate,
)
from proxlm.evaluation.results import (
    Evaluation as Evaluation,
)
from proxlm.jobs.classify import Classification as Classification
from proxlm.jobs.classify import fit_classifiers as fit_classifiers
from proxlm.jobs.compare import compare as compare
from proxlm.jobs.compress import Compression as Compression
from proxlm.jobs.compress import compress_model as compress_model
from proxlm.jobs.control import (
    ControlTrainer as ControlTrainer,
)
from proxlm.jobs.data import PreparedData as PreparedData
from proxlm.jobs.data import prepare_data as prepare_data
from proxlm.jobs.distill import (
    DistillTrainer as DistillTrainer,
)
from proxlm.jobs.dpo import (
    DPOTrainer as DPOTrainer,
)
from proxlm.jobs.evaluate import (
    evaluate as evaluate,
)
from proxlm.jobs.export import Export as Export
from proxlm.jobs.export import export_model as export_model
from proxlm.jobs.generate import (
    generate as generate,
)
from proxlm.jobs.loop_parts import (
    actor_critic as actor_critic,
)
from proxlm.jobs.loop_parts import (
    load_model as load_model,
)
from proxlm.jobs.loop_parts import (
    new_model as new_model,
)
from proxlm.jobs.loop_parts import (
    prompt_stream as prompt_stream,
)
from proxlm.jobs.loop_parts import (
    sample as sample,
)
from proxlm.jobs.loop_parts import (
    save as save,
)
from proxlm.jobs.loop_parts import (
    score as score,
)
from proxlm.jobs.ppo import (
    PPOTrainer as PPOTrainer,
)
from proxlm.jobs.pretrain import (
    PretrainTrainer as PretrainTrainer,
)
from proxlm.jobs.reward import (
    RewardTrainer as RewardTrainer,
)
from proxlm.jobs.search import (
    search_settings as search_settings,
)
from proxlm.jobs.sft import (
    SFTTrainer as SFTTrainer,
)
from proxlm.jobs.value import (
    ValueTrainer as ValueTrainer,
)
from proxlm.models.actor_critic import (
    ActorCritic as ActorCritic,
)
from proxlm.models.language_model import (
    LanguageModel as LanguageModel,
)
from proxlm.models.model_types import (
    register_model_types as register_model_types,
)
from proxlm.report.run import (
    Run as Run,
)
from proxlm.report.run import (
    load_run as load_run,
)
from proxlm.rewards.instructions import (
    kept as kept,
)
from proxlm.rewards.instructions import (
    share_kept as share_kept,
)
from proxlm.rewards.instructions import (
    wording as wording,
)
from proxlm.rewards.python_code import (
    python_parse_report as python_parse_report,
)
from proxlm.rewards.reward import (
    build_reward as build_reward,
)
from proxlm.rl.estimators import (
    AdvantageInputs as AdvantageInputs,
)
from proxlm.rl.estimators import (
    Advantages as Advantages,
)
from proxlm.rl.losses import (
    PolicyLoss as PolicyLoss,
)
from proxlm.rl.policy_losses import (
    LossInputs as LossInputs,
)
from proxlm.sandbox.run import (
    Isolation as Isolation,
)
from proxlm.sandbox.run import (
    Limits as Limits,
)
from proxlm.sandbox.run import (
    Program as Program,
)
from proxlm.sandbox.run import (
    SandboxError as SandboxError,
)
from proxlm.sandbox.run import (
    SandboxResult as SandboxResult,
)
from proxlm.sandbox.run import (
    isolation as isolation,
)
from proxlm.sandbox.run import (
    run_programs as run_programs,
)
from proxlm.sandbox.run import (
    run_python as run_python,
)
from proxlm.search.results import (
    SearchResults as SearchResults,
)
from proxlm.search.study import (
    Trial as Trial,
)
from proxlm.train.common.callbacks import (
    Callback as Callback,
)
from proxlm.train.common.callbacks import (
    StopTraining as StopTraining,
)
from proxlm.train.ppo.learner import (
    Learner as Learner,
)
from proxlm.train.ppo.learner import (
    build_learner as build_learner,
)
from proxlm.train.ppo.minibatch_statistics import (
    summarise as summarise,
)
from proxlm.train.ppo.prepare import (
    Prepared as Prepared,
)
from proxlm.train.ppo.prepare import (
    prepare as prepare,
)
from proxlm.train.ppo.update import (
    update as update,
)
from proxlm.types import (
    Completion as Completion,
)
from proxlm.types import (
    Experience as Experience,
)
from proxlm.types import (
    Prompt as Prompt,
)
from proxlm.types import (
    Rollout as Rollout,
)
from proxlm.types import (
    Scores as Scores,
)

__all__: list[str]
from proxlm.config import (
    ExtendSettings as ExtendSettings,
)
from proxlm.config import (
    TokenizerConfig as TokenizerConfig,
)
from proxlm.config import (
    TokenizerReportSettings as TokenizerReportSettings,
)
from proxlm.config import (
    TokenizerSettings as TokenizerSettings,
)
from proxlm.config import (
    TokenizerTextSettings as TokenizerTextSettings,
)
from proxlm.data.new_tokens import new_tokens as new_tokens
from proxlm.data.tokenizer_report import (
    TokenizerReport as TokenizerReport,
)
from proxlm.data.tokenizer_report import (
    tokenizer_report as tokenizer_report,
)
from proxlm.models.vocabulary import extend_vocabulary as extend_vocabulary

__version__: str
