"""Records in a list, for tests that look at all of them."""

from pathlib import Path

from proxlm.data.records import iter_records
from proxlm.data.skipped import Record, Skipped


def read_records(path: str | Path, skipped: Skipped | None = None) -> list[Record]:
    return list(iter_records(path, skipped))
