"""A dataclass field with the text and the bounds that the command line shows and checks."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

# input: a file, folder or data set to read; model: a model's folder, or its name on the hub; function:
# path/to/file.py:function, or a built-in's name; output: what a job writes.
PathKind = Literal["input", "model", "function", "output"]


LARGEST_INT64 = 2**63 - 1
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
SMALLEST_FLOAT32 = 2.0**-126  # that is normal; what is smaller may count as 0


@dataclass(frozen=True)
class Bounds:
    """The range of a number: at least `ge`, more than `gt`, at most `le`, less than `lt`; None: no bound."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with `value`, or None. NaN fails every bound.

        Every number is one that torch can hold: a whole one in 64 bits, any other as a normal number of float32.
        """
        checks = [
            (self.ge, value >= self.ge if self.ge is not None else True, "at least"),
            (self.gt, value > self.gt if self.gt is not None else True, "more than"),
            (self.le, value <= self.le if self.le is not None else True, "at most"),
            (self.lt, value < self.lt if self.lt is not None else True, "less than"),
        ]
        failed = [f"{word} {bound:.10g}" for bound, ok, word in checks if not ok and bound is not None]
        if failed:
            return "must be " + " and ".join(failed)
        if value != value or value in (float("inf"), float("-inf")):
            return "must be a finite number"
        if isinstance(value, int):
            return None if -LARGEST_INT64 <= value <= LARGEST_INT64 else "must fit in 64 bits"
        if abs(value) > LARGEST_FLOAT32:
            return f"must be between ±{LARGEST_FLOAT32:.3g}, the largest numbers of float32"
        if 0 < abs(value) < SMALLEST_FLOAT32:
            return f"must be 0 or at least {SMALLEST_FLOAT32:.3g} in size: float32 holds nothing smaller"
        return None


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Any = MISSING,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    on_resume: Literal["fixed", "free"] = "fixed",
    path: PathKind | None = None,
) -> Any:
    """A field of a config dataclass.

    Args:
        default: Its default.
        help: Its meaning in one line.
        factory: Makes the default if that is a list, a dict or another config dataclass.
        ge: It must be at least this.
        gt: It must be more than this.
        le: It must be at most this.
        lt: It must be less than this.
        on_resume: Whether a resumed run may have another value (free) or must have the same (fixed).
        path: What kind of path it is, if it is one (see paths.py).
    """
    metadata = {"help": help, "bounds": Bounds(ge, gt, le, lt), "on_resume": on_resume, "path": path}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
