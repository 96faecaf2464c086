"""What a job samples and scores: single responses to prompts, or conversations with an environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxlm.config import DataSettings, EvaluateConfig, PPOConfig
from proxlm.config.algorithms import ADVANTAGES
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
from proxlm.runlog.metric_names import EVALUATION, TEACHER_KL
from proxlm.train.ppo.collect import RewardOfRollout

# The environment that pays nothing: what is judged is the answer, by a reward.
TOOLS = "tools"


def rewarded(config: PPOConfig, function: Rewards | None = None) -> bool:
    """Whether there is a reward to build, or that must be given; an environment or a teacher may do without one.

    Raises:
        ConfigError: The environment judges nothing itself, and nothing else does.
    """
    given = function is not None or bool(config.reward.use or config.reward.terms)
    taught = bool(config.model.teacher) and config.ppo.teacher_coef > 0
    if config.environment.use == TOOLS and not (given or taught):
        raise ConfigError(
            f'environment.use = "{TOOLS}": it pays nothing itself, so every reward would be 0; set reward.use to a'
            " function that judges the answer"
        )
    return given or not (config.environment.use or taught)


def without_reward(config: PPOConfig) -> PPOConfig:
    """The settings of a run that learns from its teacher alone: the best step is the one nearest to the teacher.

    Raises:
        ConfigError: For settings of a reward, or of a critic of it.
    """
    ppo, shaping = config.ppo, config.shaping
    penalised = (
        (ppo.kl_coef > 0 and ppo.kl_in == "reward")
        or shaping.missing_eos != "ignore"
        or shaping.overlong_buffer
    )
    critic = ppo.advantage in ADVANTAGES and ADVANTAGES[ppo.advantage].critic
    for key, used, fix in (
        (
            "ppo.advantage",
            critic and not penalised,
            "so a critic has nothing to predict; set it to reinforce++",
        ),
        ("ppo.filter_groups", ppo.filter_groups, "so no prompt's responses differ in it; set it to false"),
        ("ppo.positive_coef", ppo.positive_coef > 0, "so no response is right or wrong; set it to 0"),
        ("shaping.normalise", shaping.normalise != "none", "so there are none to normalise; set it to none"),
        ("shaping.scale", shaping.scale != "none", "so there is none to scale; set it to none"),
    ):
        if used:
            raise ConfigError(f"{key}: the run has no reward, {fix}, or give a reward")
    if config.run.keep_best != "auto" or not config.evaluation.every:
        return config
    return replace(config, run=replace(config.run, keep_best=EVALUATION(TEACHER_KL), keep_best_is="lowest"))


def unjudged(config: PPOConfig | EvaluateConfig, reward: Reward | None) -> bool:
    """Whether neither a reward nor the environment says how good a conversation is."""
    return config.environment.use == TOOLS and reward is None


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
        if config.environment.use == TOOLS:
            raise ConfigError('environment.use = "tools": needs prompts to answer: set data.prompts')
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
        sampler = conversations(config.environment, config.data, tokenizer, make)
        return sampler, None if unjudged(config, reward) else with_environment(reward)
    return generate, reward
