"""The built-in reward of reasoning-gym's tasks."""

from __future__ import annotations

from proxlm.data.reasoning_gym import is_gym_name, tasks_of
from proxlm.errors import DataError, RewardError
from proxlm.rewards.fields import field_of
from proxlm.rewards.scorer import Scorer
from proxlm.text import reason_of
from proxlm.types import Completion


def reasoning_gym(answer_tag: str = "") -> Scorer:
    """What the verifier of the record's task gives the response, in [0, 1]; records of data/reasoning_gym.py.

    Args:
        answer_tag: Score the text in the response's last <TAG>…</TAG>, 0 without one; empty: the whole response.
    """
    opening, closing = f"<{answer_tag}>", f"</{answer_tag}>"

    def answer(text: str) -> str | None:
        if not answer_tag:
            return text.strip()
        end = text.rfind(closing)
        start = text.rfind(opening, 0, max(0, end))
        return text[start + len(opening) : end].strip() if start >= 0 else None

    def score(completion: Completion) -> float | RewardError:
        task, index = (field_of(completion, name) for name in ("task", "index"))
        if isinstance(task, RewardError):
            return task
        if isinstance(index, RewardError):
            return index
        if not is_gym_name(task) or not isinstance(index, int) or isinstance(index, bool):
            return RewardError(f"{task!a}, {index!a}: no task of reasoning-gym and its number")
        try:
            tasks = tasks_of(task)
            if not 0 <= index < len(tasks):
                return RewardError(f"{task} has no number {index}; it has {len(tasks)}")
            return float(tasks.score_answer(answer(completion.text), tasks[index]))
        except DataError as error:
            return RewardError(str(error))
        except Exception as error:  # verifiers of many authors, on whatever a model writes
            return RewardError(f"the verifier of {task}, number {index}: {reason_of(error)}")

    return lambda completions: [score(c) for c in completions]
