"""The reward of code by its tests, which run in the sandbox: no program of a model runs in this process."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.errors import RewardError
from proxlm.rewards.fields import field_of
from proxlm.sandbox import STATUSES, Limits, Program, check_isolation, run_programs
from proxlm.text import reason_of
from proxlm.types import Completion

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_FAILURES: list[str] = [status for status in STATUSES if status != "ok"]


def code_in(text: str) -> str:
    """The content of the text's first fenced block, which may lack its closing line; without a block, the text."""
    block = _FENCED.search(text)
    return block[1] if block else text


@dataclass(frozen=True)
class PythonTests:
    """Callable: completions [B] → components by name, [B] each. Made by `python_tests`; see there.

    "passed" is the reward. Each kind of failure is a component too, 1 where it happened, so that it is counted in
    the metrics; `weights` keeps these out of the sum. Raises SandboxError if this system cannot confine programs.
    """

    field: str
    fenced: bool
    with_prompt: bool
    all: bool
    failure: float
    limits: Limits
    workers: int
    require_landlock: bool

    def __post_init__(self) -> None:
        check_isolation(self.require_landlock)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of components to which the settings give none."""
        return dict.fromkeys(_FAILURES, 0.0)

    def __call__(self, completions: Sequence[Completion]) -> dict[str, list[Any]]:
        tests = [self._tests(one) for one in completions]
        usable = [i for i, found in enumerate(tests) if not isinstance(found, RewardError)]
        programs = [Program(self._source(completions[i]), tests=tuple(tests[i])) for i in usable]
        results = run_programs(
            programs, limits=self.limits, workers=self.workers, require_landlock=self.require_landlock
        )
        passed: list[Any] = list(tests)
        failures = {status: [0.0] * len(tests) for status in _FAILURES}
        for i, result in zip(usable, results, strict=True):
            if result.status == "ok":
                share = result.tests.count("") / len(tests[i])
                passed[i] = float(share == 1) if self.all else share
            else:
                passed[i] = self.failure
                failures[result.status][i] = 1.0
        return {"passed": passed, **failures}

    def _source(self, completion: Completion) -> str:
        code = code_in(completion.text) if self.fenced else completion.text
        return completion.prompt + code if self.with_prompt else code

    def _tests(self, completion: Completion) -> Any:
        """The record's tests as a list of texts, or what is wrong with them."""
        found = field_of(completion, self.field)
        if isinstance(found, RewardError):
            return found
        tests = [found] if isinstance(found, str) else found
        if (
            not isinstance(tests, list | tuple)
            or not all(isinstance(t, str) and t.strip() for t in tests)
            or not tests
        ):
            return RewardError(f'field "{self.field}" holds no text with a test and no list of such texts')
        for number, test in enumerate(tests):
            if problem := _syntax_problem(test):
                return RewardError(f'field "{self.field}": test {number} is not Python: {problem}')
        return tests


def _syntax_problem(text: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        # SyntaxError, but also null bytes, lone surrogates, and nesting beyond the stack.
        except Exception as error:
            return reason_of(error)
    return ""
