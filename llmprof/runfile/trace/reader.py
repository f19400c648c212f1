"""Bulk rows of the CUPTI_ACTIVITY_KIND_* tables as numpy columns."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmprof.runfile import schema
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign.tables import CALLS, KERNELS, columns_of
from llmprof.runfile.trace.chunks import Advance, silent, size, stretches
from llmprof.runfile.trace.rows import ApiRows, CopyRows, Ints, KernelRows, PmColumns, TraceRows

_KERNEL = {
    "start_ns": "start",
    "end_ns": '"end"',
    "device": "deviceId",
    "context": "contextId",
    "stream": "streamId",
    "correlation": "correlationId",
    "name_id": "demangledName",
    "grid_x": "gridX",
    "grid_y": "gridY",
    "grid_z": "gridZ",
    "block_x": "blockX",
    "block_y": "blockY",
    "block_z": "blockZ",
    "registers": "registersPerThread",
    "static_shared": "staticSharedMemory",
    "dynamic_shared": "dynamicSharedMemory",
    "graph_node": "graphNodeId",
    "graph": "graphId",
}
_COPY = {
    "start_ns": "start",
    "end_ns": '"end"',
    "device": "deviceId",
    "context": "contextId",
    "stream": "streamId",
    "correlation": "correlationId",
    "bytes": "bytes",
    "kind": "copyKind",
    "graph_node": "graphNodeId",
}
_COPIES = {"CUPTI_ACTIVITY_KIND_MEMCPY": None, "CUPTI_ACTIVITY_KIND_MEMSET": "-1"}
"""Table → copyKind, ``None``: its own."""
_API = {
    "start_ns": "start",
    "end_ns": '"end"',
    "tid": "globalTid & 0xFFFFFF",
    "correlation": "correlationId",
    "event_class": "eventClass",
    "name_id": "nameId",
}
_CHUNK = 1 << 13
"""Rows turned into numbers at once: Python's lock is held for a few ms only."""
_COLUMN = re.compile(r"\w+")
"""The first word of an expression above is its column (``-1``: none is needed)."""
_CALLS_A_KERNEL = 4
"""API calls that are read for each kernel of the limit."""


def trace_size(sql: sqlite3.Connection, tables: set[str]) -> int:
    """Rows that ``read_trace`` looks at."""
    return sum(size(sql, table) for table in (KERNELS, *_COPIES, CALLS) if table in tables)


def read_trace(
    sql: sqlite3.Connection,
    tables: set[str],
    pid: int,
    window_ns: tuple[int, int],
    limit: int | None = None,
    advance: Advance = silent,
) -> TraceRows:
    """All rows of one process that overlap a stretch of time, ordered by start.

    Args:
        limit: kernels, and as many copies, at most: those that begin first. Of a stretch with more,
            ``TraceRows.complete_ns`` says up to when nothing is missing, and nothing that begins
            later is given.
    """
    # Of a file that llmprof did not make, ``pid`` is all of ``globalPid >> 24``.
    process = schema.global_pid(pid) >> 24 if "LLMPROF_RUN" in tables else pid
    look = _Look(sql, process, *window_ns, advance)
    found = TraceRows()
    if KERNELS in tables:
        columns = look.columns(KERNELS, _KERNEL, limit)
        found.kernels = KernelRows(pid=_constant(columns, pid), names={}, **columns)
    copies = _copies(look, tables, limit)
    found.copies = CopyRows(**copies, pid=_constant(copies, pid))
    if CALLS in tables:
        calls = None if limit is None else _CALLS_A_KERNEL * limit
        columns = look.columns(CALLS, _API, calls, thread=True)
        found.api = ApiRows(pid=_constant(columns, pid), names={}, **columns)
    if look.cut:
        # A later table may have been cut earlier.
        found = found.until(look.end_ns)
    found.kernels.names = _names(sql, tables, found.kernels.name_id)
    found.api.names = _names(sql, tables, found.api.name_id)
    return found


