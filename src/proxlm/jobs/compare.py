"""`proxlm compare`: differences, tests and win rates of what was evaluated before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import comb
from pathlib import Path
from typing import Any

from proxlm.config import CompareConfig
from proxlm.config.signature import checked
from proxlm.errors import ConfigError
from proxlm.evaluation import tables
from proxlm.evaluation.asked_preferences import win_rate_table, win_rates
from proxlm.evaluation.differences import Arm, Difference, as_text, difference_tables, differences
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.win_rate import WinRate
from proxlm.jobs.output import write_output
from proxlm.jobs.startup import start_job
from proxlm.report.response_files import read_arms, read_systems
from proxlm.runlog.outputs import check_output

# Of so small a p-value nobody asks how much smaller it could have been.
_SMALL = 0.01


def main(config: CompareConfig) -> None:
    """Print the differences and the win rates, and write them if a file is asked for."""
    if config.output:
        check_output(Path(config.output), "compare")
    arms = read_arms(config.runs)
    found = differences(arms, config.seed)
    print(as_text(found), flush=True)
    if note := seeds_note(arms):
        print(note, flush=True)
    asked = bool(config.reward.use or config.reward.terms)
    if asked:
        start_job(config.run.threads)
    rates = win_rates(arms, config.reward, config.greedy, config.seed) if asked else []
    shown = [win_rate_table(rates)] if rates else []
    if shown:
        print(f"\n{tables.as_text(shown)}")
    if config.output:
        written = [*difference_tables(found), *shown]
        write_output(Path(config.output), "compare", written, _as_json(config, arms[0].name, found, rates))
        print(f"\nwritten to {config.output}")


@checked()
def compare(runs: Sequence[Any], seed: int = 0) -> list[Difference]:
    """Compare runs, files of responses or evaluations prompt by prompt, as `proxlm compare` does.

    Args:
        runs: What is compared, the reference first: paths as on the command line, and what `evaluate` returns. A list
            or tuple of evaluations is an arm of several seeds.
        seed: Of the resamples.

    Returns:
        Every metric of each but the first, less the first one's, with a 95% interval and a p-value.

    Raises:
        UserError: There are no two to compare, they are of different prompts, or a file cannot be read.
    """
    if isinstance(runs, str | bytes) or not all(
        isinstance(one, str | Path | Evaluation | list | tuple) for one in runs
    ):
        raise ConfigError("runs: expected a list of paths, evaluations and lists of evaluations")
    names = [str(one) for one in runs if isinstance(one, str | Path)]
    if len(names) == len(runs):
        return differences(read_arms(names), seed)
    arms = [arm for one in runs for arm in _arms_of(one)]
    if len(arms) < 2:
        raise ConfigError("runs: one evaluation alone; give two to compare")
    return differences(arms, seed)


def _arms_of(one: Any) -> list[Arm]:
    if isinstance(one, str | Path):
        return read_systems(str(one))
    seeds = [one] if isinstance(one, Evaluation) else list(one)
    if not seeds or not all(isinstance(each, Evaluation) for each in seeds):
        raise ConfigError("runs: a list in it must hold evaluations, one for each seed")
    return [Arm(seeds[0].name, [each.responses for each in seeds])]


def _as_json(
    config: CompareConfig, reference: str, found: Sequence[Difference], rates: Sequence[WinRate]
) -> dict[str, Any]:
    return {
        "reference": reference,
        "seed": config.seed,
        "differences": [asdict(one) for one in found],
        "win_rates": [asdict(one) for one in rates],
    }


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
