"""Rows into tables of an open file by way of an image (``image.Image``).

``INSERT INTO main.T SELECT * FROM image.T`` of two tables with the same definition copies records
as they are, without a look inside: SQLite's transfer optimization (``xferOptimization`` in
insert.c). It holds for tables without an index, trigger or check; SQLite itself is asked: its
program of the statement (EXPLAIN) must decode no row.
"""

from __future__ import annotations

import ctypes
import sqlite3
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple

from llmprof.runfile.pages.cells import (
    ALL_NULL,
    MOST_COLUMNS,
    MOST_NULLABLE,
    Column,
    constant,
    varying,
)
from llmprof.runfile.pages.image import Image

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""``M_*`` of mallopt(3)."""
_LEAST = 512
"""Rows that are worth an image."""
_MOST_IMAGES = 8
"""Of one transaction, which holds their memory until it ends; SQLite attaches 10 by default."""


class Definition(NamedTuple):
    """Columns of a table that takes records as they are."""

    names: tuple[str, ...]
    integer: frozenset[str]
    required: frozenset[str]
    """NOT NULL: nobody else looks at that."""


class PageTransfer:
    """Rows that wait to be written to one file within the open transaction.

    What was added is there after ``settle``. A full image is written by a thread, while the next
    one is made: SQLite needs about as long for it. ``sql`` waits for that thread, so the connection
    is only ever used by one.
    """

    def __init__(self, sql: sqlite3.Connection) -> None:
        """``sql`` was opened with ``check_same_thread=False``, and is used through ``sql`` only."""
        _keep_freed_memory()
        self._sql = sql
        self._image, self._other = Image(), Image()
        self._attached: list[str] = []
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @property
    def sql(self) -> sqlite3.Connection:
        """Raises ``sqlite3.Error``: rows that were added before could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
        return self._sql

    def waits(self, table: str) -> bool:
        """Whether rows of it were added and are not there yet."""
        return table in self._image.tables

    def add(
        self,
        table: str,
        sql: str,
        columns: Mapping[str, Any],
        count: int,
        zero_is_null: Collection[str],
    ) -> int:
        """How many of the rows it took, from the first one on: all, or what there is memory for.
        None where SQLite or these values do not allow it.

        Args:
            sql: the statement that created the table.
            columns: integers, which all rows have, or sequences of ``count`` values; those that are
                left out are NULL.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        if count < _LEAST and not self.waits(table):
            return 0
        definition = definition_of(sql)
        block = definition and _block(definition, columns, zero_is_null)
        if not block:
            return 0
        done = 0
        while done < count and len(self._attached) < _MOST_IMAGES:
            done += self._image.add(table, sql, block, done, count - done)
            if done < count:
                self._hand_over()
        return done

    def settle(self) -> None:
        """Write what waits.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        if self._image.tables:
            _write(self.sql, self._new_name(), self._image)

    def end(self) -> None:
        """The transaction has ended: give back the memory."""
        for name in self._attached:
            with suppress(sqlite3.Error):  # a file in trouble, which is said elsewhere
                self.sql.execute(f"DETACH {name}")
        self._attached.clear()

    def forget(self) -> None:
        """Leave out what waits; the transaction is about to be taken back."""
        with suppress(Exception):  # what was wrong was raised, or is of no interest any more
            _ = self.sql
        self._image.clear()
        self._other.clear()  # its writing may have failed

    def close(self) -> None:
        self.forget()
        if self._thread is not None:
            self._thread.shutdown()

    def _hand_over(self) -> None:
        sql = self.sql  # the one before is written
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "llmprof-rows")
        self._writing = self._thread.submit(_write, sql, self._new_name(), self._image)
        self._image, self._other = self._other, self._image

    def _new_name(self) -> str:
        """Each image has one of its own: what was read in this transaction stays locked in it."""
        self._attached.append(f"llmprof_rows_{len(self._attached)}")
        return self._attached[-1]


def _write(sql: sqlite3.Connection, name: str, image: Image) -> None:
    _attach(sql, name, image)
    for table in image.tables:
        sql.execute(_copy(table, name))
    image.clear()


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep 64 MiB that were freed: images come and go, and a page that is got anew costs
    3 µs in a virtual machine, in all a fifth of the time of a row."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not there with musl
    if mallopt is not None:
        for parameter, size in ((_TRIM_THRESHOLD, 64 << 20), (_MMAP_THRESHOLD, 32 << 20)):
            mallopt(parameter, size)


@lru_cache(maxsize=64)
def definition_of(sql: str) -> Definition | None:
    """Of a table that this statement creates, tried out; ``None``: its rows can't be taken over.

    Python 3.10 cannot hand a database over (``Connection.deserialize``).
    """
    able = hasattr(sqlite3.Connection, "deserialize") and sqlite3.threadsafety
    if not able or sys.byteorder != "little":
        return None
    try:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
            return _tried(db, sql)
    except (sqlite3.Error, MemoryError):
        return None


def _tried(db: sqlite3.Connection, sql: str) -> Definition | None:
    """Two images in one transaction, as ``PageTransfer`` has them."""
    db.execute(sql)
    (table,) = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
    # cid, name, type, not null, default, key
    columns = db.execute(f'PRAGMA table_info("{table}")').fetchall()
    if len(columns) > MOST_COLUMNS or any(column[5] for column in columns):
        return None
    integer = frozenset(column[1] for column in columns if column[2] == "INTEGER")
    names = tuple(column[1] for column in columns)
    image, expected = Image(), []
    db.execute("BEGIN IMMEDIATE")
    for number in (0, 1):
        row = [number - 3 * at if name in integer else None for at, name in enumerate(names)]
        block = [ALL_NULL if value is None else constant(value) for value in row]
        image.add(table, sql, block, 0, 1)
        _attach(db, f"image_{number}", image)
        program = db.execute(f"EXPLAIN {_copy(table, f'image_{number}')}").fetchall()
        steps = {str(step[1]) for step in program}
        if not steps & {"RowData", "RowCell"} or steps & {"Column", "MakeRecord"}:
            return None
        db.execute(_copy(table, f"image_{number}"))
        image.clear()
        expected.append(tuple(row))
    db.execute("COMMIT")
    if db.execute(f'SELECT * FROM "{table}" ORDER BY rowid').fetchall() != expected:
        return None
    return Definition(names, integer, frozenset(column[1] for column in columns if column[3]))


def _attach(db: sqlite3.Connection, name: str, image: Image) -> None:
    db.execute(f"ATTACH ':memory:' AS {name}")
    db.deserialize(image.database(), name=name)


def _copy(table: str, image: str) -> str:
    return f'INSERT INTO main."{table}" SELECT * FROM {image}."{table}"'


def _block(
    definition: Definition, columns: Mapping[str, Any], zero_is_null: Collection[str]
) -> list[Column] | None:
    """Columns in the table's order; ``None`` where they are not integers, or NULL must not be."""
    if not columns.keys() <= definition.integer:
        return None
    block, nullable = [], 0
    for name in definition.names:
        given, column = columns.get(name), ALL_NULL
        if isinstance(given, int):
            if given or name not in zero_is_null:
                column = constant(given)
        elif given is not None:
            if getattr(getattr(given, "dtype", None), "kind", "") not in ("i", "u"):
                return None
            try:
                column = varying(given, name in zero_is_null)
            except OverflowError:
                return None
            nullable += column.nulls is not None
        if name in definition.required and (column is ALL_NULL or column.nulls is not None):
            return None
        block.append(column)
    return block if nullable <= MOST_NULLABLE else None
