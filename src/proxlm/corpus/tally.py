"""What a step did, counted: records in and out, why some were left out, and examples of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from proxlm.text import shortened

CHANGED = "changed"
_LONGEST = 300
_BEFORE = 60


@dataclass
class Tally:
    """The counts of a step.

    Attributes:
        step: Its name.
        records_in: Records that it was given.
        records_out: Records that stayed. Records in are records out and all that were removed.
        changed: Records that stayed and were changed.
        removed: Reason → how many records were left out for it.
        labels: What the step found → how often.
        characters_in: Characters of the texts that it was given.
        characters_out: Characters of the texts that stayed.
        examples: Reason or "changed" → the first records.
        facts: Other numbers of the step.
    """

    step: str
    records_in: int = 0
    records_out: int = 0
    changed: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    characters_in: int = 0
    characters_out: int = 0
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def label(self, labels: Mapping[str, int]) -> None:
        """Count what the step has found in a record."""
        for name, number in labels.items():
            self.labels[name] = self.labels.get(name, 0) + number

    def keep(
        self,
        where: str,
        before: Sequence[str],
        after: Sequence[str],
        changed: bool,
        most: int,
        shown: tuple[str, str] | None = None,
    ) -> None:
        """Count a record that stays.

        Args:
            where: FILE:LINE.
            before: Its texts before the step.
            after: Its texts after it.
            changed: Whether the step has changed it.
            most: The largest number of examples.
            shown: What an example shows before and after instead of the texts.
        """
        self.records_out += 1
        self.characters_out += sum(map(len, after))
        if changed:
            self.changed += 1
            examples = self.examples.setdefault(CHANGED, []) if most else []
            if len(examples) < most:
                examples.append(
                    {"where": where, **_difference(*(shown or ("\n".join(before), "\n".join(after))))}
                )

    def add_in(self, texts: Sequence[str]) -> None:
        """Count a record that comes in."""
        self.records_in += 1
        self.characters_in += sum(map(len, texts))

    def remove(
        self,
        reason: str,
        detail: str,
        where: str,
        text: Callable[[], str],
        most: int,
        like: Callable[[], str] | None = None,
    ) -> None:
        """Count a record that is left out. text: what it holds; like: the text that stays in its place."""
        self.removed[reason] = self.removed.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, []) if most else []
        if len(examples) < most:
            example = {"where": where, "detail": detail, "text": shortened(text(), _LONGEST)}
            examples.append(example | ({"like": shortened(like(), _LONGEST)} if like is not None else {}))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Profile:
    """Lengths of records in characters: their number, sum, and how many have less than 2, 4, 8, … characters."""

    records: int = 0
    characters: int = 0
    by_bits: dict[str, int] = field(default_factory=dict)

    def add(self, texts: Sequence[str]) -> None:
        """Count a record."""
        length = sum(map(len, texts))
        self.records += 1
        self.characters += length
        key = str(length.bit_length())
        self.by_bits[key] = self.by_bits.get(key, 0) + 1


def _difference(before: str, after: str) -> dict[str, str]:
    """Both texts around the first place in which they differ."""
    limit = min(len(before), len(after))
    first = next((i for i in range(limit) if before[i] != after[i]), limit)
    start = max(0, first - _BEFORE)
    lead = "…" if start else ""
    return {
        "before": lead + shortened(before[start:], _LONGEST),
        "after": lead + shortened(after[start:], _LONGEST),
    }
