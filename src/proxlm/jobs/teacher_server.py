"""A teacher behind a URL: its answers as texts, several requests at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proxlm.config import RolloutSettings, TeacherSettings
from proxlm.config.secrets import from_environment
from proxlm.errors import ConfigError, RunError
from proxlm.jobs.teacher_answers import Answer, Asked
from proxlm.masking import UNSHOWN, hide
from proxlm.rewards.judge_client import Budget, ChatClient, JudgeError, Reply


class TeacherServer:
    """Asks a server that speaks OpenAI's chat completions. What it writes is learnt as a text, and never run.

    Args:
        settings: The section [teacher].
        rollout: How it answers.

    Raises:
        ConfigError: The URL or the key cannot be one.
    """

    def __init__(self, settings: TeacherSettings, rollout: RolloutSettings) -> None:
        key = str(from_environment("teacher", {"key": settings.key})["key"]).strip()
        if key:
            hide(key, UNSHOWN)
        budget = Budget(settings.max_requests)
        try:
            self._client = ChatClient(settings.url.strip(), key, settings.timeout, settings.retries, budget)
        except ValueError as error:
            raise ConfigError(f"teacher.{error}") from error
        self._concurrency = settings.concurrency
        self._request: dict[str, Any] = {
            **settings.extra,
            "model": settings.name,
            "max_tokens": rollout.max_new_tokens,
            "temperature": rollout.temperature,
        }
        if rollout.top_p < 1:
            self._request["top_p"] = rollout.top_p
        if rollout.stop:
            self._request["stop"] = rollout.stop

    @property
    def group(self) -> int:
        """How many answers are asked for before they are written: what a killed run pays for again."""
        return 2 * self._concurrency

    def made_with(self) -> dict[str, Any]:
        """What the answers depend on, but for the prompts."""
        return {"url": self._client.url, "request": self._request}

    def __call__(self, group: Sequence[Asked]) -> list[Answer]:
        """The answers to a group of prompts.

        Raises:
            RunError: One stays unanswered.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self._concurrency, "proxlm-teacher") as threads:
            try:
                waiting = [threads.submit(self._client.ask, self._body(one), _answer, stop) for one in group]
                return [one.result() for one in waiting]
            except JudgeError as error:
                raise RunError(
                    f"teacher.url: {error}; what was answered before is kept: go on with --resume"
                ) from error
            finally:
                stop.set()
                threads.shutdown(cancel_futures=True)

    def _body(self, asked: Asked) -> dict[str, Any]:
        messages = [dict(message) for message in asked.prompt.messages]
        return {
            **self._request,
            "messages": messages or [{"role": "user", "content": asked.prompt.text}],
        }


def _answer(reply: Reply) -> Answer:
    """A reply as an answer; what the server has withheld is blank, and a blank one is not learnt."""
    if reply.finish not in ("stop", "length", "None"):
        return Answer("", "eos")
    return Answer(reply.text, "length" if reply.finish == "length" else "eos")
