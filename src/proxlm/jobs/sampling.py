"""What a job samples and scores: single responses to prompts, or conversations with an environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxlm.config import DataSettings, EvaluateConfig, PPOConfig
from proxlm.data.prompts import LoadedPrompts
from proxlm.data.skipped import Skipped
from proxlm.engine.generate import Generate, generate
from proxlm.environments.resolve import conversations, task_prompts, with_environment
from proxlm.errors import ConfigError
from proxlm.jobs.model_limits import is_encoder_decoder
from proxlm.jobs.prompts import load_prompt_sets
from proxlm.rewards import Reward, RewardFunction
from proxlm.train.ppo.collect import RewardOfRollout


def rewarded(config: PPOConfig, function: RewardFunction | None = None) -> bool:
    """Whether there is a reward to build, or that must be given; with an environment there need not be one."""
    return (
        function is not None or bool(config.reward.use or config.reward.terms) or not config.environment.use
    )


def check_conversations(config: PPOConfig | EvaluateConfig) -> None:
    """Raise ConfigError for conversations with an encoder–decoder. Reads the model's configuration only.

    Its encoder reads one text to the end before the decoder begins; what an environment says later cannot be read.
    """
    if config.environment.use and is_encoder_decoder(config.model):
        raise ConfigError(
            f'environment.use = "{config.environment.use}": conversations are for decoder-only models, and'
            f' model.policy = "{config.model.policy}" is an encoder–decoder'
        )


def prompts_of(config: PPOConfig, skipped: Skipped) -> tuple[LoadedPrompts, LoadedPrompts]:
    """Training and held-out prompts; an environment without data.prompts has tasks instead."""
    check_conversations(config)
    data = config.data
    if config.environment.use and not data.prompts:
        return task_prompts(config.environment, data.eval_count)
    return load_prompt_sets(config.model, data_of(config), config.rollout, config.run.seed, skipped)


def data_of(config: PPOConfig | EvaluateConfig) -> DataSettings:
    """How prompts are read. An environment receives the bare text; its messages go through the chat template."""
    return replace(config.data, chat=False, system="") if config.environment.use else config.data


def sampler_of(
    config: PPOConfig | EvaluateConfig, tokenizer: Any, reward: Reward | None
) -> tuple[Generate, RewardOfRollout | None]:
    """What samples and what scores: single responses, or conversations with what the environment pays."""
    if config.environment.use:
        return conversations(config.environment, config.data, tokenizer), with_environment(reward)
    return generate, reward
