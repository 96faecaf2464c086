"""Errors that a user can fix. The command line prints one as a single line and exits with status 2."""

from __future__ import annotations

from proxlm.text import short_line

# With "proxlm: error: " before it, a line has at most 300 characters.
LONGEST_LINE = 300
LONGEST_MESSAGE = LONGEST_LINE - len("proxlm: error: ")

# The note of an error that another process has shown already (`Ranks.broadcast`).
RAISED_ON_RANK_0 = "raised on rank 0"


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a model, a reward function.

    The message is one line of at most LONGEST_MESSAGE characters that names what was wrong, where, and what to do.
    Control characters in it, from the names of files, fields and settings for instance, are spelled out (text.py);
    line ends become spaces; secrets are masked; a longer message loses its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(short_line(" ".join(message.splitlines()), LONGEST_MESSAGE))


class ConfigError(UserError):
    """A setting is unknown, has the wrong type, or an impossible value.

    Attributes:
        more: What else is wrong with the settings, a line each; a traceback shows them as notes.
    """

    more: tuple[str, ...] = ()

    def __init__(self, message: str, *more: str) -> None:
        super().__init__(message)
        if more:
            self.more = tuple(str(UserError(line)) for line in more)
        for line in self.more:
            self.add_note(f"also: {line}")


class DataError(UserError):
    """A data file is missing, empty, malformed, or lacks a field."""


class BadRecordError(DataError):
    """One record of a data file cannot be used; the other records can.

    Args:
        message: Where and what is wrong.
        kind: The reason in a few words, the same for all such records, by which they are counted.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadRecordError], tuple[str, str]]:
        """For pickle, by which a pool of processes sends what ended a call."""
        return type(self), (self.args[0], self.kind)


class ModelError(UserError):
    """A model or tokenizer cannot be loaded or used."""


class UserCodeError(UserError):
    """A user's Python file cannot be run."""


class RewardError(UserError):
    """A reward function raised an error, hung, or returned something that is not a reward."""


class RunError(UserError):
    """A run folder cannot be created, written, or resumed."""


class StoppedBySignalError(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ended a run whose newest step is saved; the message says how to resume it.

    Not a UserError, and not caught by `except Exception`: nothing was wrong.

    Args:
        message: How to resume the run.
        signal: The signal's number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type[StoppedBySignalError], tuple[str, int]]:
        return type(self), (self.args[0], self.signal)
