"""Kernels of a file too large to hold: added up in cells of time, by one walk over the table.

No index is needed and the file is never written to. SQLite adds up a stretch of rows by itself, so
that Python holds neither its rows nor its own lock for long.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmprof.runfile import schema
from llmprof.runfile.activity import KERNELS, Columns, columns
from llmprof.runfile.opening import UNREADABLE, OpenFile, damaged
from llmprof.runfile.trace.chunks import size, stretches
from llmprof.runfile.trace.rows import Ints

Floats = NDArray[np.float64]
Share = Callable[[float], None]
CELLS = 1 << 16
"""Of one stretch of time."""


class Cells:
    """Kernel time of one process on one device in equal cells of time, by kind of kernel.

    A kernel shorter than a cell counts in the cell of its middle. Kernels that ran at the same time
    both count, but no cell is more than full. One thread writes, any number read.

    Args:
        pid: as ``RoundRecord.pid``.
        kind_of: name of a kernel → kind.
        device: ``None``: the file says of no kernel where it ran.
    """

    def __init__(
        self,
        pid: int,
        start_ns: int,
        end_ns: int,
        kind_of: Callable[[str], str],
        device: int | None = None,
    ) -> None:
        self.pid = pid
        self.device = device
        self.start_ns = start_ns
        self.end_ns = max(end_ns, start_ns + 1)
        self.width_ns = max(1, -(-(self.end_ns - start_ns) // CELLS))
        self.kind_of = kind_of
        self.known_ns = start_ns
        """Up to here the walk has come; what lies behind is not known yet."""
        self._sums: dict[str, Floats] = {}
        self._before: dict[str, Floats] = {}

    def add(self, kind: str, cell: Ints, ns: Floats) -> None:
        sums = self._sums.get(kind)
        if sums is None:
            sums = self._sums[kind] = np.zeros(CELLS)
        inside = (cell >= 0) & (cell < CELLS)
        np.add.at(sums, cell[inside], ns[inside])

    def add_long(self, kind: str, spans: Ints) -> None:
        """Kernels as rows (start, end), cut at the borders of the cells."""
        ends = np.clip(spans, self.start_ns, self.end_ns) - self.start_ns
        cell = np.minimum(ends // self.width_ns, CELLS - 1)
        inside = (ends - cell * self.width_ns).astype(np.float64)
        # A kernel covers what lies before its end less what lies before its start.
        whole = np.zeros(CELLS + 1)
        np.add.at(whole, cell[:, 0], self.width_ns)
        np.add.at(whole, cell[:, 1], -self.width_ns)
        self.add(kind, np.arange(CELLS), np.cumsum(whole)[:CELLS])
        self.add(kind, cell[:, 0], -inside[:, 0])
        self.add(kind, cell[:, 1], inside[:, 1])

    def publish(self, known_ns: int) -> None:
        """Let readers see what was added."""
        total = np.sum(list(self._sums.values()), axis=0) if self._sums else np.zeros(CELLS)
        full = np.maximum(1.0, total / self.width_ns)
        self._before = {
            kind: np.concatenate([[0.0], np.cumsum(sums / full)])
            for kind, sums in self._sums.items()
        }
        self.known_ns = max(self.known_ns, known_ns)

    def between(self, edges_ns: Ints) -> dict[str, Ints]:
        """Kind → ns of it between neighbouring edges."""
        at = (np.clip(edges_ns, self.start_ns, self.end_ns) - self.start_ns) / self.width_ns
        border = np.arange(CELLS + 1)
        return {
            kind: np.diff(np.interp(at, border, before)).astype(np.int64)
            for kind, before in self._before.items()
        }

    def known(self, edges_ns: Ints) -> Ints:
        """ns between neighbouring edges that the walk has come over."""
        known: Ints = np.clip(edges_ns, self.start_ns, min(self.known_ns, self.end_ns))
        return np.diff(known)


def walk(path: Path, wanted: Sequence[Cells], tell: Share = lambda _: None) -> Iterator[None]:
    """Fill the cells by one walk over all kernels of a file; yields after each stretch.

    Rows come about in order of time, so what lies before the newest row counts as known while the
    walk goes on; when it is over, everything is.

    Args:
        tell: told the share of the kernels that was looked at; may raise to stop.

    Raises:
        RunFileError: the file is damaged.
    """
    # A connection of its own: SQLite's belong to the thread that made them.
    file = OpenFile(path)
    try:
        yield from _walk(file.sql, wanted, tell)
    except (*UNREADABLE, OverflowError) as why:
        raise damaged(path, why) from why
    finally:
        file.close()


_WHOLE = """ FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE rowid >= ? AND rowid <= ? AND {process} = ?
 AND {begin} > ? AND {begin} <= ? AND {usable}{device}"""


def _walk(sql: sqlite3.Connection, wanted: Sequence[Cells], tell: Share) -> Iterator[None]:
    expressions = Columns(columns(sql, KERNELS))
    there = expressions.there.keys()
    if not {"start", "end"} <= there:
        raise sqlite3.DataError(f"{KERNELS}: no column start or end")
    tables = {str(n) for (n,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    process = expressions.process("globalPid")
    begin, finish = expressions.time("start"), expressions.time("end")
    kinds = [n for n in ("demangledName", "shortName") if n in there]
    name = f"coalesce({kinds[0]}, -1)" if kinds else "-1"
    names = _Names(sql, "StringIds" in tables)
    total, done = max(1, size(sql, KERNELS)), 0
    for first, last, count in stretches(sql, KERNELS):
        for cells in wanted:
            owner = cells.pid
            if "LLMPROF_RUN" in tables:
                owner = schema.global_pid(cells.pid) >> 24
            where = (first, last, owner, cells.start_ns, cells.end_ns)
            known_device = cells.device is not None and "deviceId" in there
            device = f" AND deviceId = {cells.device}" if known_device else ""
            usable = expressions.usable(cells.start_ns)
            rows = _WHOLE.format(process=process, begin=begin, usable=usable, device=device)
            width = cells.width_ns
            found = sql.execute(
                f"SELECT {name}, ({begin} - {cells.start_ns} + ({finish} - {begin}) / 2) / {width},"
                f" sum({finish} - {begin}), max({begin}) {rows}"
                f" AND {finish} - {begin} BETWEEN 0 AND {width} GROUP BY 1, 2",
                where,
            ).fetchall()
            by_kind: dict[str, list[tuple[int, int]]] = {}
            known = cells.known_ns
            for key, cell, ns, start in found:
                by_kind.setdefault(cells.kind_of(names[key]), []).append((cell, ns))
                known = max(known, start)
            for kind, pairs in by_kind.items():
                both = np.array(pairs, np.int64)
                cells.add(kind, both[:, 0], both[:, 1].astype(np.float64))
            longer = sql.execute(
                f"SELECT {name}, {begin}, {finish} {rows} AND {finish} - {begin} > {width}", where
            ).fetchall()
            spans: dict[str, list[tuple[int, int]]] = {}
            for key, start, end in longer:
                spans.setdefault(cells.kind_of(names[key]), []).append((start, end))
                known = max(known, start)
            for kind, pairs in spans.items():
                cells.add_long(kind, np.array(pairs, np.int64))
            if found or longer:
                cells.publish(known)
        done += count
        tell(min(1.0, done / total))
        yield
    for cells in wanted:
        cells.publish(cells.end_ns)
    yield


class _Names(dict[int, str]):
    """Texts of StringIds, looked up when they are first asked for."""

    def __init__(self, sql: sqlite3.Connection, there: bool) -> None:
        super().__init__()
        self._sql = sql
        self._there = there

    def __missing__(self, key: int) -> str:
        row = None
        if self._there:
            row = self._sql.execute("SELECT value FROM StringIds WHERE id = ?", (key,)).fetchone()
        self[key] = str(row[0]) if row else f"name {key}"
        return self[key]
