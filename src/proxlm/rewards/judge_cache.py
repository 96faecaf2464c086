"""Answers of a judge on disk, so that no question is paid for twice: one SQLite file, shared by processes and runs.

An answer is written in a transaction of its own. A process that is killed loses none that it has written, and two
processes that write at the same time wait for each other. Only numbers are kept: no text, no URL, no key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from proxlm.files import check_regular
from proxlm.text import reason_of, system_reason

log = logging.getLogger(__name__)
# Seconds for which a process waits for another one's transaction.
WAIT_SECONDS = 30.0
_TABLE = "CREATE TABLE IF NOT EXISTS judge (question TEXT PRIMARY KEY, answer REAL NOT NULL) WITHOUT ROWID"


def question_key(**parts: Any) -> str:
    """A name for a question: the SHA-256 of everything that its answer depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class JudgeCache:
    """Question → answer. A file that stops working costs money, not the run: it is said once.

    Args:
        path: The file; it is made with the first question. "": nothing is kept.

    Raises:
        ValueError: There is something else at the path, or no folder to make it in.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(os.path.expanduser(path)) if path else ""
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._warned = False
        if self._path:
            self._check()

    def get(self, question: str) -> float | None:
        """The answer, or None if there is none."""
        rows = self._do("SELECT answer FROM judge WHERE question = ?", (question,))
        return float(rows[0][0]) if rows else None

    def put(self, question: str, answer: float) -> None:
        """Keep an answer; one that is there already stays."""
        self._do("INSERT OR IGNORE INTO judge VALUES (?, ?)", (question, answer))

    def _check(self) -> None:
        path = Path(self._path)
        try:
            if not path.parent.is_dir():
                raise ValueError(f'cache = "{self._path}": there is no folder {path.parent}')
            if path.is_dir():
                raise ValueError(f'cache = "{self._path}": a folder; give the name of a file in it')
            check_regular(path)
            if path.exists():
                self._open().close()
        except OSError as error:
            raise ValueError(f'cache = "{self._path}": {system_reason(error)}') from error
        except sqlite3.Error as error:
            reason = f"{reason_of(error)}: give a new file, or one that this reward made"
            raise ValueError(f'cache = "{self._path}": {reason}') from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute(_TABLE)
            database.execute("SELECT question, answer FROM judge LIMIT 1").fetchall()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _do(self, command: str, values: tuple[Any, ...]) -> list[Any]:
        if not self._path:
            return []
        with self._lock:
            try:
                if self._database is None:
                    self._database = self._open()
                return self._database.execute(command, values).fetchall()
            except sqlite3.Error as error:
                if not self._warned:
                    self._warned = True
                    log.warning("reward judge: cache %s: %s; going on without", self._path, reason_of(error))
                return []
