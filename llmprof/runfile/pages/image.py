"""A small SQLite database, built in memory from whole columns.

https://www.sqlite.org/fileformat2.html: the file's header (1.3), pages of table b-trees (1.6) and
the row of each table in ``sqlite_schema`` (2.6). A page has its header and the places of its cells
at its begin, the cells at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.runfile.pages.cells import (
    MOST_ROWS,
    Column,
    Shape,
    fill,
    kinds_of,
    rowid_of,
    rowid_varints,
    shape_of,
    varint,
)

Array = NDArray[Any]

PAGE = 16384
PAGES = 512
MOST_TABLES = 8
"""Each may need an inner page."""
_LEAF, _INNER = 13, 5
_LEAF_HEADER = struct.Struct(">BHHHB")
"""Kind of page, first free block, cells, begin of the cells, loose bytes."""
_INNER_HEADER = struct.Struct(">BHHHBI")
"""The same, and the last child."""
_FILE_HEADER = struct.Struct(">16sH6B12I20xII")
"""Magic, page size, … ; the names of the rest are beside the values in ``_file_header``."""
_INTEGER, _TEXT = 4, 13
"""Serial types: an integer of four bytes; text of N bytes is 13 + 2 N."""


@dataclass
class _Table:
    sql: str
    leaves: list[tuple[int, int]] = field(default_factory=list)
    """Number of the page (from 1), rowid of its last row."""
    rows: int = 0


class Image:
    """8 MiB, used again and again: ``add``, ``database``, ``clear``."""

    def __init__(self) -> None:
        self._pages = np.empty((PAGES, PAGE), np.uint8)  # a page is written whole when it is taken
        self._taken = 1
        self._tables: dict[str, _Table] = {}

    @property
    def tables(self) -> list[str]:
        """Those that rows were added to."""
        return list(self._tables)

    def clear(self) -> None:
        self._taken = 1
        self._tables.clear()

    def add(self, table: str, sql: str, columns: Sequence[Column], first: int, count: int) -> int:
        """Rows ``first``, ``first`` + 1, … of the columns: ``count`` of them, or as many as there
        is room for. How many it took.

        Args:
            sql: the statement that created the table.
            columns: in its order, ``MOST_COLUMNS`` of them at most, ``MOST_NULLABLE`` with NULLs in
                some rows.
        """
        if table not in self._tables and len(self._tables) == MOST_TABLES:
            return 0
        into = self._tables.get(table) or _Table(sql)
        form = shape_of(columns)
        a_page = (PAGE - _LEAF_HEADER.size) // (form.length + 2)
        free = len(self._pages) - MOST_TABLES - self._taken
        count = min(count, free * a_page, MOST_ROWS - into.rows)
        if count <= 0:
            return 0
        rowids = rowid_varints()[into.rows : into.rows + count]
        if all(column.nulls is None for column in columns):
            self._add_alike(form, columns, first, count, a_page, rowids)
        else:
            self._add_kinds(columns, slice(first, first + count), a_page, rowids)
        for at in range(a_page, count + a_page, a_page):
            self._taken += 1
            into.leaves.append((self._taken, rowid_of(into.rows + min(at, count) - 1)))
        into.rows += count
        self._tables[table] = into
        return count

    def _add_alike(
        self, form: Shape, columns: Sequence[Column], first: int, count: int, a_page: int,
        rowids: Array,
    ) -> None:  # fmt: skip
        """Rows whose cells are all of one length: every page is laid out alike."""
        dtype = form.dtype
        page, done = self._taken, 0
        for pages, rows in ((count // a_page, a_page), (1, count % a_page)):
            if not pages or not rows:
                continue
            begin = PAGE - rows * dtype.itemsize
            places = np.arange(begin, PAGE, dtype.itemsize, dtype=">u2")
            head = _LEAF_HEADER.pack(_LEAF, 0, rows, begin, 0) + places.tobytes()
            self._pages[page : page + pages, : len(head)] = np.frombuffer(head, np.uint8)
            cells: Array = np.ndarray(
                (pages, rows), dtype, self._pages, page * PAGE + begin, (PAGE, dtype.itemsize)
            )
            upto = done + pages * rows
            fill(cells, form, columns, slice(first + done, first + upto), rowids[done:upto])
            page, done = page + pages, upto

    def _add_kinds(
        self, columns: Sequence[Column], rows: slice, a_page: int, rowids: Array
    ) -> None:
        """Rows with different NULLs: as many on each page as of the longest."""
        count = len(rowids)
        kinds = [(its, which, shape_of(its)) for its, which in kinds_of(columns, rows)]
        pages = -(-count // a_page)
        lengths = np.zeros(pages * a_page, np.int64)
        for _, which, form in kinds:
            lengths[which] = form.length
        places = PAGE - np.cumsum(lengths.reshape(pages, a_page), axis=1)
        for number in range(pages):
            on_it = min(a_page, count - number * a_page)
            head = _LEAF_HEADER.pack(_LEAF, 0, on_it, int(places[number, -1]), 0)
            head += places[number, :on_it].astype(">u2").tobytes()
            self._pages[self._taken + number, : len(head)] = np.frombuffer(head, np.uint8)
        places += (self._taken + np.arange(pages)[:, None]) * PAGE
        for its, which, form in kinds:
            cells = np.empty(len(which), form.dtype)
            fill(cells, form, its, rows.start + which, rowids[which])
            raw = form.template.dtype
            # A cell at every byte of the image.
            many = self._pages.size - form.length + 1
            every: Array = np.ndarray((many,), raw, self._pages, 0, (1,))
            every[places.reshape(-1)[which]] = cells.view(raw)

    def database(self) -> memoryview:
        """The whole, to be read before anything is added."""
        schema: list[bytes] = []
        for name, table in self._tables.items():
            texts = [text.encode() for text in ("table", name, name, table.sql)]
            serials = [_TEXT + 2 * len(text) for text in texts]
            serials.insert(3, _INTEGER)
            texts.insert(3, self._root(table).to_bytes(4, "big"))
            types = b"".join(map(varint, serials))
            payload = varint(1 + len(types)) + types + b"".join(texts)
            schema.append(varint(len(payload)) + varint(len(schema) + 1) + payload)
        header = _file_header(self._taken)
        self._put_page(0, header, _LEAF_HEADER, (), schema)
        return self._pages[: self._taken].data.cast("B")

    def _root(self, table: _Table) -> int:
        """The page that leads to all rows of a table."""
        if len(table.leaves) == 1:
            return table.leaves[0][0]
        *inner, (last, _) = table.leaves
        cells = [page.to_bytes(4, "big") + varint(rowid) for page, rowid in inner]
        self._put_page(self._taken, b"", _INNER_HEADER, (last,), cells)
        self._taken += 1
        return self._taken

    def _put_page(
        self, page: int, before: bytes, header: struct.Struct, child: tuple[int, ...],
        cells: Sequence[bytes],
    ) -> None:  # fmt: skip
        """A page of few cells."""
        ends = np.cumsum([len(cell) for cell in cells])
        places = (PAGE - ends).astype(">u2")
        kind = _INNER if child else _LEAF
        head = before + header.pack(kind, 0, len(cells), int(places[-1]), 0, *child)
        head += places.tobytes()
        body = b"".join(reversed(cells))
        self._pages[page, : len(head)] = np.frombuffer(head, np.uint8)
        self._pages[page, PAGE - len(body) :] = np.frombuffer(body, np.uint8)


def _file_header(pages: int) -> bytes:
    changes, utf8, schema_format = 1, 1, 4
    return _FILE_HEADER.pack(
        b"SQLite format 3\0", PAGE,
        1, 1, 0,  # written and read as a file with a rollback journal; no bytes kept on a page
        64, 32, 32,  # fractions, fixed
        changes, pages,
        0, 0,  # free pages
        1, schema_format,  # cookie, format of the schema
        0, 0,  # size of the cache: none suggested; no auto-vacuum
        utf8, 0, 0, 0,  # version of the user, incremental vacuum, id of the application
        changes, 3_040_000,  # the number of pages is valid for these changes; who wrote it
    )  # fmt: skip
