"""What a judge is asked, and how its answer is read: a template with {names}, and a verdict in double brackets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from proxlm.errors import RewardError
from proxlm.files import read_regular
from proxlm.rewards.fields import field_of
from proxlm.rewards.judge_wording import PAIRWISE, RATING
from proxlm.text import shown, system_reason
from proxlm.types import Completion

# Changes with the wording below and with how verdicts are read: answers in a cache belong to it.
VERSION = 1
LARGEST_RUBRIC = 2**16
# Characters: of a reply, from its end, that are read; and of one that is a verdict and nothing else.
LONGEST_READ, LONGEST_BARE = 2**16, 40
_NAME = re.compile(r"\{([A-Za-z_][\w.]*)\}")


def template_of(rubric: str, language: str, pairwise: bool) -> str:
    """The template: the built-in one, the text itself, or a file's.

    Args:
        rubric: "", a template, or a file with one. A text is a template if it has a {name} in it or several lines.
        language: Of the built-in one, en or zh.
        pairwise: Whether two responses are compared.

    Raises:
        ValueError: It cannot be read, or does not show the judge what it is to judge.
    """
    if not rubric:
        return (PAIRWISE if pairwise else RATING)[language]
    text = rubric
    if not _NAME.search(rubric) and "\n" not in rubric:
        try:
            text = read_regular(os.path.expanduser(rubric), LARGEST_RUBRIC).decode("utf-8-sig")
        except OSError as error:
            reason = f"{system_reason(error)}; give a file, or a text with {{prompt}} and {{response}}"
            raise ValueError(f'rubric = "{shown(rubric)}": {reason}') from error
        except ValueError as error:
            raise ValueError(f'rubric = "{shown(rubric)}": not a text in UTF-8') from error
    names = set(_NAME.findall(text))
    for name in ("first", "second") if pairwise else ("response",):
        if name not in names:
            raise ValueError(
                f"rubric: has no {{{name}}}, so that the judge would not see the {name} response"
                if pairwise
                else f"rubric: has no {{{name}}}, so that the judge would not see it"
            )
    return text


def filled(
    template: str, completion: Completion, texts: Mapping[str, str], longest: int
) -> str | RewardError:
    """The template with each {name} replaced once: by `texts`, by the prompt, or by a field of the record.

    What is put in is not looked through again: a {name} in a response stays as it is.

    Args:
        template: With {prompt}, {mark}, names of `texts`, and names or paths of the record's fields.
        completion: Whose prompt and record it is.
        texts: More names.
        longest: The most characters of each text that is put in; a longer one loses its middle.

    Returns:
        The question, or a RewardError: the record lacks a field.
    """
    known = {"prompt": _conversation(completion), **texts}
    known = {name: _bounded(text, longest) for name, text in known.items()}
    known["mark"] = hashlib.sha256("\0".join(known.values()).encode("utf-8", "replace")).hexdigest()[:8]
    for name in _NAME.findall(template):
        if name not in known:
            value = field_of(completion, name)
            if isinstance(value, RewardError):
                return RewardError(f"rubric: {value}")
            known[name] = _bounded(
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str),
                longest,
            )
    return _NAME.sub(lambda found: known[found[1]], template)


def rating_in(text: str, lowest: float, highest: float) -> float | None:
    """The rating in a judge's reply, or None: the last [[7]], else the last "Rating: 7" or "评分：7", else a bare 7.

    A number outside the scale, or out of another one (7/5 of 10), is none: it is not moved into it.
    """
    text = _own_words(text)
    number = r"([-+]?\d{1,9}(?:\.\d{1,9})?)"
    found = re.findall(rf"\[\[\s*{number}\s*(?:/\s*{number}\s*)?\]\]", text)
    if not found and "[[" not in text:
        before = r"(?i)(?:\b(?:rating|score)|评分|得分|分数)[\"'*_ ]*[:=][\"'*_ ]*"
        found = re.findall(rf"{before}{number}(?!\.?\d|\s*[-–]\s*\d)(?:\s*/\s*{number})?", text)
        if not found and len(text) <= LONGEST_BARE:
            found = re.findall(rf"^\W*?{number}()\W*$", text)
    if not found:
        return None
    value, out_of = found[-1]
    rating = float(value)
    if (out_of and float(out_of) != highest) or not lowest <= rating <= highest:
        return None
    return rating


def verdict_in(text: str) -> float | None:
    """1 for A, 0 for B, ½ for a tie, by the last [[A]], [[B]] or [[tie]] in a judge's reply; else None."""
    text = _own_words(text)
    found = re.findall(r"(?i)\[\[\s*(?:response\s+)?(a|b|c|tie|平局|平手|一样好)\s*\]\]", text)
    if not found and len(text) <= LONGEST_BARE:
        found = re.findall(r"(?i)^\W*(a|b|tie)\W*$", text)
    return {"a": 1.0, "b": 0.0}.get(found[-1].lower(), 0.5) if found else None


def _own_words(text: str) -> str:
    """A reply in plain digits and brackets, without what a reasoning model thought before it."""
    return unicodedata.normalize("NFKC", text.rpartition("</think>")[2][-LONGEST_READ:]).strip()


def _bounded(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[len(text) - half :]}"


def _conversation(completion: Completion) -> str:
    """The prompt as a judge reads it: its text, or the messages before the response, with their roles."""
    messages = completion.messages[:-1]
    if not messages:
        return completion.prompt
    if len(messages) == 1 and messages[0].get("role") == "user":
        return _content(messages[0])
    return "\n\n".join(f"{message.get('role')}: {_content(message)}" for message in messages)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
