"""What went wrong in a call of a tool, for the model that made it."""

from __future__ import annotations


class ToolError(Exception):
    """The call was wrong; the message says why, so that the model can do better."""
