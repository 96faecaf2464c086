"""`proxlm report`: a run's folder as one HTML file."""

from __future__ import annotations

from pathlib import Path

from proxlm.config import ReportConfig
from proxlm.report.page import write_report


def main(config: ReportConfig) -> None:
    """Write the report of a run's folder and print its path."""
    print(write_report(Path(config.folder), Path(config.output) if config.output else None))
