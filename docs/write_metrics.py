"""Writes docs/metrics.md from the table of metrics in the source.

python docs/write_metrics.py
"""

from __future__ import annotations

from pathlib import Path

from proxlm.runlog.metric_names import METRICS, TRAINING

PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Metrics

What a row of `metrics.jsonl` holds (jobs: ppo, value, pretrain, sft, reward, dpo, distill, control) and what
`evaluation.json` does (evaluate; of value and reward, under their own names). A part in braces varies: `lr/{model}`
stands for `lr/policy` and `lr/critic`. A metric that has no meaning in a run is absent, and one that is not a finite
number is null. This page is made by `docs/write_metrics.py` from `src/proxlm/runlog/metric_names.py`.

| metric | unit | meaning | jobs |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The page as Markdown."""
    lines = []
    for name, metric in METRICS.items():
        jobs = "all training" if metric.jobs == TRAINING else ", ".join(metric.jobs)
        meaning = metric.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {metric.unit} | {meaning} | {jobs} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
