"""Temporary files without a name, for what is too large for memory; deleted with the last object that uses them."""

from __future__ import annotations

import os
import tempfile
import weakref


class ScratchFile:
    """A temporary file, in TMPDIR, that is appended to and read at any position."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the finalizer
        self.size = 0
        weakref.finalize(self, self._file.close)

    def append(self, data: bytes | memoryview) -> int:
        """Write at the end; returns the number of bytes."""
        if self._file.tell() != self.size:
            self._file.seek(self.size)
        written = self._file.write(data)
        self.size += written
        return written

    def read(self, start: int, end: int) -> bytes:
        """The bytes of a range."""
        self._file.flush()
        found = bytearray()
        while len(found) < end - start:
            found += os.pread(self._file.fileno(), end - start - len(found), start + len(found))
        return bytes(found)

    def fileno(self) -> int:
        """The file descriptor, after everything is written."""
        self._file.flush()
        return self._file.fileno()
