"""The parts of a PPO step with few arguments, for a loop of one's own: see examples/ppo_loop.py.

`prepare` and `update`, the other two parts, are in train/ppo/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.checkpoint import publish_folder
from proxlm.config import ModelSettings, NewModelSettings, PPOConfig, RewardSettings
from proxlm.config.algorithms import advantage_of
from proxlm.config.paths import home_expanded
from proxlm.config.problems import learnt_rollout_problems
from proxlm.config.signature import checked
from proxlm.config.values import shown_value
from proxlm.data.prompts import PromptStream
from proxlm.data.tokenizer import tokenizer_of_new_model
from proxlm.engine.agreement import check_engine
from proxlm.engine.generate import generate as generate_rollout
from proxlm.engine.native import NativeEngine
from proxlm.errors import ConfigError
from proxlm.jobs.in_memory import record_source
from proxlm.jobs.new_models import new_language_model
from proxlm.jobs.prompts import load_prompts_of
from proxlm.jobs.startup import seeded_weights
from proxlm.models.actor_critic import ActorCritic, actor_critic_of
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.models.source import ModelSource
from proxlm.rewards import Reward, Rewards, build_reward
from proxlm.train.common.schedules import temperature_at
from proxlm.types import Prompt, Rollout, Scores


@checked()
def load_model(model: Any, settings: ModelSettings | None = None, *, tokenizer: Any = None) -> LanguageModel:
    """Load a language model, in float32 and ready to train or to generate.

    What generates and what trains are compared with transformers' own forward on a few random tokens.

    Args:
        model: A folder, a name on the Hugging Face hub, or a transformers model (with `tokenizer`).
        settings: Device, precision, adapters and more.
        tokenizer: The tokenizer of a transformers model.

    Raises:
        ModelError: It cannot be loaded, or is of a type that cannot be trained.
    """
    source = ModelSource(settings or ModelSettings(), model, tokenizer)
    with ExitStack() as on_error:
        on_error.enter_context(source.lent())
        loaded = source.load()
        check_engine(loaded)
        on_error.pop_all()  # it is the caller's from here
    return loaded


@checked()
def new_model(
    texts: Iterable[str],
    new: NewModelSettings | None = None,
    settings: ModelSettings | None = None,
    *,
    seed: int = 0,
) -> LanguageModel:
    """Make a language model with random weights, and train its tokenizer on texts (or load `new.tokenizer`).

    Args:
        texts: What the tokenizer is trained on.
        new: Type and size.
        settings: Device, precision and more.
        seed: Of the weights.

    Raises:
        ConfigError: A setting is wrong.
    """
    new, settings = new or NewModelSettings(), settings or ModelSettings()
    if new.embeddings.train != "none":
        texts = list(texts)  # which are read again
    tokenizer = tokenizer_of_new_model("new", new, texts, settings.trust_remote_code)
    with seeded_weights(seed):
        return new_language_model(new, tokenizer, settings, lambda: texts, seed)


@checked()
def actor_critic(policy: LanguageModel, config: PPOConfig) -> ActorCritic:
    """Policy, critic and reference: a frozen copy of the policy as it is now, or with adapters its bare base.

    Args:
        policy: Trained in place.
        config: `model.critic`, `model.critic_from`, `model.teacher` and `ppo.advantage` are used; an advantage that
            uses no values has no critic.
    """
    with seeded_weights(config.run.seed):
        return actor_critic_of(policy, config.model, advantage_of(config.ppo.advantage).critic)


@checked("prompts")
def prompt_stream(
    prompts: Iterable[Any] | str | Path, policy: LanguageModel, config: PPOConfig
) -> PromptStream:
    """Batches of prompts without end, encoded for the policy; `stream.batch(step)` is the batch of a step.

    Args:
        prompts: Texts, chats or records, or the path of a file of these; see `PPOTrainer`.
        policy: Whose tokenizer and context are used.
        config: `data`, `rollout.max_new_tokens`, `ppo.batch_size` and `run.seed` are used.

    Raises:
        DataError: A prompt cannot be used.
    """
    return PromptStream(encode_prompts(prompts, policy, config), config.ppo.batch_size, config.run.seed)


def encode_prompts(
    prompts: Iterable[Any] | str | Path, policy: LanguageModel, config: PPOConfig
) -> list[Prompt]:
    """All prompts, encoded for the policy; arguments as in `prompt_stream`."""
    source = record_source(prompts, "prompts", config.data.prompt_field)
    if source is None:
        raise ConfigError("prompts: expected texts, chats, records or a file of these, got None")
    model = ModelSource(config.model, policy)
    return load_prompts_of(source, model, config.data, config.rollout, config.run.seed)


@checked()
def sample(policy: LanguageModel, prompts: Sequence[Prompt], config: PPOConfig, step: int = 0) -> Rollout:
    """Sample `ppo.samples_per_prompt` responses to each prompt.

    Args:
        policy: Generates.
        prompts: Encoded prompts.
        config: `rollout`, `ppo.samples_per_prompt` and `run.seed` are used.
        step: Number of the step, from 0; other steps have other random numbers.

    Returns:
        Token ids, log-probs and texts; rows of one prompt are neighbours.

    Raises:
        ConfigError: Settings of `rollout` with which the responses are no samples of the policy.
    """
    for name, problem in learnt_rollout_problems(config.rollout):
        raise ConfigError(f"{name}: {problem}")
    if step < 0:
        raise ConfigError(f"step: steps are counted from 0, got {step}")
    repeated = [prompt for prompt in prompts for _ in range(config.ppo.samples_per_prompt)]
    settings = replace(config.rollout, temperature=temperature_at(config.rollout, step, config.ppo.steps))
    with closing(NativeEngine(policy, settings)) as engine:
        engine.load_weights([], step)
        return generate_rollout(engine, repeated, settings, seed=config.run.seed, step=step)


@checked()
def score(rollout: Rollout, reward: Reward | Rewards) -> Scores:
    """What the responses are worth.

    Args:
        rollout: The responses.
        reward: One reward function or several (see `PPOTrainer`), or what `build_reward` returns.

    Raises:
        RewardError: The reward fails, or returns something else than numbers.
    """
    return build_reward(RewardSettings(), reward)(rollout)


@checked()
def save(policy: LanguageModel, folder: str | Path) -> None:
    """Write model and tokenizer in Hugging Face format, adapters folded in.

    The folder is there whole or not at all; one that exists is replaced.
    """
    path = Path(home_expanded(str(folder)))
    if not path.name:
        raise ConfigError(f"folder: expected the path of a new folder, got {shown_value(str(folder))}")
    publish_folder(path, lambda path: save_language_model(policy, path))
