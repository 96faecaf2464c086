"""An environment in which the policy may call tools before it answers, as `environment.use = "tools"`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxlm.data.messages import Message
from proxlm.environments.protocol import Answer, Extras, Messages, Task
from proxlm.environments.tools.calculator import calculator
from proxlm.environments.tools.calls import Call, calls_in, check_arguments, unknown
from proxlm.environments.tools.python_tool import python_tool
from proxlm.environments.tools.search import search_tool
from proxlm.environments.tools.tool_error import ToolError
from proxlm.environments.user_function import user_function
from proxlm.errors import ConfigError, UserError
from proxlm.text import reason_of, shown

NAMES = ("calculator", "python", "search")
# Calls of one turn that are made; the others are answered by an error.
MOST_CALLS = 8


class ToolUse:
    """A prompt, calls of tools and their results, and an answer: the first reply without a call.

    A reward function judges the answer (`reward.use`); the environment itself pays nothing. A call that is malformed
    or fails is answered by what was wrong. A reply without a call that was cut at `rollout.max_new_tokens` is no
    answer: the conversation ends as one that reached its limit.

    Args:
        tools: what may be called: calculator, python, search, or path/to/file.py:function, a function with types and
            a docstring in Google style.
        path: the folder that search looks in.
        results: passages that a search gives.
        seconds: limit of one program of python.
        longest: characters of a result; longer ones are cut.
        describe: whether the model is told of the tools, by its chat template where that has a place for them.

    Raises:
        ConfigError: a tool is unknown, or what it needs is missing.
    """

    def __init__(
        self,
        tools: Sequence[str] = ("calculator",),
        path: str = "",
        results: int = 3,
        seconds: float = 3.0,
        longest: int = 2000,
        describe: bool = True,
    ) -> None:
        if isinstance(tools, str) or not tools:
            raise ValueError('tools: must be a list of names, as in ["calculator", "python"]')
        if results < 1 or longest < 1:
            raise ValueError(f"results = {results} and longest = {longest}: must be at least 1")
        made = [_tool(name, path, results, seconds) for name in tools]
        self._tools = {function.__name__: function for function in made}
        self._schemas = {name: _schema(function) for name, function in self._tools.items()}
        self._longest = longest
        self.extras = Extras(
            tools=list(self._schemas.values()) if describe else (),
            answer="",  # of a conversation that ended without one
            counts={"tool_calls": 0, "failed_tool_calls": 0},
        )

    def reset(self, task: Task) -> Messages:
        if not task.text:
            raise UserError("the environment tools needs prompts: set data.prompts")
        return task.text

    def step(self, reply: str) -> Answer:
        calls = calls_in(reply)
        if not calls and self.extras.cut:  # half of an answer, or of a call
            self.extras.unfinished = True
            return "", 0.0, True
        if not calls:
            self.extras.answer = reply
            return "", 0.0, True
        results = [self._result(call, number) for number, call in enumerate(calls[: MOST_CALLS + 1])]
        return results, 0.0, False

    def _result(self, call: Call | ToolError, number: int) -> Message:
        """What a call gives, as a message of the tool."""
        self.extras.counts["tool_calls"] += 1
        try:
            if number >= MOST_CALLS:
                raise ToolError(f"only {MOST_CALLS} calls are made in one turn")
            text = self._called(call)
        except ToolError as error:
            self.extras.counts["failed_tool_calls"] += 1
            text = f"error: {error}"
        name = call.name if isinstance(call, Call) and call.name in self._tools else "error"
        cut = text if len(text) <= self._longest else text[: self._longest] + " […]"
        return {"role": "tool", "name": name, "content": cut}

    def _called(self, call: Call | ToolError) -> str:
        if isinstance(call, ToolError):
            raise call
        if call.name not in self._tools:
            raise unknown(call.name, list(self._tools))
        check_arguments(call, self._schemas[call.name])
        try:
            return str(self._tools[call.name](**call.arguments))
        except ToolError:
            raise
        except UserError:  # the sandbox: nothing that a model can do about it
            raise
        except Exception as error:  # a function of the user's
            raise ToolError(f"{type(error).__name__}: {reason_of(error)}") from error


def _tool(name: str, path: str, results: int, seconds: float) -> Callable[..., Any]:
    match name:
        case "calculator":
            return calculator
        case "python":
            return python_tool(seconds)
        case "search":
            return search_tool(path, results)
    if ":" not in name:
        raise ConfigError(
            f'environment.args.tools: no tool "{shown(name, 40)}"; there are {", ".join(NAMES)}, and'
            " path/to/file.py:function"
        )
    return user_function("tools", name)


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        return dict(get_json_schema(function))
    except Exception as error:  # no types, or no docstring
        name = shown(getattr(function, "__name__", "a function"), 40)
        raise ConfigError(
            f"environment.args.tools: {name} cannot be described: {reason_of(error)}"
        ) from error
