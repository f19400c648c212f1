"""Bulk rows of the CUPTI_ACTIVITY_KIND_* tables as numpy columns."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

import numpy as np

from llmprof.runfile import schema
from llmprof.runfile.foreign import columns_of
from llmprof.runfile.trace_rows import ApiRows, CopyRows, Ints, KernelRows, PmColumns, TraceRows

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
_API = {
    "start_ns": "start",
    "end_ns": '"end"',
    "tid": "globalTid & 0xFFFFFF",
    "correlation": "correlationId",
    "event_class": "eventClass",
    "name_id": "nameId",
}
_CHUNK = 1 << 16
_COLUMN = re.compile(r"\w+")
"""The first word of an expression above is its column (``-1``: none is needed)."""


def read_trace(
    sql: sqlite3.Connection, tables: set[str], pid: int, start_ns: int, end_ns: int
) -> TraceRows:
    """All rows of one process that overlap a stretch of time, ordered by start."""
    # Of a file that llmprof did not make, ``pid`` is all of ``globalPid >> 24``.
    process = schema.global_pid(pid) >> 24 if "LLMPROF_RUN" in tables else pid
    window = (process, start_ns, end_ns)
    found = TraceRows()
    if "CUPTI_ACTIVITY_KIND_KERNEL" in tables:
        columns = _columns(sql, "CUPTI_ACTIVITY_KIND_KERNEL", _KERNEL, window)
        names = _names(sql, tables, columns["name_id"])
        found.kernels = KernelRows(pid=_constant(columns, pid), names=names, **columns)
    copies = _copies(sql, tables, window)
    found.copies = CopyRows(**copies, pid=_constant(copies, pid))
    if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
        columns = _columns(sql, "CUPTI_ACTIVITY_KIND_RUNTIME", _API, window, thread=True)
        names = _names(sql, tables, columns["name_id"])
        found.api = ApiRows(pid=_constant(columns, pid), names=names, **columns)
    return found


def _copies(
    sql: sqlite3.Connection, tables: set[str], window: tuple[int, int, int]
) -> dict[str, Ints]:
    """Memory copies and sets in one order; a set has kind -1."""
    parts = []
    if "CUPTI_ACTIVITY_KIND_MEMCPY" in tables:
        parts.append(_columns(sql, "CUPTI_ACTIVITY_KIND_MEMCPY", _COPY, window))
    if "CUPTI_ACTIVITY_KIND_MEMSET" in tables:
        columns = {**_COPY, "kind": "-1"}
        parts.append(_columns(sql, "CUPTI_ACTIVITY_KIND_MEMSET", columns, window))
    if not parts:
        return {name: np.empty(0, np.int64) for name in _COPY}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _COPY}
    order = np.argsort(joined["start_ns"], kind="stable")
    return {name: column[order] for name, column in joined.items()}


def _columns(
    sql: sqlite3.Connection,
    table: str,
    columns: dict[str, str],
    window: tuple[int, int, int],
    *,
    thread: bool = False,
) -> dict[str, Ints]:
    """int64 columns; NULL becomes 0 (no graph node, no correlation), and so does a column that
    the version of nsys that wrote the file did not have."""
    there = columns_of(sql, table)
    if not {"start", "end"} <= there:
        raise ValueError(f"{table} has no column start or end")
    owner = "globalTid" if thread else "globalPid"
    process = f"coalesce({owner}, 0) >> 24" if owner in there else "0"
    chosen = ", ".join(
        f"coalesce({expression}, 0)" if _COLUMN.findall(expression)[0] in there | {"1"} else "0"
        for expression in columns.values()
    )
    cursor = sql.cursor()
    cursor.row_factory = None  # plain tuples: ten million rows need no names
    rows = cursor.execute(
        f'SELECT {chosen} FROM "{table}"'
        f' WHERE {process} = ? AND "end" >= ? AND start <= ? ORDER BY start',
        window,
    )
    parts = [np.empty((0, len(columns)), np.int64)]
    while chunk := rows.fetchmany(_CHUNK):
        parts.append(np.array(chunk, np.int64))
    whole = np.concatenate(parts)
    return {name: np.ascontiguousarray(whole[:, i]) for i, name in enumerate(columns)}


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
