"""From the settings of an environment to what a run needs: conversations instead of responses, and their scores."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from proxlm.config import DataSettings, EnvironmentSettings
from proxlm.config.paths import ENVIRONMENT_PREFIXES
from proxlm.config.secrets import from_environment
from proxlm.data.chat import ChatFormat
from proxlm.data.prompts import LoadedPrompts
from proxlm.environments.games import GAMES
from proxlm.environments.gymnasium_text import GymnasiumText
from proxlm.environments.message_tokens import ChatMessageTokens, MessageTokens, PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.openenv import OpenEnv
from proxlm.environments.protocol import MakeEnvironment
from proxlm.environments.textarena_games import TextArena
from proxlm.environments.tools.environment import ToolUse
from proxlm.errors import ConfigError
from proxlm.rl.ragged import segment_sum
from proxlm.text import shown, suggestion
from proxlm.types import Prompt, Rollout, Scores
from proxlm.user_code import describe_error, load, parse_reference

BUILTINS: dict[str, Callable[..., Any]] = {**GAMES, "tools": ToolUse}
# By what stands before the colon of a name; the rest is their first argument.
_FAMILIES: dict[str, Callable[..., Any]] = dict(
    zip(ENVIRONMENT_PREFIXES, (TextArena, GymnasiumText, OpenEnv), strict=True)
)


def conversations(
    settings: EnvironmentSettings, data: DataSettings, tokenizer: Any, make: MakeEnvironment | None = None
) -> MultiTurn:
    """The sampler of conversations.

    Args:
        settings: which environment, and the limits of a conversation.
        data: whether messages go through a chat template, and which.
        tokenizer: of the model.
        make: makes an environment, instead of `settings.use`.

    Raises:
        ConfigError: something is wrong in the settings.
    """
    tokens: MessageTokens = PlainMessageTokens(tokenizer)
    if data.chat:
        tokens = ChatMessageTokens(ChatFormat.of(tokenizer, data), data.system)
    return MultiTurn(resolve(settings) if make is None else _given(make), tokens, settings)


def resolve(settings: EnvironmentSettings) -> MakeEnvironment:
    """A function that makes a new environment for each conversation. Raises ConfigError for wrong arguments."""
    use, key = settings.use, "environment.use"
    args = from_environment("environment.args", settings.args)
    made: Callable[..., Any]
    if prefix := next((prefix for prefix in _FAMILIES if use.startswith(prefix)), None):
        made = functools.partial(_FAMILIES[prefix], use.removeprefix(prefix))
    elif reference := parse_reference(use):
        made = load(key, reference)
    elif use in BUILTINS:
        made = BUILTINS[use]
    else:
        others = ", ".join(f"{prefix}NAME" for prefix in ENVIRONMENT_PREFIXES)
        listing = f"built in are {', '.join(BUILTINS)}; others: {others}; your own: path/to/file.py:Class"
        raise ConfigError(f'{key} = "{use}": no such environment; {suggestion(use, BUILTINS, listing)}')
    try:
        inspect.signature(made).bind(**args)
        sample = made(**args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"environment.args: {use}: {error}") from error
    _check_methods(f"{key}: {use}", sample)
    return functools.partial(made, **args)


def _given(make: MakeEnvironment) -> MakeEnvironment:
    """What a Python caller passes, once it has made one environment. Raises ConfigError for what makes none."""
    name = shown(getattr(make, "__name__", type(make).__name__))
    try:
        sample = make()
    except Exception as error:
        raise ConfigError(f"environment: {name}() raised {describe_error(error)}") from error
    _check_methods(f"environment: what {name}() makes", sample)
    return make


def _check_methods(what: str, environment: object) -> None:
    for method in ("reset", "step"):
        if not callable(getattr(environment, method, None)):
            raise ConfigError(
                f"{what} has no method {method}; an environment has reset(task) and step(reply)"
            )


def task_prompts(settings: EnvironmentSettings, count: int) -> tuple[LoadedPrompts, LoadedPrompts]:
    """Prompts without text, for environments that need none: tasks to train on, and `count` held-out ones."""
    first = settings.tasks
    train = [Prompt(i, (), "") for i in range(first)]
    return LoadedPrompts(train), LoadedPrompts([Prompt(i, (), "") for i in range(first, first + count)])


def with_environment(reward: Callable[[Rollout], Scores] | None) -> Callable[[Rollout], Scores]:
    """Scores of conversations: what the environment paid, on the turns it paid for, plus another reward if given."""

    def scores(rollout: Rollout) -> Scores:
        assert rollout.rewards is not None
        offsets = rollout.sequences.response_offsets
        paid = segment_sum(rollout.rewards, offsets).tolist()
        if reward is None:
            zeros = torch.zeros(len(rollout))
            return Scores(zeros, rollout.rewards, components={"environment": paid})
        more = reward(rollout)
        per_token = rollout.rewards if more.per_token is None else rollout.rewards + more.per_token
        # Where the other reward gives none, what the environment paid is the reward.
        total = more.total.nan_to_num(0.0)
        components = {"environment": paid, **more.components}
        return replace(more, total=total, per_token=per_token, components=components)

    return scores
