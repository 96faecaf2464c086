"""Records of one chat format as records of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxlm.config import TextSettings
from proxlm.config.corpus_steps import ChatSettings
from proxlm.corpus.step import Outcome
from proxlm.corpus.texts import Fields
from proxlm.data.formats import Conversation, training_content
from proxlm.data.messages import Message
from proxlm.data.skipped import Record

# What the formats themselves consist of; other fields of a record are kept.
_FORMAT_FIELDS = frozenset(
    ("text", "messages", "conversations", "prompt", "response", "completion", "instruction", "input", "output",
     "history", "system")
)  # fmt: skip
_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
NOT_EXPRESSIBLE = "not expressible"


class ChatConversion:
    """A step that writes every record in the format `to`; one that it cannot express is left out."""

    def __init__(self, settings: ChatSettings) -> None:
        self._write = _WRITERS[settings.to]
        self._own = {settings.prompt_field, settings.response_field}
        self._text = TextSettings(
            chat=True, prompt_field=settings.prompt_field, response_field=settings.response_field
        )

    def __call__(self, record: Record) -> Outcome:
        content = training_content(record, self._text)
        if content is None:
            return Outcome(record.fields, "weight 0", "no turn is trained on")
        assert isinstance(content, Conversation)
        rest = {k: v for k, v in record.fields.items() if k not in _FORMAT_FIELDS | self._own}
        messages = [
            {**message, **({"weight": 0} if weight == 0 and message["role"] == "assistant" else {})}
            for message, weight in zip(content.messages, content.weights, strict=True)
        ]
        made = self._write(messages)
        if made is None:
            what = ", ".join(dict.fromkeys(str(message["role"]) for message in messages))
            return Outcome(record.fields, NOT_EXPRESSIBLE, f"messages of {what}")
        return Outcome({**made, **rest})


def _messages(messages: list[Message]) -> Fields:
    return {"messages": messages}


def _sharegpt(messages: list[Message]) -> Fields | None:
    turns: list[dict[str, Any]] = []
    for message in messages:
        if (
            message["role"] not in _SHAREGPT
            or not isinstance(message["content"], str)
            or "tool_calls" in message
        ):
            return None
        rest = {k: v for k, v in message.items() if k not in ("role", "content")}
        turns.append({"from": _SHAREGPT[message["role"]], "value": message["content"], **rest})
    return {"conversations": turns}


def _alpaca(messages: list[Message]) -> Fields | None:
    system, turns = _turns(messages)
    if turns is None:
        return None
    *earlier, (instruction, output) = turns
    made: Fields = {"instruction": instruction, "input": "", "output": output}
    if system:
        made["system"] = system
    if earlier:
        made["history"] = [list(turn) for turn in earlier]
    return made


def _prompt_response(messages: list[Message]) -> Fields | None:
    """Texts where one question and one answer are all; else lists of messages, the last answer being the response."""
    system, turns = _turns(messages)
    if turns is not None and len(turns) == 1 and not system:
        return {"prompt": turns[0][0], "response": turns[0][1]}
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return None
    if any("weight" not in m for m in messages[:-1] if m["role"] == "assistant"):
        # Turns of the assistant in a prompt are not trained on, so one record would lose what it teaches.
        return None
    prompt = [{k: v for k, v in message.items() if k != "weight"} for message in messages[:-1]]
    return {"prompt": prompt, "response": [messages[-1]]}


def _text(messages: list[Message]) -> Fields | None:
    if not all(isinstance(message["content"], str) for message in messages):
        return None
    return {"text": "\n\n".join(message["content"] for message in messages)}


def _turns(messages: list[Message]) -> tuple[str, list[tuple[str, str]] | None]:
    """The system's text, and pairs of the user's and the assistant's; None if that is not all there is."""
    rest = list(messages)
    system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else ""
    pairs = list(zip(rest[::2], rest[1::2], strict=False))
    plain = all(
        set(message) == {"role", "content"} and isinstance(message["content"], str) for message in rest
    )
    if not pairs or len(rest) % 2 or not plain:
        return "", None
    if any((asked["role"], answered["role"]) != ("user", "assistant") for asked, answered in pairs):
        return "", None
    return system, [(asked["content"], answered["content"]) for asked, answered in pairs]


_WRITERS: dict[str, Callable[[list[Message]], Fields | None]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_response": _prompt_response,
    "text": _text,
}
