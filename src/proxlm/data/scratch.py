"""Files without a name for what is too large for memory: gone when the last object that uses one is."""

from __future__ import annotations

import os
import tempfile
import weakref


class ScratchFile:
    """A file that is appended to and read at any place. It lies where TMPDIR says."""

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
        """The open file's number, with everything written."""
        self._file.flush()
        return self._file.fileno()
