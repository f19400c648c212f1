"""Walking over a large table in stretches of rowids: progress is known, stopping is possible.

Such a table has no index. A statement over one stretch ends within milliseconds, holds no lock of
Python's while SQLite looks at the rows, and leaves nothing behind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

from llmprof.runfile.database import quoted

ROWS = 1 << 16
"""Of one stretch."""
Advance = Callable[[int], None]
"""Told how many rows were looked at since it was last told; may raise to stop the reading."""


def silent(_: int) -> None:
    """Nobody looks on."""


def size(sql: sqlite3.Connection, table: str) -> int:
    """About how many rows: no scan. Exact where nothing was ever deleted, as in exports.

    A hostile file may give a row any number; what is walked over is what is there.
    """
    name = quoted(table)
    low, high = sql.execute(
        f"SELECT (SELECT min(rowid) FROM {name}), (SELECT max(rowid) FROM {name})"
    ).fetchone()
    return 0 if high is None else int(high) - int(low) + 1


def stretches(
    sql: sqlite3.Connection, table: str, rows: int = ROWS
) -> Iterator[tuple[int, int, int]]:
    """(first rowid, last rowid, how many rows) of one stretch behind the other.

    By counting rows, not numbers: a gap of 2**60 between two rowids costs nothing.
    """
    name = quoted(table)
    ends = f"SELECT (SELECT min(rowid) FROM {name}), (SELECT max(rowid) FROM {name})"
    at, last = sql.execute(ends).fetchone()
    while at is not None and at <= last:
        found = sql.execute(
            f"SELECT rowid FROM {name} WHERE rowid >= ? ORDER BY rowid LIMIT 1 OFFSET ?",
            (at, rows - 1),
        ).fetchone()
        if found is not None:
            yield int(at), int(found[0]), rows
            at = found[0] + 1
        else:
            rest = f"SELECT count(*) FROM {name} WHERE rowid >= ?"
            yield int(at), int(last), int(sql.execute(rest, (at,)).fetchone()[0])
            return
