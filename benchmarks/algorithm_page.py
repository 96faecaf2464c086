"""benchmarks/algorithms.py's results as JSON, Markdown tables and SVG curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithm_numbers import (
    Difference,
    Point,
    at_budget,
    difference,
    mean_curve,
    smallest_budget,
)
from algorithm_tasks import TASKS
from compare_runs import Series, svg

from proxlm.evaluation.intervals import Estimate
from proxlm.runlog.folder import write_atomic, write_json_atomic

BEGIN, END = "<!-- results of benchmarks/algorithms.py -->", "<!-- end of results -->"
FIRST = "PPO"
Found = Mapping[str, Any]


def write_pages(found: dict[str, Found], output: Path, page: Path | None) -> None:
    """algorithms.json and benchmark.md with pictures in `output`; and into `page`, pictures in images/ beside it."""
    write_json_atomic(
        output / "algorithms.json", {name: without_prompts(task) for name, task in found.items()}
    )
    places = [(output / "benchmark.md", f"{BEGIN}\n{END}\n")]
    if page is not None:
        places.append((page, page.read_text(encoding="utf-8")))
    for file, text in places:
        (file.parent / "images").mkdir(exist_ok=True)
        for name, task in found.items():
            write_atomic(file.parent / "images" / f"benchmark-{name}.svg", picture(task))
        tables = "\n".join(section(name, task) for name, task in found.items())
        write_atomic(file, between_marks(text, tables))


def between_marks(text: str, new: str) -> str:
    """The page with `new` between its two marks. Raises SystemExit where it has not both."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no lines {BEGIN} and {END} for the tables")
    return f"{before}{BEGIN}\n\n{new}\n{END}{after}"


def without_prompts(task: Found) -> dict[str, Any]:
    """A task's results without the numbers of single prompts, which stay in each run's result.json."""
    seeds = {
        name: [{key: value for key, value in run.items() if key != "prompts"} for run in runs]
        for name, runs in task["seeds"].items()
    }
    budgets = dict(zip(("equal_tokens", "equal_seconds"), budgets_of(task), strict=True))
    return {**task, "seeds": seeds, **budgets}


def curves_of(task: Found) -> dict[str, list[list[Point]]]:
    """Each algorithm's curves, one for each seed."""
    return {
        name: [[Point(**point) for point in run["curve"]] for run in runs]
        for name, runs in task["seeds"].items()
    }


def budgets_of(task: Found) -> tuple[float, float]:
    """Tokens and CPU seconds at which the algorithms are compared."""
    curves = curves_of(task)
    return smallest_budget(curves, "tokens"), smallest_budget(curves, "seconds")


def section(name: str, task: Found) -> str:
    """One task of the page."""
    known, curves = TASKS[name], curves_of(task)
    tokens, seconds = budgets_of(task)
    start = next(iter(curves.values()))[0][0]
    about = (
        f"{known.about} {known.steps} steps of {known.responses} responses, β = {known.beta:g}; GRPO and RLOO draw"
        f" {known.group} responses to a prompt. GRPO's β is {known.beta / task['spread']:.2g} (spread"
        f" {task['spread']:.2f}). Before: {written(start.reward)} sampled, {written(start.greedy)} greedy (seed 0)."
    )
    parts = [
        f"## {known.title}",
        about,
        f"![held-out objective against tokens and CPU seconds](images/benchmark-{name}.svg)",
        f"At equal tokens ({tokens:,.0f}), seeds 0, 1, 2:",
        table(task, curves, "tokens", tokens),
        f"At equal CPU seconds ({seconds:.1f}):",
        table(task, curves, "seconds", seconds),
        "At the end, mean of the seeds, 95% interval over the held-out prompts:",
        ends(task),
        tuning(task),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def table(task: Found, curves: Mapping[str, Sequence[Sequence[Point]]], budget: str, amount: float) -> str:
    """A row for each algorithm, the numbers of its seeds side by side, the mean of the objective in bold."""
    head = ("algorithm", "rate", "reward − β KL", "mean", "sampled", "greedy", "KL", "CPU s of a run")
    lines = [row(*head), row(*["---"] * len(head))]
    for name, runs in curves.items():
        values = [at_budget(run, budget, amount) for run in runs]
        mean = sum(value["objective"] for value in values) / len(values)
        lines.append(
            row(
                name,
                f"{task['chosen'][name]:g}",
                side_by_side([value["objective"] for value in values]),
                f"**{written(mean)}**",
                side_by_side([value["reward"] for value in values]),
                side_by_side([value["greedy"] for value in values]),
                side_by_side([value["kl"] for value in values], 2),
                side_by_side([run[-1].seconds for run in runs], 0),
            )
        )
    return "\n".join(lines)


def side_by_side(numbers: Sequence[float], digits: int = 3) -> str:
    return ", ".join(written(number, digits) for number in numbers)


def written(number: float, digits: int = 3) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def per_prompt(runs: Sequence[Found], measure: str) -> list[dict[str, float]]:
    return [{prompt: numbers[measure] for prompt, numbers in run["prompts"].items()} for run in runs]


def ends(task: Found) -> str:
    """Each algorithm less the first one, at the end of the runs; "" without it or without another one."""
    others = [name for name in task["seeds"] if name != FIRST]
    if FIRST not in task["seeds"] or not others:
        return ""
    head = (f"less {FIRST}", "reward − β KL", "sampled", "greedy")
    lines = [row(*head), row(*["---"] * len(head))]
    for name in others:
        cells = [
            cell(
                difference(
                    per_prompt(task["seeds"][name], measure), per_prompt(task["seeds"][FIRST], measure)
                )
            )
            for measure in ("objective", "reward", "greedy")
        ]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def cell(found: Difference) -> str:
    """A difference with its interval, in bold where prompts and seeds agree on its sign."""
    text = signed(found.estimate)
    return f"**{text}**" if found.apart else text


def signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} ± {(estimate.high - estimate.low) / 2:.3f}".replace("-", "−")


def tuning(task: Found) -> str:
    """The objective of every rate on the tuning seed."""
    rates = sorted({float(rate) for found in task["tuning"].values() for rate in found})
    head = ("tuning seed: reward − β KL", *(f"{rate:g}" for rate in rates))
    lines = [row(*head), row(*["---"] * len(head))]
    for name, found in task["tuning"].items():
        by_rate = {float(rate): value for rate, value in found.items()}
        cells = [
            f"**{written(by_rate[rate])}**"
            if rate == task["chosen"][name]
            else (written(by_rate[rate]) if rate in by_rate else "")
            for rate in rates
        ]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def picture(task: Found) -> str:
    """The mean of the seeds' objective against tokens and against CPU seconds."""
    means = {name: mean_curve(runs) for name, runs in curves_of(task).items()}
    by_tokens: dict[str, Series] = {n: [(p.tokens / 1000, p.objective) for p in c] for n, c in means.items()}
    by_seconds: dict[str, Series] = {n: [(p.seconds, p.objective) for p in c] for n, c in means.items()}
    panels = [
        ("held-out reward − β KL against thousand tokens", by_tokens),
        ("against CPU seconds", by_seconds),
    ]
    return svg(panels, list(means))