@dataclass
class _Look:
    """One process between two times; the end comes nearer when there are too many rows."""

    sql: sqlite3.Connection
    process: int
    start_ns: int
    end_ns: int
    advance: Advance
    cut: bool = False

    def columns(
        self, table: str, columns: dict[str, str], limit: int | None, *, thread: bool = False
    ) -> dict[str, Ints]:
        """int64 columns; NULL becomes 0 (no graph node, no correlation), and so does a column that
        the version of nsys that wrote the file did not have."""
        there = columns_of(self.sql, table)
        if not {"start", "end"} <= there:
            raise ValueError(f"{table} has no column start or end")
        owner = "globalTid" if thread else "globalPid"
        process = f"coalesce({owner}, 0) >> 24" if owner in there else "0"
        chosen = ", ".join(
            f"coalesce({expression}, 0)" if _COLUMN.findall(expression)[0] in there | {"1"} else "0"
            for expression in columns.values()
        )
        query = (
            f"SELECT {chosen} FROM {quoted(table)} WHERE rowid >= ? AND rowid <= ?"
            f' AND {process} = ? AND "end" >= ? AND start <= ?'
        )
        cursor = self.sql.cursor()
        cursor.row_factory = None  # plain tuples: ten million rows need no names
        parts = [np.empty((0, len(columns)), np.int64)]
        held = 0
        for first, last, count in stretches(self.sql, table):
            rows = cursor.execute(query, (first, last, self.process, self.start_ns, self.end_ns))
            while chunk := rows.fetchmany(_CHUNK):
                parts.append(np.array(chunk, np.int64))
                held += len(chunk)
            if limit is not None and held > limit + limit // 8:
                parts = self._earliest(parts, limit)
                held = sum(map(len, parts))
            self.advance(count)
        if limit is not None and held > limit:
            parts = self._earliest(parts, limit)
        # Column by column: all rows are in memory once, and one column twice.
        order = np.argsort(np.concatenate([part[:, 0] for part in parts]), kind="stable")
        return {
            name: np.concatenate([part[:, i] for part in parts])[order]
            for i, name in enumerate(columns)
        }

    def _earliest(self, parts: list[Ints], limit: int) -> list[Ints]:
        """Rows of the first ``limit`` starts; the end moves to just before the next one."""
        start = np.concatenate([part[:, 0] for part in parts])
        self.end_ns = min(self.end_ns, int(np.partition(start, limit)[limit]) - 1)
        self.cut = True
        return [part[part[:, 0] <= self.end_ns] for part in parts]


def _copies(look: _Look, tables: set[str], limit: int | None) -> dict[str, Ints]:
    """Memory copies and sets in one order; a set has kind -1."""
    parts = [
        look.columns(table, _COPY if kind is None else {**_COPY, "kind": kind}, limit)
        for table, kind in _COPIES.items()
        if table in tables
    ]
    if not parts:
        return {name: np.empty(0, np.int64) for name in _COPY}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _COPY}
    order = np.argsort(joined["start_ns"], kind="stable")
    return {name: column[order] for name, column in joined.items()}


def _constant(columns: dict[str, Ints], value: int) -> Ints:
    return np.full(len(columns["start_ns"]), value, np.int64)


def _names(sql: sqlite3.Connection, tables: set[str], ids: Ints) -> dict[int, str]:
    wanted: Sequence[int] = np.unique(ids).tolist()
    found: dict[int, str] = {}
    if not tables & {"StringIds"}:
        return {number: f"name {number}" for number in wanted}
    for at in range(0, len(wanted), 500):
        part = wanted[at : at + 500]
        marks = ", ".join("?" * len(part))
        rows = sql.execute(f"SELECT id, value FROM StringIds WHERE id IN ({marks})", part)
        found.update({int(number): str(text) for number, text in rows})
    return {number: found.get(number, f"name {number}") for number in wanted}


def read_pm(sql: sqlite3.Connection, round_id: int) -> PmColumns:
    """All PM samples of a round."""
    rows = sql.execute(
        'SELECT start, "end", dram_pct, dram_read_pct, sm_active_pct FROM LLMPROF_PM_SAMPLE'
        " WHERE round_id = ? ORDER BY start",
        (round_id,),
    ).fetchall()
    times = np.array([(row[0], row[1]) for row in rows], np.int64).reshape(-1, 2)
    values = np.array([tuple(row)[2:] for row in rows], np.float64).reshape(-1, 3)
    return PmColumns(times[:, 0], times[:, 1], values[:, 0], values[:, 1], values[:, 2])
