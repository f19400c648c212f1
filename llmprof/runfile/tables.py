"""Any table of a run file or an export of Nsight Systems, as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmprof.runfile.database import quoted
from llmprof.runfile.opening import UNREADABLE, OpenFile, damaged

_CHUNK = 1 << 16


class RawTables(AbstractContextManager["RawTables"]):
    """A file open for reading whole tables. Texts are untrusted.

    Raises:
        RunFileError: by every method, on a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = OpenFile(path)

    def __exit__(self, *_why: object) -> None:
        self._file.close()

    def names(self) -> list[str]:
        """Tables, without SQLite's own."""
        try:
            rows = self._file.sql.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
            return sorted(str(name) for (name,) in rows)
        except UNREADABLE as why:
            raise damaged(self._path, why) from why

    def columns(self, table: str) -> list[tuple[str, str]]:
        """(name, declared type) of every column."""
        try:
            rows = self._file.sql.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
        except UNREADABLE as why:
            raise damaged(self._path, why) from why
        return [(str(row[1]), str(row[2]).upper()) for row in rows]

    def batches(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        """All rows, some ten thousand at a time."""
        try:
            rows = self._file.sql.execute(f"SELECT * FROM {quoted(table)}")
            while chunk := rows.fetchmany(_CHUNK):
                yield chunk
        except UNREADABLE as why:
            raise damaged(self._path, why) from why
