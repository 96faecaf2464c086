"""What `proxlm check` prints of each part of a recipe."""

from __future__ import annotations

# How wide the names of the parts are.
WIDTH = 10
ERROR, WARNING = "ERROR", "warning"


class Report:
    """Prints lines under the names of parts, and counts what is wrong."""

    def __init__(self) -> None:
        self.errors = self.warnings = 0
        self._part = ""

    def line(self, part: str, text: str) -> None:
        """A line; the part's name stands before the first of it alone."""
        name, self._part = ("" if part == self._part else part), part
        print(f"{name:<{WIDTH}}{text}", flush=True)

    def error(self, part: str, text: str) -> None:
        self.errors += 1
        self.line(part, f"{ERROR}  {text}")

    def warning(self, part: str, text: str) -> None:
        self.warnings += 1
        self.line(part, f"{WARNING}  {text}")
