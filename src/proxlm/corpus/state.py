"""How far the passes over a corpus are: what is needed to go on after the process was ended, however it was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from proxlm.corpus.tally import Profile, Tally
from proxlm.errors import RunError
from proxlm.files import read_regular
from proxlm.runlog.folder import write_atomic

_LARGEST = 2**28


@dataclass
class State:
    """The state of a job between two records.

    Attributes:
        number: The pass under way, from 0.
        read: Records that it has taken from its source.
        offset: Bytes that it has read of the pass before it.
        kept: Records that it has written.
        sizes: Bytes of each file that it writes.
        tallies: Of reading, and of each step.
        before: Lengths of what was read.
        after: Lengths of what is written in the last pass.
        languages: Language → how many of those looked at in the last pass.
        stands_for: Number → the text of a record that others are left out for, for the examples of this pass.
    """

    number: int = 0
    read: int = 0
    offset: int = 0
    kept: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)
    before: Profile = field(default_factory=Profile)
    after: Profile = field(default_factory=Profile)
    languages: dict[str, int] = field(default_factory=dict)
    stands_for: dict[str, str] = field(default_factory=dict)

    def begin_next(self) -> None:
        """Begin the next pass."""
        self.number += 1
        self.read = self.offset = self.kept = 0
        self.sizes, self.stands_for = {}, {}

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises RunError."""
        write_atomic(path, json.dumps(asdict(self), ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises RunError if there is none, or it is damaged."""
        try:
            found: dict[str, Any] = json.loads(read_regular(path, _LARGEST))
            tallies = [Tally(**one) for one in found.pop("tallies")]
            before, after = Profile(**found.pop("before")), Profile(**found.pop("after"))
            return cls(**found, tallies=tallies, before=before, after=after)
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise RunError(f"{path}: cannot be read; remove the folder and start again") from error
