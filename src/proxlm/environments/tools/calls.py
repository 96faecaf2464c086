"""Calls of tools in a reply, as models write them, and their description for a model without a place for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.environments.tools.tool_error import ToolError
from proxlm.text import one_line, shown

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Characters of one call.
_LONGEST = 32_000
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call of a tool by name, with arguments by name."""

    name: str
    arguments: Mapping[str, Any]


def calls_in(reply: str) -> list[Call | ToolError]:
    """The calls of a reply in their order; for a malformed one, what is wrong with it. None: it is an answer.

    A call is {"name": NAME, "arguments": {…}} in <tool_call> tags (Hermes, Qwen), or the whole reply is one such
    object (Llama, which may say "parameters").
    """
    bodies = [part.partition(CLOSE)[0] for part in reply.split(OPEN)[1:]]
    if not bodies:
        whole = reply.strip()
        found = _read(whole) if whole.startswith("{") and whole.endswith("}") else None
        return [found] if isinstance(found, Call) else []
    return [_read(body) for body in bodies]


def _read(text: str) -> Call | ToolError:
    form = 'write {"name": NAME, "arguments": {…}}'
    if len(text) > _LONGEST:
        return ToolError(f"the call has more than {_LONGEST} characters")
    try:
        value = json.loads(text)
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        name = value["name"]
        arguments = value.get("arguments", value.get("parameters", {}))
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return ToolError(f"the call is not JSON; {form}")
    except (LookupError, TypeError, AttributeError):
        return ToolError(f"the call has no name; {form}")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolError(f"the name must be a text and the arguments an object; {form}")
    return Call(name, arguments)


def check_arguments(call: Call, schema: Mapping[str, Any]) -> None:
    """Raise ToolError for arguments that are missing, unknown, or of another type than the tool's schema says."""
    declared = schema["function"]["parameters"]
    properties = declared.get("properties", {})
    for name in declared.get("required", []):
        if name not in call.arguments:
            raise ToolError(f"{call.name} needs the argument {name}")
    for name, value in call.arguments.items():
        if name not in properties:
            known = ", ".join(properties) or "none"
            raise ToolError(f"{call.name} has no argument {_short(name)}; its arguments: {known}")
        kind = properties[name].get("type")
        if isinstance(kind, str) and type(value) not in _TYPES.get(kind, (type(value),)):
            raise ToolError(f"the argument {name} of {call.name} must be of type {kind}")


def unknown(name: str, names: Sequence[str]) -> ToolError:
    """The error for a tool that there is not."""
    return ToolError(f"there is no tool {_short(name)}; there are {', '.join(names)}")


def described(schemas: Sequence[Mapping[str, Any]]) -> str:
    """The tools and how they are called, for a model whose chat template has no place for them."""
    listing = "\n".join(json.dumps(schema["function"], ensure_ascii=False) for schema in schemas)
    call = '{"name": NAME, "arguments": {…}}'
    return (
        f"You may call these tools before you answer:\n{listing}\n"
        f"A call is written as {OPEN}{call}{CLOSE}. A reply without a call is your answer."
    )


def _short(name: str) -> str:
    return shown(one_line(name), 40)
