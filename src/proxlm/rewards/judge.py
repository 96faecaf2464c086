"""A language model behind a URL as a judge: it rates a response, or compares it with the record's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

from proxlm.errors import RewardError
from proxlm.masking import UNSHOWN, hide
from proxlm.rewards.fields import field_of
from proxlm.rewards.judge_cache import JudgeCache, question_key
from proxlm.rewards.judge_client import Budget, ChatClient, JudgeError, Stopped
from proxlm.rewards.judge_rubric import VERSION, filled, rating_in, template_of, verdict_in
from proxlm.text import reason_of
from proxlm.threads import SLICE_SECONDS
from proxlm.types import Completion

# The parts of a request that are ours.
_OWN = ("model", "messages", "stream", "n", "temperature", "max_tokens")


@dataclass(frozen=True)
class Question:
    """A request; `key` names it in the cache."""

    key: str
    body: dict[str, Any]


class Judge:
    """Called with completions: a rating of each, or how it compares with the reference, or a RewardError.

    Args:
        url: Of a server that speaks OpenAI's chat completions: "http://127.0.0.1:8000/v1".
        model: The judge's name there.
        key: Its key, as env:NAME; "": none.
        mode: rating: a number from `lowest` to `highest`. pairwise: the response against the record's reference,
            asked in both orders; a win is 1, a tie ½, a loss 0, and the reward is the mean of the two.
        rubric: A template with {prompt}, {response} (pairwise: {first} and {second}) and fields of the record, or a
            file with one; "": a built-in one.
        language: Of the built-in rubric.
        field: pairwise: the record's field with the reference, a text.
        lowest: The worst rating.
        highest: The best rating.
        temperature: Of the judge; "default" sends none.
        max_tokens: Of its reply; 0 sends none.
        extra: More of the request, as the server knows it: {max_completion_tokens = 500}.
        samples: How often each question is asked; the reward is the mean.
        concurrency: Requests at a time.
        timeout: Seconds for one request.
        retries: How often a question that failed is asked again.
        max_characters: Of each text in a question; a longer one loses its middle.
        max_requests: The most requests of this process, repeated ones too; 0: no limit.
        cache: A file that keeps the answers; "": none.

    A question that stays unanswered is a RewardError for its completion, never a number.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        mode: Literal["rating", "pairwise"] = "rating",
        rubric: str = "",
        language: Literal["en", "zh"] = "en",
        field: str = "answer",
        lowest: float = 1.0,
        highest: float = 10.0,
        temperature: float | Literal["default"] = 0.0,
        max_tokens: int = 512,
        extra: dict[str, Any] | None = None,
        samples: int = 1,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        max_characters: int = 20_000,
        max_requests: int = 0,
        cache: str = "",
    ) -> None:
        least = {"samples": 1, "concurrency": 1, "retries": 0, "max_characters": 100, "max_tokens": 0}
        given = {
            "samples": samples,
            "concurrency": concurrency,
            "retries": retries,
            "max_characters": max_characters,
            "max_tokens": max_tokens,
            "max_requests": max_requests,
        }
        for name, value in given.items():
            if value < least.get(name, 0):
                raise ValueError(f"{name} = {value}: must be at least {least.get(name, 0)}")
        if concurrency > 256:
            raise ValueError(f"concurrency = {concurrency}: must be at most 256")
        if not 0 < timeout <= 3600:
            raise ValueError(f"timeout = {timeout:g}: must be more than 0 and at most 3600 seconds")
        if temperature != "default" and not 0 <= temperature <= 2:
            raise ValueError(f'temperature = {temperature:g}: must be from 0 to 2, or "default"')
        if not -1e6 <= lowest < highest <= 1e6:
            raise ValueError(
                f"highest = {highest:g}: must be more than lowest = {lowest:g}, both within ±1e6"
            )
        if not model.strip():
            raise ValueError("model: the judge's name at the server is missing")
        if taken := [name for name in extra or {} if name in _OWN]:
            raise ValueError(f"extra.{taken[0]}: set by the reward itself")
        if key.strip():
            hide(key.strip(), UNSHOWN)
        self._pairwise, self._field = mode == "pairwise", field
        self._lowest, self._highest = lowest, highest
        self._template = template_of(rubric, language, self._pairwise)
        self._request: dict[str, Any] = {**(extra or {}), "model": model}
        if temperature != "default":
            self._request["temperature"] = temperature
        if max_tokens:
            self._request["max_tokens"] = max_tokens
        self._samples, self._concurrency, self._longest = samples, concurrency, max_characters
        self._budget = Budget(max_requests)
        self._client = ChatClient(url.strip(), key.strip(), timeout, retries, self._budget)
        self._cache = JudgeCache(cache)

    @property
    def requests(self) -> int:
        """How many requests were made, repeated ones too."""
        return self._budget.made

    def __call__(self, completions: Sequence[Completion]) -> list[Any]:
        """A float or a RewardError for each completion."""
        asked = self._compared if self._pairwise else self._questions
        return [
            numbers if isinstance(numbers, RewardError) else self._score(numbers)
            for numbers in self._ask([asked(completion) for completion in completions])
        ]

    def preferences(
        self, completions: Sequence[Completion], others: Sequence[str]
    ) -> list[tuple[float, float] | RewardError]:
        """How often each completion is preferred to another text: where it is shown first, and where second.

        Args:
            completions: Responses.
            others: What each is compared with.

        Raises:
            ValueError: The mode is rating.
        """
        if not self._pairwise:
            raise ValueError("mode: the judge rates; for comparisons set it to pairwise")
        rows = [self._questions(c, other) for c, other in zip(completions, others, strict=True)]
        return [
            numbers if isinstance(numbers, RewardError) else _orders(numbers) for numbers in self._ask(rows)
        ]

    def _ask(self, rows: list[list[Question] | RewardError]) -> list[list[float] | RewardError]:
        """The numbers that answer each row's questions."""
        wanted = {q.key: q for row in rows if not isinstance(row, RewardError) for q in row}
        answers = self._answers(list(wanted.values()))
        return [row if isinstance(row, RewardError) else _numbers(row, answers) for row in rows]

    def _compared(self, completion: Completion) -> list[Question] | RewardError:
        """The questions about a completion and the record's own text."""
        reference = field_of(completion, self._field)
        if isinstance(reference, RewardError):
            return reference
        if not isinstance(reference, str) or not reference.strip():
            return RewardError(f'field "{self._field}" holds no text to compare with')
        return self._questions(completion, reference)

    def _questions(self, completion: Completion, reference: str = "") -> list[Question] | RewardError:
        """The questions about a completion; for pairwise, each with A as the response, then as the reference."""
        scale = {"lowest": f"{self._lowest:g}", "highest": f"{self._highest:g}"}
        if not self._pairwise:
            versions = [{"response": completion.text, **scale}]
        else:
            versions = [
                {"first": completion.text, "second": reference},
                {"first": reference, "second": completion.text},
            ]
        questions = []
        for texts in versions:
            text = filled(self._template, completion, texts, self._longest)
            if isinstance(text, RewardError):
                return text
            body = {**self._request, "messages": [{"role": "user", "content": text}]}
            scales = None if self._pairwise else [self._lowest, self._highest]
            for sample in range(self._samples):
                key = question_key(
                    url=self._client.url, body=body, scale=scales, sample=sample, version=VERSION
                )
                questions.append(Question(key, body))
        return questions

    def _score(self, numbers: list[float]) -> float:
        if self._pairwise:
            numbers = list(_orders(numbers))
        return sum(numbers) / len(numbers)

    def _answers(self, questions: list[Question]) -> dict[str, float | JudgeError]:
        """The answer to each question, from the cache or from the server, `concurrency` at a time."""
        answers: dict[str, float | JudgeError] = {}
        waiting: SimpleQueue[Question] = SimpleQueue()
        for question in questions:
            kept = self._cache.get(question.key)
            if kept is None:
                waiting.put(question)
            else:
                answers[question.key] = kept
        left = len(questions) - len(answers)
        done: SimpleQueue[tuple[str, float | JudgeError]] = SimpleQueue()
        stop = threading.Event()
        try:
            for _ in range(min(self._concurrency, left)):
                threading.Thread(
                    target=self._work, args=(waiting, done, stop), name="proxlm-judge", daemon=True
                ).start()
            while len(answers) < len(questions):
                try:
                    key, answer = done.get(timeout=SLICE_SECONDS)
                except Empty:
                    continue
                answers[key] = answer
        finally:  # also when this thread is interrupted, or given up because of reward.timeout
            stop.set()
        return answers

    def _work(
        self,
        waiting: SimpleQueue[Question],
        done: SimpleQueue[tuple[str, float | JudgeError]],
        stop: threading.Event,
    ) -> None:
        hopeless: JudgeError | None = None
        while not stop.is_set():
            try:
                question = waiting.get_nowait()
            except Empty:
                return
            try:
                answer: float | JudgeError = hopeless or self._client.answer(question.body, self._read, stop)
            except JudgeError as error:
                answer = error
                hopeless = error if error.for_all else None
            except Stopped:
                return
            except Exception as error:  # the one who waits must hear of it
                answer = JudgeError(f"{type(error).__name__}: {reason_of(error)}")
            if isinstance(answer, float):
                self._cache.put(question.key, answer)
            done.put((question.key, answer))

    def _read(self, text: str) -> float | None:
        return verdict_in(text) if self._pairwise else rating_in(text, self._lowest, self._highest)


def _numbers(
    questions: Sequence[Question], answers: dict[str, float | JudgeError]
) -> list[float] | RewardError:
    numbers: list[float] = []
    for question in questions:
        answer = answers[question.key]
        if isinstance(answer, JudgeError):
            # The mean of the others would be that of another question: of one order alone, for instance.
            return RewardError(f"judge: {answer}")
        numbers.append(answer)
    return numbers


def _orders(numbers: Sequence[float]) -> tuple[float, float]:
    """The response's share of the verdicts in which it was shown first, and of those in which it was second."""
    half = len(numbers) // 2
    return sum(numbers[:half]) / half, 1 - sum(numbers[half:]) / half
