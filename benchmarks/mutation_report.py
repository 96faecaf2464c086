"""What a mutation check found, as JSON and Markdown, and which mutants are known to change nothing."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutators import Mutant, Mutants

CAUGHT = ("caught", "timeout", "died")


@dataclass
class Outcome:
    """A mutant and what became of it: caught, timeout, died (all three caught), survived, or equivalent."""

    mutant: Mutant
    status: str
    by: str = ""
    covered: int = 0  # tests that call its function
    reason: str = ""  # why it is declared equivalent

    def row(self) -> dict[str, Any]:
        m = self.mutant
        return {
            "id": m.id,
            "file": m.file,
            "function": m.function,
            "line": m.line,
            "kind": m.kind,
            "original": m.original,
            "mutated": m.mutated,
            "status": self.status,
            "by": self.by,
            "covered": self.covered,
        } | ({"reason": self.reason} if self.reason else {})

    def line(self) -> str:
        m = self.mutant
        note = "" if self.covered else " (no test calls it)"
        return f"- {m.file}:{m.line}, {m.function}{note}: `{m.original}` → `{m.mutated}`"


def read_equivalent(path: Path) -> dict[tuple[str, str, str, str], str]:
    """(file, function, original, mutated) → reason."""
    if not path.exists():
        return {}
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    return {(e["file"], e["function"], e["original"], e["mutated"]): e["reason"] for e in entries}


def key(mutant: Mutant) -> tuple[str, str, str, str]:
    """What an entry of the list of equivalent mutants names: no line, so that edits elsewhere leave it valid."""
    return mutant.file, mutant.function, mutant.original, mutant.mutated


def share_caught(outcomes: list[Outcome]) -> float:
    """Caught mutants among those that change something."""
    counted = [o for o in outcomes if o.status != "equivalent"]
    return sum(o.status in CAUGHT for o in counted) / max(1, len(counted))


def wrongly_equivalent(outcomes: list[Outcome]) -> list[Outcome]:
    """Mutants that are declared equivalent and caught by a test all the same."""
    return [o for o in outcomes if o.reason and o.status in CAUGHT]


def not_one(outcomes: list[Outcome], equivalent: dict[tuple[str, str, str, str], str]) -> list[str]:
    """Entries of the list of equivalent mutants that no mutant has any more, or several have."""
    counts = Counter(key(o.mutant) for o in outcomes)
    return [f"{counts[entry]} mutants: {' | '.join(entry)}" for entry in equivalent if counts[entry] != 1]


def markdown(found: list[Mutants], outcomes: list[Outcome], tests: int, seconds: float) -> str:
    """The summary, a table by file, survivors, and equivalent mutants with their reasons."""
    guards = sum(f.guards for f in found)
    counts = Counter(o.status for o in outcomes)
    caught = sum(counts[status] for status in CAUGHT)
    lines = [
        "# Mutation check of src/proxlm/rl",
        "",
        f"{len(outcomes)} mutants, {tests} tests, {seconds / 60:.1f} minutes: {caught} caught, {counts['survived']} "
        f"survived, {counts['equivalent']} equivalent. **{share_caught(outcomes):.1%} caught**, the equivalent ones "
        f"not counted. Of those caught, {counts['timeout']} ran out of time and {counts['died']} ended the process.",
        "",
        f"Left out: {sum(f.guard_mutants for f in found)} mutants in the conditions of {guards} guards "
        "(`if …: raise …`), messages, docstrings and annotations.",
        "",
        "| file | mutants | caught | survived | equivalent | share caught | left out in guards |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for module in found:
        own = [o for o in outcomes if o.mutant.file == module.file]
        if not own:
            continue
        c = Counter(o.status for o in own)
        cells = (len(own), sum(c[s] for s in CAUGHT), c["survived"], c["equivalent"])
        row = " | ".join(map(str, cells))
        lines.append(f"| {module.file} | {row} | {share_caught(own):.1%} | {module.guard_mutants} |")
    lines += ["", "## Survivors", ""]
    lines += [o.line() for o in outcomes if o.status == "survived"] or ["None."]
    lines += [
        "",
        "## Equivalent",
        "",
        "No input tells these from the original, or none that the function is for:",
        "",
    ]
    lines += [f"{o.line()}. {o.reason}" for o in outcomes if o.status == "equivalent"] or ["None."]
    return "\n".join(lines) + "\n"


def save(folder: Path, text: str, outcomes: list[Outcome]) -> None:
    (folder / "mutation.md").write_text(text, encoding="utf-8")
    rows = json.dumps([o.row() for o in outcomes], indent=1, ensure_ascii=False)
    (folder / "mutation.json").write_text(rows + "\n", encoding="utf-8")
