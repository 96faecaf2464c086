"""Language models improved by Proximal Policy Optimisation: from raw text to a tuned model.

`__all__` is the public interface; everything else is private and may change. Nothing here imports torch until a name
that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each name is. `__init__.pyi` says the same to type checkers and editors, and a test compares the two.
_HOMES = {
    "proxlm.config": (
        "BaggingSettings", "BoostingSettings", "ClassTextSettings", "ClassifyConfig", "FeatureSettings",
        "BlockSettings", "CalibrationSettings", "CompressConfig", "CostSettings", "MagnitudeSettings",
        "RecoverSettings", "StructuredSettings",
        "ChoiceSettings", "ComparisonTestSettings", "ControlConfig", "ControlPPOSettings", "CorrectionSettings",
        "CovarianceSettings", "DPOConfig", "DPOSettings", "DataSettings", "DistillConfig", "DistillSettings",
        "EnsembleSettings", "EnvironmentSettings", "EvaluateConfig", "EvaluationSettings", "ExportCheckSettings",
        "ExportConfig", "GymSettings", "LabelSettings", "LoraSettings",
        "MetricSettings", "ModelSettings", "NetworkSettings", "NewModelSettings", "ObjectiveSettings",
        "OptimiserSettings", "OptimisersSettings", "PPOConfig", "PPOSettings", "PerplexitySettings",
        "PreferenceSettings", "PretrainConfig", "ProcessSettings", "PtxSettings", "RewardConfig", "RewardSettings",
        "ExtendSettings", "TokenizerConfig", "TokenizerReportSettings", "TokenizerSettings", "TokenizerTextSettings",
        "RewardTerm", "RolloutSettings", "RunSettings", "SFTConfig", "SearchConfig",
        "ShapingSettings", "SupervisedSettings",
        "TeacherSettings", "TextSettings",
        "TrustRegionSettings", "ValueConfig", "ValueSettings", "WordVectorSettings", "load_config", "validate",
    ),
    "proxlm.config.corpus": ("CorpusConfig",),
    "proxlm.config.corpus_steps": (
        "ChatSettings", "ChineseSettings", "ContaminationSettings", "ExactSettings", "HtmlSettings",
        "LanguageSettings", "NearSettings", "PiiSettings", "QualitySettings", "SplitSettings", "UnicodeSettings",
        "WordSettings",
    ),
    "proxlm.data.prompts": ("PromptStream",),
    "proxlm.data.new_tokens": ("new_tokens",),
    "proxlm.data.tokenizer": ("train_tokenizer",),
    "proxlm.data.tokenizer_report": ("TokenizerReport", "tokenizer_report"),
    "proxlm.doctor.doctor": ("Doctor", "diagnose"),
    "proxlm.doctor.facts": ("facts_of",),
    "proxlm.doctor.finding": ("Finding",),
    "proxlm.engine.native": ("NativeEngine",),
    "proxlm.engine.protocol": ("Engine",),
    "proxlm.engine.request": ("Request", "SamplingParams"),
    "proxlm.environments.protocol": ("Environment", "Task"),
    "proxlm.errors": (
        "ConfigError", "DataError", "ModelError", "RewardError", "RunError", "StoppedBySignalError", "UserCodeError",
        "UserError",
    ),
    "proxlm.evaluation.intervals": ("Estimate",),
    "proxlm.evaluation.results": ("Evaluation",),
    "proxlm.evaluation.differences": ("Difference",),
    "proxlm.classification.text_classifier": ("TextClassifier", "load_text_classifier"),
    "proxlm.compression.cost": ("Cost",),
    "proxlm.jobs.classify": ("Classification", "fit_classifiers"),
    "proxlm.jobs.compare": ("compare",),
    "proxlm.jobs.compress": ("Compression", "compress_model"),
    "proxlm.jobs.control": ("ControlTrainer",),
    "proxlm.jobs.data": ("PreparedData", "prepare_data"),
    "proxlm.jobs.distill": ("DistillTrainer",),
    "proxlm.jobs.dpo": ("DPOTrainer",),
    "proxlm.jobs.evaluate": ("evaluate",),
    "proxlm.jobs.export": ("Export", "export_model"),
    "proxlm.jobs.generate": ("generate",),
    "proxlm.jobs.loop_parts": (
        "actor_critic", "load_model", "new_model", "prompt_stream", "sample", "save", "score",
    ),
    "proxlm.jobs.ppo": ("PPOTrainer",),
    "proxlm.jobs.value": ("ValueTrainer",),
    "proxlm.jobs.pretrain": ("PretrainTrainer",),
    "proxlm.jobs.reward": ("RewardTrainer",),
    "proxlm.jobs.search": ("search_settings",),
    "proxlm.jobs.sft": ("SFTTrainer",),
    "proxlm.models.actor_critic": ("ActorCritic",),
    "proxlm.models.language_model": ("LanguageModel",),
    "proxlm.models.vocabulary": ("extend_vocabulary",),
    "proxlm.models.model_types": ("register_model_types",),
    "proxlm.report.run": ("Run", "load_run"),
    "proxlm.rewards.instructions": ("kept", "share_kept", "wording"),
    "proxlm.rewards.python_code": ("python_parse_report",),
    "proxlm.rewards.reward": ("build_reward",),
    "proxlm.rl.estimators": ("AdvantageInputs", "Advantages"),
    "proxlm.rl.losses": ("PolicyLoss",),
    "proxlm.rl.policy_losses": ("LossInputs",),
    "proxlm.sandbox.run": (
        "Isolation", "Limits", "Program", "SandboxError", "SandboxResult", "isolation", "run_programs", "run_python",
    ),
    "proxlm.search.results": ("SearchResults",),
    "proxlm.search.study": ("Trial",),
    "proxlm.train.common.callbacks": ("Callback", "StopTraining"),
    "proxlm.train.ppo.learner": ("Learner", "build_learner"),
    "proxlm.train.ppo.minibatch_statistics": ("summarise",),
    "proxlm.train.ppo.prepare": ("Prepared", "prepare"),
    "proxlm.train.ppo.update": ("update",),
    "proxlm.types": ("Completion", "Experience", "Prompt", "Rollout", "Scores"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'proxlm' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
