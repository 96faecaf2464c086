"""Which of a run's samples the page shows: texts over training, and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxlm.report.run_data import Row

MOST_STEPS = 40
TOKEN_STEPS = 3
TOKEN_SAMPLES = 3

# How the page names and explains each per-token quantity; others go by their own name.
QUANTITIES = {
    "reward": ("Reward", "what the token earned: the KL penalty, and at the end the score of the response"),
    "kl": (
        "KL",
        "log-probability under the policy minus under the reference: orange, the policy likes it more",
    ),
    "value": ("Value", "what the critic expected from here on; the middle of the scale is the mean"),
    "advantage": ("Advantage", "how much better than the critic expected: orange is reinforced"),
    "logprob": (
        "Log-prob",
        "log of the probability it was sampled with: the deeper the blue, the less likely",
    ),
    "kept": ("Kept", "size of the set that it was sampled from: what top_k, top_p and min_p left"),
}
CENTRED_ON_MEAN = ("value",)


def sample_views(samples: Sequence[Row]) -> dict[str, Any]:
    """What the page shows of samples.jsonl.

    texts: samples of at most MOST_STEPS steps spread over the run; tokens: a few samples of TOKEN_STEPS steps with
    per-token numbers; quantities: for each of those, its name, explanation, and the centre and reach of its scale.
    """
    steps = sorted({row["step"] for row in samples})
    chosen = set(spread(steps, MOST_STEPS))
    texts = sorted((row for row in samples if row["step"] in chosen), key=lambda row: row["step"])
    with_tokens = [row for row in samples if row.get("tokens") and row.get("per_token")]
    token_steps = spread(sorted({row["step"] for row in with_tokens}), TOKEN_STEPS)
    tokens = [row for step in token_steps for row in _of_step(with_tokens, step)[:TOKEN_SAMPLES]]
    return {
        "all_steps": len(steps),
        "texts": [
            {key: value for key, value in row.items() if key not in ("tokens", "per_token")} for row in texts
        ],
        "tokens": tokens,
        "quantities": [_quantity(name, tokens) for name in _names(tokens)],
    }


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spread, first and last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _of_step(rows: Sequence[Row], step: float) -> list[Row]:
    return [row for row in rows if row["step"] == step]


def _names(rows: Sequence[Row]) -> list[str]:
    present = dict.fromkeys(name for row in rows for name in row["per_token"])
    return [name for name in QUANTITIES if name in present] + [
        name for name in present if name not in QUANTITIES
    ]


def _quantity(name: str, rows: Sequence[Row]) -> Row:
    """A quantity's scale goes from centre - reach to centre + reach; one with numbers of one sign has one half."""
    values = [v for row in rows for v in row["per_token"].get(name, []) if v is not None]
    centre = sum(values) / len(values) if values and name in CENTRED_ON_MEAN else 0.0
    label, about = QUANTITIES.get(name, (name, ""))
    return {
        "name": name,
        "label": label,
        "about": about,
        "centre": centre,
        "reach": max((abs(v - centre) for v in values), default=0.0),
        "below": any(v < centre for v in values),
        "above": any(v > centre for v in values),
    }
