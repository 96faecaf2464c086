"""`proxlm compare`: differences, tests and win rates of what was evaluated before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import comb
from pathlib import Path

from proxlm.config import CompareConfig
from proxlm.evaluation import asked_preferences
from proxlm.evaluation.differences import Arm, as_text, differences
from proxlm.report.response_files import read_arms
from proxlm.runlog.folder import write_json_atomic

# Of so small a p-value nobody asks how much smaller it could have been.
_SMALL = 0.01


def main(config: CompareConfig) -> None:
    """Print the differences and the win rates, and write them as JSON if a file is asked for."""
    arms = read_arms(config.runs)
    found = differences(arms, config.seed)
    print(as_text(found), flush=True)
    if note := seeds_note(arms):
        print(note, flush=True)
    asked = bool(config.reward.use or config.reward.terms)
    rates = asked_preferences.win_rates(arms, config.reward, config.greedy, config.seed) if asked else []
    if rates:
        print(f"\n{asked_preferences.as_text(rates)}")
    if config.output:
        content = {
            "reference": arms[0].name,
            "seed": config.seed,
            "differences": [asdict(one) for one in found],
            "win_rates": [asdict(one) for one in rates],
        }
        write_json_atomic(Path(config.output), content)
        print(f"\nwritten to {config.output}")


def seeds_note(arms: Sequence[Arm]) -> str:
    """What so few seeds cannot show; "" of single runs, and of enough seeds."""
    first, fewest = len(arms[0].runs), min(len(arm.runs) for arm in arms[1:])
    ways = comb(first + fewest, first)
    least = (2 if first == fewest else 1) / ways
    if first == fewest == 1 or least <= _SMALL:
        return ""
    return (
        f"note: {first} and {fewest} seeds can be dealt to two arms in {ways} ways, so that no p is below {least:.2g}"
        " however far apart they are. It says\nthat all seeds of one arm are above all of the other, and no more. How"
        " much seeds vary, so few do not tell well:\nread the interval over seeds, which Student's t widens for that,"
        " and run more seeds where it matters."
    )
