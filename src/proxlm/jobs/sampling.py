"""What a job samples and scores: single responses to prompts, or conversations with an environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxlm.config import DataSettings, EvaluateConfig, PPOConfig
from proxlm.data.prompts import LoadedPrompts, PromptSources
from proxlm.data.skipped import Skipped
from proxlm.engine.generate import Generate, generate
from proxlm.environments.protocol import MakeEnvironment
from proxlm.environments.resolve import conversations, task_prompts, with_environment
from proxlm.errors import ConfigError
from proxlm.jobs.model_limits import check_tokens
from proxlm.jobs.prompts import load_prompt_sets
from proxlm.models.source import ModelSource
from proxlm.rewards import Reward, Rewards
from proxlm.train.ppo.collect import RewardOfRollout


def rewarded(config: PPOConfig, function: Rewards | None = None) -> bool:
    """Whether there is a reward to build, or that must be given; with an environment there need not be one."""
    return (
        function is not None or bool(config.reward.use or config.reward.terms) or not config.environment.use
    )


def check_conversations(config: PPOConfig | EvaluateConfig, model: ModelSource) -> None:
    """Raise ConfigError for conversations with an encoder–decoder. Reads the model's configuration only.

    Its encoder reads one text to the end before the decoder begins; what an environment says later cannot be read.
    """
    if config.environment.use and model.encoder_decoder:
        raise ConfigError(
            f'environment.use = "{config.environment.use}": conversations are for decoder-only models, and'
            f' model.policy = "{model.settings.policy}" is an encoder–decoder'
        )


def prompts_of(
    config: PPOConfig, model: ModelSource, skipped: Skipped, sources: PromptSources | None = None
) -> tuple[LoadedPrompts, LoadedPrompts]:
    """Training and held-out prompts; an environment without data.prompts has tasks instead."""
    check_conversations(config, model)
    data = config.data
    if config.environment.use and not data.prompts and sources is None:
        check_tokens(model, config.rollout)
        return task_prompts(config.environment, data.eval_count)
    return load_prompt_sets(model, data_of(config), config.rollout, config.run.seed, skipped, sources)


def data_of(config: PPOConfig | EvaluateConfig) -> DataSettings:
    """How prompts are read. An environment receives the bare text; its messages go through the chat template."""
    return replace(config.data, chat=False, system="") if config.environment.use else config.data


def sampler_of(
    config: PPOConfig | EvaluateConfig,
    tokenizer: Any,
    reward: Reward | None,
    make: MakeEnvironment | None = None,
) -> tuple[Generate, RewardOfRollout | None]:
    """What samples and what scores: single responses, or conversations with what the environment pays."""
    if config.environment.use:
        return conversations(config.environment, config.data, tokenizer, make), with_environment(reward)
    return generate, reward
