"""`proxlm verify`: whether a run's folder is what the run wrote, and its inputs are what it read."""

from __future__ import annotations

from pathlib import Path

from proxlm.config import VerifyConfig
from proxlm.report.verify import verify_run
from proxlm.text import shown

LONGEST_FINDING = 300


def main(config: VerifyConfig) -> int:
    """Print a line for each finding, or "ok"; returns the exit status, 1 if there is any finding."""
    findings = verify_run(Path(config.folder))
    for finding in findings:
        print(shown(finding, LONGEST_FINDING))
    if not findings:
        print("ok")
    return 1 if findings else 0
