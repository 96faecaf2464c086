"""What a built-in reward returns: a function that scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxlm.types import Completion

Scorer = Callable[[list[Completion]], list[Any] | dict[str, list[Any]]]
"""Completions [B] → B floats, with a RewardError instead of a float for each completion that it cannot score; or
components by name, with an attribute `weights` for those whose weight is not 1."""
