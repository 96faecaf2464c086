"""The formats of records for chat and instructions, each recognised here and nowhere else.

| format | fields |
| --- | --- |
| messages | `messages`: a list of {"role", "content"} |
| ShareGPT | `conversations`: a list of {"from", "value"} |
| prompt and response | `prompt` and `response` or `completion`, both texts or both lists of messages |
| alpaca | `instruction`, perhaps `input`, and `output`; perhaps `history`, a list of pairs of texts |

Beside messages a record may have `tools`, `system`, `chat_template_kwargs` and `weight` (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxlm.config import DataSettings, TextSettings
from proxlm.config.problems import RESERVED_VARIABLES
from proxlm.data.chat import ChatExtras
from proxlm.data.fields import field_at, fields_beside
from proxlm.data.messages import Message, checked_weight, json_value, read_messages, split_weights
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError
from proxlm.text import listed, shown, suggestion

# Alpaca's own words around an instruction (Taori et al. 2023), for models without a chat template.
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
    "\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_PROMPT, _RESPONSE, _MESSAGES = "prompt", "response", "messages"


@dataclass(frozen=True)
class Conversation:
    """A record's messages with everything that the chat template is given.

    Attributes:
        messages: In the form of messages.py, without weights.
        weights: For each message: 0 if its tokens are not trained on, else 1.
        extras: What the template is given beside them: tools and variables.
        field: The field that holds the messages, for errors.
    """

    messages: list[Message]
    weights: tuple[int, ...]
    extras: ChatExtras
    field: str


def training_content(record: Record, text: TextSettings) -> tuple[str, str] | Conversation | None:
    """What an SFT record holds: a prompt and a response as texts, or a conversation.

    Returns:
        None for a record of weight 0, or a conversation in which no turn of the assistant is trained on.

    Raises:
        BadRecordError: It is in none of the formats, or malformed; the message names the field.
    """
    if _weight(record, text.messages_field) == 0:
        return None
    content = _by_format(record, text)
    if isinstance(content, Conversation):
        roles = [message["role"] for message in content.messages]
        if "assistant" in roles and not any(
            weight for role, weight in zip(roles, content.weights, strict=True) if role == "assistant"
        ):
            return None
    return content


def prompt_content(record: Record, data: DataSettings, name: str) -> str | Conversation:
    """A record's prompt: a text that is not blank, or messages that end before the assistant's turn.

    Args:
        record: The record.
        data: The section [data].
        name: The field with the prompt. If it is the default, "prompt", and the record has none: its messages,
            conversations or instruction.

    Raises:
        BadRecordError: There is no such prompt; the message names the field.
    """
    value = field_at(record.fields, name)
    if value is None and name == _PROMPT:
        found = next((n for n in (_MESSAGES, "conversations", "instruction") if n in record.fields), None)
        name, value = found or name, record.fields.get(found) if found else None
    if value is None:
        raise missing_field(record, name, "data.prompt_field")
    where = f'{record.where}: field "{name}"'
    if isinstance(value, str):
        if not value.strip():
            raise BadRecordError(f"{where}: the prompt is empty", "empty")
        if name == "instruction":
            instruction, given = value, _optional_text(record, "input")
            value = _instruction(instruction, given) if data.chat else _alpaca_prompt(instruction, given)
        return _conversation(record, name, [{"role": "user", "content": value}]) if data.chat else value
    if not isinstance(value, list | Mapping):
        raise BadRecordError(
            f"{where}: a prompt must be a text or a list of messages, not {type(value).__name__}", "no text"
        )
    content = _conversation(record, name, read_messages(value, where))
    if content.messages[-1]["role"] == "assistant":
        raise BadRecordError(
            f"{where}: the last message is the assistant's; a prompt must end before its turn",
            "malformed messages",
        )
    return content


def missing_field(record: Record, wanted: str, key: str) -> BadRecordError:
    """The error for a record without the field `wanted`; key: the setting that names the field."""
    listing = f"fields here: {listed(record.fields)} (set {key})"
    hint = suggestion(wanted, record.fields, listing)
    return BadRecordError(f'{record.where}: no field "{shown(wanted)}"; {hint}', "field missing")


def _by_format(record: Record, text: TextSettings) -> tuple[str, str] | Conversation:
    fields = record.fields
    prompt = field_at(fields, text.prompt_field)
    response_field = text.response_field
    if response_field == _RESPONSE and _RESPONSE not in fields and "completion" in fields:
        response_field = "completion"
    response = field_at(fields, response_field)
    messages_field = text.messages_field
    if messages_field == _MESSAGES and _MESSAGES not in fields and "conversations" in fields:
        messages_field = "conversations"
    messages = field_at(fields, messages_field)
    if prompt is not None and (response is not None or messages is None):
        if response is None:
            raise missing_field(record, text.response_field, "text.response_field")
        return _prompt_and_response(record, text, response_field, prompt, response)
    if messages is not None:
        where = f'{record.where}: field "{messages_field}"'
        return _conversation(record, messages_field, read_messages(messages, where))
    if "instruction" in fields and (text.prompt_field, text.response_field) == (_PROMPT, _RESPONSE):
        return _alpaca(record, text)
    raise missing_field(record, text.prompt_field, "text.prompt_field or text.messages_field")


def _prompt_and_response(
    record: Record, text: TextSettings, response_field: str, prompt: Any, response: Any
) -> tuple[str, str] | Conversation:
    if isinstance(prompt, list | Mapping) and isinstance(response, list | Mapping):
        before = read_messages(prompt, f'{record.where}: field "{text.prompt_field}"')
        after = read_messages(response, f'{record.where}: field "{response_field}"')
        if not any(message["role"] == "assistant" for message in after):
            raise BadRecordError(
                f'{record.where}: field "{response_field}" has no message of the assistant',
                "malformed messages",
            )
        # Turns of the assistant in the prompt are context.
        return _conversation(record, response_field, [*({**m, "weight": 0} for m in before), *after])
    if isinstance(prompt, str) != isinstance(response, str):
        raise BadRecordError(
            f'{record.where}: fields "{text.prompt_field}" and "{response_field}" must both be texts or both lists'
            " of messages",
            "no text",
        )
    asked = _text(record, text.prompt_field, prompt)
    answered = _text(record, response_field, response)
    if not answered:
        raise BadRecordError(f'{record.where}: field "{response_field}" is empty', "empty")
    return _pair(record, text, response_field, asked, answered)


def _pair(
    record: Record, text: TextSettings, name: str, prompt: str, response: str
) -> tuple[str, str] | Conversation:
    if not text.chat:
        return prompt, response
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return _conversation(record, name, messages)


def _alpaca(record: Record, text: TextSettings) -> tuple[str, str] | Conversation:
    if "output" not in record.fields:
        raise missing_field(record, "output", "text.response_field")
    instruction = _text(record, "instruction", record.fields["instruction"])
    response = _text(record, "output", record.fields["output"])
    if not response:
        raise BadRecordError(f'{record.where}: field "output" is empty', "empty")
    given, history = _optional_text(record, "input"), _history(record)
    if not text.chat:
        if history:
            raise BadRecordError(
                f'{record.where}: field "history" needs the chat template: set text.chat = true',
                "malformed messages",
            )
        return _alpaca_prompt(instruction, given), response
    turns = [*history, (_instruction(instruction, given), response)]
    roles = ("user", "assistant")
    messages = [{"role": r, "content": t} for turn in turns for r, t in zip(roles, turn, strict=True)]
    return _conversation(record, "output", messages)


def _history(record: Record) -> list[tuple[str, str]]:
    """Alpaca's earlier turns."""
    pairs = record.fields.get("history", [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise BadRecordError(
            f'{record.where}: field "history" must be a list of pairs of texts', "malformed messages"
        )
    return [(asked, answered) for asked, answered in pairs]


def _instruction(instruction: str, given: str) -> str:
    return f"{instruction}\n\n{given}" if given else instruction


def _alpaca_prompt(instruction: str, given: str) -> str:
    template = _ALPACA_INPUT if given else _ALPACA
    return template.format(instruction=instruction, input=given)


def _conversation(record: Record, name: str, messages: list[Message]) -> Conversation:
    """The messages in the field `name`, with what stands beside it."""
    plain, weights = split_weights(messages, f'{record.where}: field "{name}"')
    system = _beside(record, name, "system")
    if isinstance(system, str) and system and plain[0]["role"] != "system":
        plain, weights = [{"role": "system", "content": system}, *plain], (1, *weights)
    return Conversation(plain, weights, ChatExtras(_tools(record, name), _variables(record, name)), name)


def _beside(record: Record, name: str, wanted: str) -> Any:
    """The field `wanted` beside the field `name`, or None."""
    return next((at[wanted] for at in fields_beside(record.fields, name) if wanted in at), None)


def _tools(record: Record, name: str) -> list[dict[str, Any]] | None:
    what = f'{record.where}: field "tools"'
    tools = json_value(_beside(record, name, "tools"), what)
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRecordError(f"{what} must be a list of objects, or its JSON", "malformed tools")
    for number, tool in enumerate(tools, 1):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRecordError(
                f'{what}: tool {number} needs a "function" with a text "name"', "malformed tools"
            )
    return [dict(tool) for tool in tools] or None


def _variables(record: Record, name: str) -> dict[str, Any]:
    what = f'{record.where}: field "chat_template_kwargs"'
    kwargs = json_value(_beside(record, name, "chat_template_kwargs"), what)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise BadRecordError(f"{what} must be an object, not {type(kwargs).__name__}", "malformed messages")
    if reserved := sorted(RESERVED_VARIABLES & kwargs.keys()):
        raise BadRecordError(f'{what}: "{reserved[0]}" is not a variable of a template', "malformed messages")
    return dict(kwargs)


def _weight(record: Record, name: str) -> int:
    weight = _beside(record, name, "weight")
    return 1 if weight is None else checked_weight(weight, record.where)


def _optional_text(record: Record, name: str) -> str:
    return _text(record, name, record.fields.get(name, ""))


def _text(record: Record, name: str, value: Any) -> str:
    if not isinstance(value, str):
        reason = f'{record.where}: field "{name}" must be a text, not {type(value).__name__}'
        raise BadRecordError(reason, "no text")
    return value
