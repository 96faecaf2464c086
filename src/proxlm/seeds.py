"""Seeds for the parts of a run, derived from the run's seed."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (run seed, purpose, counters ...): the same on every machine and Python version.

    Being a pure function of counters, it leaves no generator state to save or restore.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
