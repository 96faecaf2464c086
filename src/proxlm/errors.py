"""Errors a user can mend. The command line prints one as a single line and exits with status 2."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a model, a reward function.

    The message is one line that names what was wrong, where, and what to do.
    """

    def __init__(self, message: str) -> None:
        # Names of files, fields and settings may hold line ends.
        super().__init__(" ".join(message.splitlines()))


class ConfigError(UserError):
    """A setting is unknown, has the wrong type, or an impossible value."""


class DataError(UserError):
    """A data file is missing, empty, malformed, or lacks a field."""


class BadRecordError(DataError):
    """One record of a data file cannot be used, and the others can; `kind` says why in a few words, for counts."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ModelError(UserError):
    """A model or tokenizer cannot be loaded or used."""


class RewardError(UserError):
    """A reward function raised, hung, or returned something that is not a reward."""


class RunError(UserError):
    """A run folder cannot be created, written, or resumed."""


class StoppedBySignalError(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ended a run, whose newest step is saved; the message says how to go on.

    Not a UserError, nor caught by `except Exception`: nothing was wrong. signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
