"""The other way for many rows: a value to bind for each cell, a statement to step for each row.

That is what it costs. So what is the same in all rows stands in the statement as a literal, and a
statement takes many rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_MAX_PARAMETERS = 999
"""Of one statement: SQLITE_MAX_VARIABLE_NUMBER before SQLite 3.32."""
_MAX_ROWS = 64
"""Of one statement; more of them gain nothing."""
_BLOCK_ROWS = 4096


def insert_bound(
    sql: sqlite3.Connection,
    table: str,
    bound: Mapping[str, Any],
    fixed: Mapping[str, int],
    rows: range,
    zero_is_null: Collection[str],
) -> None:
    """Insert ``rows`` of the columns; the arguments are those of ``RunDatabase.insert_columns``."""
    width = len(bound)
    names = ", ".join(f'"{name}"' for name in (*bound, *fixed))
    marks = ["NULLIF(?, 0)" if name in zero_is_null else "?" for name in bound]
    literals = [
        "NULL" if name in zero_is_null and not value else str(int(value))
        for name, value in fixed.items()
    ]
    row = f"({', '.join([*marks, *literals])})"
    many = max(1, min(_MAX_ROWS, _MAX_PARAMETERS // max(1, width)))
    whole = rows.stop - len(rows) % many
    for first, last, each in ((rows.start, whole, many), (whole, rows.stop, rows.stop - whole)):
        if first < last:
            sql.executemany(
                f'INSERT INTO "{table}" ({names}) VALUES {", ".join([row] * each)}',
                _cells(list(bound.values()), first, last, each),
            )


def _cells(columns: list[Any], first: int, last: int, rows: int) -> Iterator[list[Any]]:
    """The parameters of each statement of ``rows`` rows, row after row."""
    width = len(columns)
    if not width:
        yield from ([] for _ in range(first, last, rows))
    elif all(_fits_int64(column) for column in columns):
        import numpy as np

        # A block of rows that the processor's cache holds, and one call that makes all its values.
        block = max(1, _BLOCK_ROWS // rows) * rows
        for begin in range(first, last, block):
            end = min(begin + block, last)
            table = np.empty((end - begin, width), np.int64)
            for at, column in enumerate(columns):
                table[:, at] = column[begin:end]
            yield from table.reshape(-1, rows * width).tolist()
    else:
        cells: list[Any] = [None] * ((last - first) * width)
        for at, column in enumerate(columns):
            part = column[first:last]
            cells[at::width] = part.tolist() if hasattr(part, "tolist") else part
        yield from (cells[i : i + rows * width] for i in range(0, len(cells), rows * width))


def _fits_int64(column: Any) -> bool:
    dtype = getattr(column, "dtype", None)
    return dtype is not None and dtype.kind in "iu" and dtype != "uint64"
