"""The data card: what was read, what each step did, and what came out, as one object that card.json holds."""

from __future__ import annotations

import platform
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from proxlm.config.corpus import STEPS, CorpusConfig
from proxlm.corpus.state import State
from proxlm.corpus.tally import Profile

FORMAT = 1


def card_of(
    config: CorpusConfig, plan: Mapping[str, Any], state: State, parts: Sequence[str]
) -> dict[str, Any]:
    """What is known of data that is prepared. No time is in it: the same work gives the same card.

    Args:
        config: The job's settings.
        plan: What the result is a function of: settings, hashes of the inputs, versions.
        state: Of the finished passes.
        parts: The parts that were written.
    """
    of_language = next((t for t in state.tallies if t.step == "language"), None)
    if of_language is not None:
        whose, languages = "every record, before the step kept some", of_language.labels
    else:
        whose, languages = f"{sum(state.languages.values())} records of the output", state.languages
    return {
        "format": FORMAT,
        "inputs": list(config.input),
        "files": list(parts),
        "steps": [tally.as_json() for tally in state.tallies],
        "lengths": {"before": _lengths(state.before), "after": _lengths(state.after)},
        "languages": {
            "of": whose,
            "counts": dict(sorted(languages.items(), key=lambda one: (-one[1], one[0]))),
        },
        "seed": config.seed,
        "plan": dict(plan),
    }


def versions(config: CorpusConfig) -> dict[str, str]:
    """Versions of what a step's result may depend on."""
    packages = {STEPS[name] for name in config.steps if STEPS.get(name)} | {"numpy"}
    if "split" in config.steps and config.split.by == "near":
        packages.add(STEPS["near"])
    found = {
        "proxlm": _version("proxlm"),
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
    }
    return found | {name: _version(name) for name in sorted(packages | {STEPS["language"]})}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _lengths(profile: Profile) -> dict[str, Any]:
    """Numbers of records by length in characters: {"at least 8": 12} are those of 8 to 15."""
    bits = sorted(int(key) for key in profile.by_bits)
    every = range(bits[0], bits[-1] + 1) if bits else ()
    by_length = {str(1 << (b - 1) if b else 0): profile.by_bits.get(str(b), 0) for b in every}
    return {"records": profile.records, "characters": profile.characters, "at least": by_length}
