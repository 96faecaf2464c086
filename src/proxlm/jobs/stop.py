"""`proxlm stop`: end a run after its step, with all that belongs to its end."""

from __future__ import annotations

from pathlib import Path

from proxlm.config import StopConfig
from proxlm.runlog.stop_request import request_stop


def main(config: StopConfig) -> None:
    """Ask the run to end, and say what it will do."""
    request_stop(Path(config.folder))
    print(
        f"{config.folder}: ends after its step, with model, evaluation and report; --resume goes on from there",
        flush=True,
    )
