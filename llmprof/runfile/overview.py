"""Kernels of a file too large to hold: added up in cells of time, by one walk over the table.

No index is needed and the file is never written to. Rows come about in order of time, so a block of
rows covers a short stretch; a view of little time reads the few blocks that touch it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from llmprof.runfile.foreign import KERNELS, columns_of, last_row
from llmprof.runfile.opening import OpenFile, damaged
from llmprof.runfile.trace_rows import Ints

BLOCK = 8192
"""Rows whose first start and last end are kept together."""
CELLS = 1 << 16
"""Cells of the whole file."""
EXACT = 60_000
"""Rows that a view reads one by one at most; a larger view is shown by its cells."""


@dataclass(frozen=True, eq=False)
class Window:
    """What one frame shows: busy share of each column, and the kernel with the most time in it."""

    edges_ns: Ints
    """columns + 1 values."""
    busy: NDArray[np.float64]
    """Share of the column, 0–1 (sum over streams, at most 1)."""
    name_id: Ints
    """StringIds id of the name with the most time; -1 where nothing ran."""
    exact: bool
    """From single kernels, not from cells."""


@dataclass(frozen=True, eq=False)
class _Block:
    first_row: int
    last_row: int
    start_ns: int
    end_ns: int


class KernelOverview:
    """Opens at once; ``refine`` walks over the kernels and may be called from another thread.

    Until then ``window`` shows what was walked over so far. One writer, any number of readers.

    Raises:
        RunFileError: damaged, or no kernels with ``start`` and ``end``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = OpenFile(path)
        try:
            tables = {
                str(n) for (n,) in self._file.sql.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'")
            }  # fmt: skip
            self.rows = last_row(self._file.sql, tables, KERNELS)
            """About how many kernels there are."""
            self._named = bool(tables & {KERNELS}) and "demangledName" in columns_of(
                self._file.sql, KERNELS
            )
            self.start_ns, self.end_ns = self._span() if self.rows else (0, 1)
        except sqlite3.Error as why:
            self._file.close()
            raise damaged(path, why) from why
        self.done_rows = 0
        """Rows walked over: the progress of ``refine``."""
        self._cell_ns = max(1, -(-(self.end_ns - self.start_ns) // CELLS))
        self._busy = np.zeros(CELLS, np.float64)
        self._top_ns = np.zeros(CELLS, np.float64)
        self._top = np.full(CELLS, -1, np.int64)
        self._blocks: list[_Block] = []
        self.totals: dict[int, tuple[int, int]] = {}
        """Name id → (kernels, total ns) so far."""

    def __enter__(self) -> KernelOverview:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        why: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _span(self) -> tuple[int, int]:
        """By the rows at both ends of the table: times beyond it count in the outer cells."""
        edge = 2000
        low, high = self._file.sql.execute(
            f'SELECT min(start), max("end") FROM {KERNELS} WHERE rowid <= ? OR rowid > ?',
            (edge, self.rows - edge),
        ).fetchone()
        if type(low) is not int or type(high) is not int:
            return 0, 1
        return low, max(high, low + 1)

    def refine(
        self,
        progress: Callable[[float], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Walk over all kernels once.

        Raises:
            RunFileError: the file is damaged.
        """
        # A connection of its own: SQLite's belong to the thread that made them.
        file = OpenFile(self._path)
        name = "coalesce(demangledName, -1)" if self._named else "-1"
        try:
            at = self.done_rows
            while at < self.rows and not cancelled():
                rows = file.sql.execute(
                    f'SELECT start, "end", {name} FROM {KERNELS} WHERE rowid > ? AND rowid <= ?',
                    (at, at + BLOCK),
                ).fetchall()
                good = [r for r in rows if type(r[0]) is int and type(r[1]) is int]
                if good:
                    self._add(np.array(good, np.int64), at)
                at += BLOCK
                self.done_rows = min(at, self.rows)
                progress(self.done_rows / self.rows)
        except (sqlite3.Error, OverflowError) as why:
            error = why if isinstance(why, sqlite3.Error) else sqlite3.DataError(str(why))
            raise damaged(self._path, error) from why
        finally:
            file.close()

    def _add(self, rows: Ints, first_row: int) -> None:
        start, end, name = rows[:, 0], np.maximum(rows[:, 0], rows[:, 1]), rows[:, 2]
        self._blocks.append(_Block(first_row, first_row + BLOCK, int(start.min()), int(end.max())))
        ids, inverse, counts = np.unique(name, return_inverse=True, return_counts=True)
        lengths = np.bincount(inverse, weights=end - start)
        for number, count, ns in zip(ids.tolist(), counts.tolist(), lengths.tolist(), strict=True):
            before = self.totals.get(number, (0, 0))
            self.totals[number] = (before[0] + count, before[1] + int(ns))
        cell, part, owner = _cut(start, end, self.start_ns, self._cell_ns, CELLS)
        np.add.at(self._busy, cell, part)
        _keep_top(cell, part, name[owner], self._top_ns, self._top)

    def window(self, start_ns: int, end_ns: int, columns: int) -> Window:
        """``columns`` equal columns of a stretch of time.

        Raises:
            RunFileError: the file is damaged.
        """
        edges = np.linspace(start_ns, max(end_ns, start_ns + columns), columns + 1).astype(np.int64)
        touching = [b for b in self._blocks if b.end_ns >= start_ns and b.start_ns <= end_ns]
        if len(touching) * BLOCK <= EXACT and self.done_rows >= self.rows:
            return self._exact(edges, touching)
        first = np.clip((edges[:-1] - self.start_ns) // self._cell_ns, 0, CELLS - 1)
        last = np.maximum(first + 1, -(-(edges[1:] - self.start_ns) // self._cell_ns))
        last = np.clip(last, 1, CELLS)
        sums = np.concatenate([[0.0], np.cumsum(self._busy)])
        busy = (sums[last] - sums[first]) / ((last - first) * self._cell_ns)
        names = np.full(columns, -1, np.int64)
        for i, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            names[i] = self._top[a + int(np.argmax(self._top_ns[a:b]))]
        return Window(edges, np.minimum(busy, 1.0), names, False)

    def _exact(self, edges: Ints, blocks: list[_Block]) -> Window:
        name = "coalesce(demangledName, -1)" if self._named else "-1"
        found = []
        try:
            for block in blocks:
                found += self._file.sql.execute(
                    f'SELECT start, "end", {name} FROM {KERNELS}'
                    ' WHERE rowid > ? AND rowid <= ? AND "end" >= ? AND start <= ?',
                    (block.first_row, block.last_row, int(edges[0]), int(edges[-1])),
                ).fetchall()
        except sqlite3.Error as why:
            raise damaged(self._path, why) from why
        columns = len(edges) - 1
        rows = np.array(found, np.int64).reshape(-1, 3)
        width = max(1, int(edges[-1] - edges[0]) // columns)
        start = np.clip(rows[:, 0], edges[0], edges[-1])
        end = np.clip(rows[:, 1], start, edges[-1])
        cell, part, owner = _cut(start, end, int(edges[0]), width, columns)
        busy, top_ns = np.zeros(columns), np.zeros(columns)
        top = np.full(columns, -1, np.int64)
        np.add.at(busy, cell, part)
        _keep_top(cell, part, rows[:, 2][owner], top_ns, top)
        return Window(edges, np.minimum(busy / width, 1.0), top, True)


def _cut(
    start: Ints, end: Ints, origin: int, width: int, cells: int
) -> tuple[Ints, NDArray[np.float64], Ints]:
    """Intervals cut at the borders of cells: (cell, ns in it, index of the interval)."""
    first = np.clip((start - origin) // width, 0, cells - 1)
    last = np.clip((end - origin) // width, first, cells - 1)
    parts = last - first + 1
    owner = np.repeat(np.arange(len(start)), parts)
    cell = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    low, high = origin + cell * width, origin + (cell + 1) * width
    inside = np.minimum(end[owner], high) - np.maximum(start[owner], low)
    return cell, np.maximum(inside, 0).astype(np.float64), owner


def _keep_top(
    cell: Ints, part: NDArray[np.float64], name: Ints, top_ns: NDArray[np.float64], top: Ints
) -> None:
    """Let each cell keep the name with the most time of one block (names of a cell that two blocks
    share compete by the time they had in one of them)."""
    if not len(cell):
        return
    ids, number = np.unique(name, return_inverse=True)
    keys, at = np.unique(cell * len(ids) + number, return_inverse=True)
    times = np.bincount(at, weights=part)
    for order in np.argsort(times, kind="stable"):
        where = int(keys[order] // len(ids))
        if times[order] > top_ns[where]:
            top_ns[where], top[where] = times[order], ids[keys[order] % len(ids)]
