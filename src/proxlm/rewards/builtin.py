"""The built-in rewards by name: each is called once with its arguments, and returns the function that scores.

The arguments are the settings `reward.args`. A wrong one raises ValueError("ARGUMENT: what is wrong").
"""

from __future__ import annotations

import math
from collections.abc import Callable

from proxlm.rewards.answer_rewards import exact_match, math_answer, numeric_answer
from proxlm.rewards.gym_reward import reasoning_gym
from proxlm.rewards.instruction_reward import instructions
from proxlm.rewards.judge import Judge
from proxlm.rewards.poem import chinese_poem
from proxlm.rewards.process_reward_model import ProcessRewardModel
from proxlm.rewards.python_tests import PythonTests
from proxlm.rewards.reference_rewards import bleu, chrf, rouge
from proxlm.rewards.reward_ensemble import RewardEnsemble
from proxlm.rewards.reward_model import RewardModel
from proxlm.rewards.schema_reward import json_schema
from proxlm.rewards.scorer import Scorer
from proxlm.rewards.similarity import Similarity
from proxlm.rewards.text_rewards import (
    forbidden_words,
    keyword,
    length,
    python_parses,
    regex,
    repetition,
    sentiment,
)
from proxlm.sandbox import Limits


def python_tests(
    field: str = "tests",
    fenced: bool = True,
    with_prompt: bool = False,
    all: bool = False,
    failure: float = 0.0,
    seconds: float = 5.0,
    memory_mb: int = 512,
    workers: int = 0,
    require_landlock: bool = True,
) -> Scorer:
    """The share of the record's tests that the response, run as a Python program in the sandbox, passes.

    Args:
        field: The record's field with the tests: a text, or a list of texts.
        fenced: Run the response's first fenced code block if it has one, instead of the whole response.
        with_prompt: Put the prompt before the code.
        all: 1 if every test passes, else 0, instead of the share.
        failure: The reward of a program that does not reach the end of its tests.
        seconds: Time limit of a program with its tests.
        memory_mb: Address space of a program in MiB.
        workers: Programs at a time; 0: one per CPU.
        require_landlock: Raise SandboxError on kernels where programs could read every file.
    """
    if workers < 0:
        raise ValueError(f"workers = {workers}: must be at least 0 (0: one per CPU)")
    if not math.isfinite(failure):
        raise ValueError(f"failure = {failure:g}: must be a finite number")
    if memory_mb < 64:
        raise ValueError(f"memory_mb = {memory_mb}: must be at least 64")
    limits = Limits(seconds=seconds, memory=memory_mb << 20)
    return PythonTests(field, fenced, with_prompt, all, failure, limits, workers, require_landlock)


BUILTINS: dict[str, Callable[..., Scorer]] = {
    "sentiment": sentiment,
    "regex": regex,
    "exact_match": exact_match,
    "numeric_answer": numeric_answer,
    "math_answer": math_answer,
    "python_parses": python_parses,
    "length": length,
    "repetition": repetition,
    "keyword": keyword,
    "forbidden_words": forbidden_words,
    "instructions": instructions,
    "json_schema": json_schema,
    "chrf": chrf,
    "bleu": bleu,
    "rouge": rouge,
    "chinese_poem": chinese_poem,
    "similarity": Similarity,
    "reward_model": RewardModel,
    "reward_ensemble": RewardEnsemble,
    "process_reward_model": ProcessRewardModel,
    "python_tests": python_tests,
    "reasoning_gym": reasoning_gym,
    "judge": Judge,
}
