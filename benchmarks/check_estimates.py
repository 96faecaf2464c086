"""How near the estimates of `proxlm check` come: each project of `proxlm new` is checked, then run.

    python benchmarks/check_estimates.py FOLDER [KIND ...]

Each command has a process of its own, so that its peak memory is its own. Prints a Markdown table.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("text", "chat", "chinese", "classification", "game")
PROXLM = [sys.executable, "-m", "proxlm"]


def measured(arguments, folder):
    """Seconds, the most memory held in GiB, and what was printed."""
    began = time.perf_counter()
    process = subprocess.Popen([*PROXLM, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments}: status {status}\n{output}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20, output


def seconds(text):
    """Of "1h 02m", "3m 05s", "12s"."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))


def gib(text):
    number, unit = text.split()
    return float(number) / (1024 if unit == "MiB" else 1)


def main():
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in sys.argv[2:] or KINDS:
        measured(["new", kind, "--kind", kind], root)
        first = "pretrain" if kind == "game" else "sft"
        for job in (first, "ppo"):
            _, _, said = measured(["check", f"{job}.toml", "--set", "run.threads=1"], root / kind)
            took, peak, _ = measured([job, f"{job}.toml", "--run.threads", "1"], root / kind)
            about = re.search(r"about (.*?) for", said)[1]
            most = re.search(r"at most (.*?) held", said)[1]
            rows.append((kind, job, seconds(about), took, gib(most), peak))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("| project | command | seconds, estimated | taken | peak GiB, estimated | held |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, job, about, took, most, peak in rows:
        print(f"| {kind} | {job} | {about:.0f} | {took:.0f} | {most:.3f} | {peak:.3f} |")


if __name__ == "__main__":
    main()
